"""Which masks of a sample count: its objects, or their union; what stays in memory."""

from dataclasses import replace

import numpy as np
import pytest

from samtune.common.errors import InputError
from samtune.data.generated import chosen_sets
from samtune.data.sample import CachedDataset, Sample, stack_masks, target_masks, without_empty_masks
from small_sam import ListedSamples, disc_sample


def test_targets():
    masks = np.zeros((2, 2, 3), dtype=bool)
    masks[0, 0, 0] = masks[1, 1, 2] = True
    sample = Sample("a", "d", "test", np.zeros((2, 3, 3), dtype=np.uint8), masks)
    assert np.array_equal(target_masks(sample, "instances"), masks)
    union = target_masks(sample, "union")
    assert union.shape == (1, 2, 3) and union.sum() == 2 and union.dtype == bool
    empty = Sample("a", "d", "test", sample.image, stack_masks([], (2, 3)))
    assert target_masks(empty, "union").shape == (0, 2, 3)
    blank = Sample("a", "d", "test", sample.image, np.zeros((1, 2, 3), dtype=bool))
    assert target_masks(blank, "union").shape == (0, 2, 3)
    with pytest.raises(InputError, match="unknown target 'unoin'; known: union"):
        target_masks(sample, "unoin")


def test_masks_without_a_pixel_are_left_out_with_their_classes() -> None:
    masks = np.zeros((3, 2, 3), dtype=bool)
    masks[0, 0, 0] = masks[2, 1, 2] = True
    sample = Sample("a", "d", "test", np.zeros((2, 3, 3), dtype=np.uint8), masks, object_class=("cat", "dog", "hen"))
    kept = without_empty_masks(sample)
    assert np.array_equal(kept.masks, masks[[0, 2]]) and kept.object_class == ("cat", "hen")
    assert without_empty_masks(kept) is kept


def test_of_chosen_pictures_those_without_an_object_are_left_out() -> None:
    """A set that is generated from them has none of these: trainings on both must see the same pictures in turn."""
    samples = [disc_sample(number) for number in range(4)]
    samples[1] = replace(samples[1], masks=np.zeros_like(samples[1].masks))
    (chosen,) = chosen_sets("listed", "train", 4, lambda name: ListedSamples(samples))
    assert sorted(chosen.ids("train")) == ["000", "002", "003"]


def test_samples_stay_in_memory_until_it_is_full() -> None:
    read = []

    class Counted(ListedSamples):
        def load(self, id: str) -> Sample:
            read.append(id)
            return super().load(id)

    data = Counted([disc_sample(number) for number in range(3)])
    one = data.load("000")
    kept = CachedDataset(data, most=2 * (one.image.nbytes + one.masks.nbytes))
    read.clear()
    for _ in range(2):
        assert [kept.load(id).id for id in kept.ids("train")] == data.ids("train")
    assert read == ["000", "001", "002", "002"]
    assert kept.load("000") is kept.load("000") and kept.name == data.name
