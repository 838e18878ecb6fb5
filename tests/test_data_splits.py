"""Splits: proportions, classes, whole groups, independence of order; and the search for near-duplicates."""

import hashlib
from collections import Counter

import cv2
import numpy as np
import pytest

from samtune.common.errors import InputError
from samtune.data.duplicates import (
    duplicates_across_splits,
    fingerprint,
    linked_groups,
    near_duplicates,
    neighbouring_crops,
    perceptual_hash,
)
from samtune.data.listed import ListedDataset
from samtune.data.sample import Sample
from samtune.data.splits import by_split, hashed_validation, make_split

IDS = [f"image{number}" for number in range(200)]


def test_sixty_twenty_twenty_and_nothing_lost():
    split_of = make_split(IDS)
    assert sorted(split_of) == sorted(IDS)
    assert Counter(split_of.values()) == {"train": 120, "val": 40, "test": 40}


def test_order_does_not_matter_but_the_seed_does():
    assert make_split(IDS) == make_split(reversed(IDS))
    assert make_split(IDS) != make_split(IDS, seed=1)


def test_the_split_is_fixed_for_good():
    # Recorded numbers depend on it: a change of this value is a change of every split of the kit.
    text = ",".join(f"{id}:{split}" for id, split in make_split(IDS[:50]).items())
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == "01cc62bdef3b"


def test_each_class_is_spread_alike():
    classes = {id: "rare" if number % 10 == 0 else "common" for number, id in enumerate(IDS)}
    split_of = make_split(IDS, classes)
    rare = Counter(split_of[id] for id in IDS if classes[id] == "rare")
    assert rare == {"train": 12, "val": 4, "test": 4}
    assert Counter(split_of.values()) == {"train": 120, "val": 40, "test": 40}


def test_groups_stay_whole_and_sizes_near():
    rng = np.random.default_rng(3)
    groups = {id: f"slide{rng.integers(40)}" for id in IDS}
    classes = {id: groups[id][-1] for id in IDS}
    split_of = make_split(IDS, classes, groups)
    for group in set(groups.values()):
        assert len({split_of[id] for id in IDS if groups[id] == group}) == 1
    count = Counter(split_of.values())
    assert abs(count["train"] - 120) <= 15 and abs(count["val"] - 40) <= 15 and abs(count["test"] - 40) <= 15


def test_a_group_may_share_its_name_with_an_id():
    split_of = make_split(["a", "b", "c"], groups={"b": "a", "c": "a"})
    assert split_of["b"] == split_of["c"]


def test_two_parts():
    split_of = make_split(IDS, fractions=(0.8, 0.2), names=("train", "val"))
    assert Counter(split_of.values()) == {"train": 160, "val": 40}
    assert by_split(split_of)["val"] == sorted(id for id in IDS if split_of[id] == "val")


def test_hashed_validation_is_the_documented_formula_and_ignores_company():
    split_of = hashed_validation(IDS)
    for id in IDS:
        rest = int.from_bytes(hashlib.sha256(id.encode()).digest(), "big") % 20
        assert split_of[id] == ("val" if rest == 0 else "train")
    assert hashed_validation(IDS[:7]) == {id: split_of[id] for id in IDS[:7]}
    share = Counter(hashed_validation(f"photo {n}" for n in range(4000)).values())["val"] / 4000
    assert 0.04 < share < 0.06


class Toy(ListedDataset):
    def load(self, id: str) -> Sample:
        return Sample(id, self.name, self.split_of(id), np.zeros((4, 4, 3), np.uint8), np.ones((1, 4, 4), bool))


def test_listed_data_set():
    dataset = Toy("toy", {"train": ["b", "a"], "test": ["c"]}, {"empty mask": 2, "missing": 0})
    assert dataset.ids("train") == ["a", "b"] and dataset.ids("val") == [] and dataset.dropped == {"empty mask": 2}
    assert dataset.split_of("c") == "test"
    with pytest.raises(InputError, match="toy has no sample 'd'"):
        dataset.split_of("d")
    with pytest.raises(InputError, match="unknown split 'tset'; known: test"):
        dataset.ids("tset")
    with pytest.raises(InputError, match="listed twice"):
        Toy("toy", {"train": ["a"], "test": ["a"]})
    assert dataset.load("c").split == "test"
    with pytest.raises(TypeError, match="abstract"):
        ListedDataset("toy", {})


def scene(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    """A picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(rng.uniform(0, 255, (n, n)), (width, height), interpolation=cv2.INTER_CUBIC) for n in (3, 8, 20)
    ]
    grey = np.clip(sum(layers) / 3, 0, 255).astype(np.uint8)
    return np.stack([grey] * 3, axis=2)


def test_the_hash_survives_compression_size_and_light():
    image = scene(0)
    _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])
    for other in (cv2.imdecode(coded, 1), cv2.resize(image, (240, 180)), (image * 0.6 + 20).astype(np.uint8)):
        assert (perceptual_hash(image) != perceptual_hash(other)).sum() <= 4
    assert (perceptual_hash(image) != perceptual_hash(scene(1))).sum() > 15


def test_near_duplicates_are_found_and_only_those():
    images = {f"s{seed}": scene(seed) for seed in range(12)}
    images["copy of s3"] = cv2.resize((images["s3"] * 0.8 + 10).astype(np.uint8), (200, 150))
    prints = {id: fingerprint(image) for id, image in images.items()}
    assert [pair[:2] for pair in near_duplicates(prints)] == [("copy of s3", "s3")]
    split_of = dict.fromkeys(images, "train") | {"s3": "test"}
    (pair,) = duplicates_across_splits(prints, split_of)
    assert {pair.first_split, pair.second_split} == {"train", "test"} and pair.correlation > 0.9
    assert duplicates_across_splits(prints, dict.fromkeys(images, "train")) == []
    assert near_duplicates({}) == []


def test_same_frame_with_other_content_is_no_duplicate():
    def retina(seed: int) -> np.ndarray:
        disc = np.hypot(*np.mgrid[-100:100, -100:100]) < 90
        vessels = scene(seed, 200, 200)[..., 0] > 140
        return np.where(disc, 150 - 40 * vessels, 0).astype(np.uint8)

    assert near_duplicates({str(seed): fingerprint(retina(seed)) for seed in range(6)}) == []


def test_crops_of_one_slide_find_each_other():
    slides = [scene(seed, 128, 192) for seed in (20, 21)]
    crops = {
        f"slide{number} {row}{column}": slide[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
        for number, slide in enumerate(slides)
        for row in range(2)
        for column in range(3)
    }
    crops["flat a"] = crops["flat b"] = np.full((64, 64, 3), 9, dtype=np.uint8)
    groups = neighbouring_crops(crops)
    assert sorted(map(len, groups)) == [1, 1, 6, 6]
    assert all(len({id.split()[0] for id in group}) == 1 for group in groups)


def test_linked_groups():
    assert linked_groups(["a", "b", "c", "d"], [("a", "c"), ("c", "d")]) == [["a", "c", "d"], ["b"]]
    assert linked_groups(["a"], []) == [["a"]]
