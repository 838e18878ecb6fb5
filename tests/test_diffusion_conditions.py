"""Colour-coded mask images and captions: colours apart, the same at every size, never mixed."""

import numpy as np
import pytest

from samtune.common.errors import InputError
from samtune.data.sample import Sample
from samtune.diffusion.conditions import PALETTE, asam_colour_coded, caption, colour_coded, index_map


def boxes() -> np.ndarray:
    masks = np.zeros((3, 90, 120), bool)
    masks[0, 5:25, 5:25] = True  # lies on the large one
    masks[1, :60, :80] = True
    masks[2, 62:88, 50:110] = True
    return masks


def test_colours_are_apart() -> None:
    colours = PALETTE.astype(int)
    distance = np.abs(colours[:, None] - colours[None]).max(-1)
    np.fill_diagonal(distance, 255)
    assert colours[0].tolist() == [0, 0, 0]
    assert distance.min() >= 31 and distance[:11, :11].min() >= 127


@pytest.mark.parametrize("size", [32, 64, 128, 500])
def test_each_object_keeps_its_colour_at_every_size(size: int) -> None:
    masks = boxes()
    picture = colour_coded(masks, size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert {tuple(colour) for colour in picture.reshape(-1, 3)} == {tuple(colour) for colour in PALETTE[:4]}
    numbers = index_map(masks, size)
    for index, area in enumerate((400, 60 * 80 - 400, 26 * 60)):
        assert (numbers == index + 1).mean() == pytest.approx(area / (90 * 120), rel=0.2)


def test_the_smaller_object_lies_on_top_whatever_the_order() -> None:
    masks = boxes()
    assert index_map(masks, 120)[15, 15] == 1 and index_map(masks[::-1], 120)[15, 15] == 3


def test_no_object_is_black_and_too_many_are_refused() -> None:
    assert not index_map(np.zeros((0, 9, 9), bool), 16).any()
    with pytest.raises(InputError, match="300 objects in one picture; a colour-coded mask image holds 255"):
        index_map(np.ones((300, 4, 4), bool), 16)


def test_the_authors_colours_go_by_rank_of_the_boxes() -> None:
    masks = boxes()  # by the area of the box: the second, the third, the first
    picture = asam_colour_coded(masks, 120)
    whole = 2**24 - 1
    for (y, x), rank in {(40, 70): 1, (100, 80): 2, (20, 15): 3}.items():  # rows are stretched from 90 to 120
        code = int(picture[y, x] @ np.array([1, 256, 65536]))
        assert code == whole * rank // 3, rank
    assert not picture[60, 110].any() and picture.dtype == np.uint8
    assert not asam_colour_coded(np.zeros((0, 9, 9), bool), 16).any()


def test_captions() -> None:
    image, masks = np.zeros((4, 4, 3), np.uint8), np.ones((3, 4, 4), bool)
    sample = Sample("a", "set", "train", image, masks, object_class=("shoe", "left_door", "shoe"))
    assert caption(sample) == "a photograph of left door and shoe"
    assert caption(Sample("a", "set", "train", image, masks, object_class=("shoe", "bag", "hat"))) == (
        "a photograph of bag, hat and shoe"
    )
    assert caption(Sample("a", "set", "train", image, masks)) == "a photograph"
    assert caption(Sample("a", "set", "train", image, masks, caption="two cats")) == "two cats"
