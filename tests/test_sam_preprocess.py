"""From picture to model square and back, against segment_anything's transform and a plain bilinear formula."""

from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from samtune.common.errors import InputError
from samtune.data.sample import CroppedMasks, cropped
from samtune.methods.predictor import SamPadding
from samtune.prompts import Prompts, tight_boxes
from samtune.sam.build import PIXEL_MEAN, PIXEL_STD
from samtune.sam.preprocess import Preprocess
from small_sam import small_sam

PICTURES = [(48, 64), (64, 48), (33, 200), (301, 150), (64, 64), (7, 5)]


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((y - 0.45 * height) / (0.3 * height)) ** 2 + ((x - 0.6 * width) / (0.25 * width)) ** 2 <= 1


@pytest.mark.parametrize("size", PICTURES)
def test_pad_moves_boxes_and_points_as_sam_predictor_does(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    transform = ResizeLongestSide(64)
    points = rng.uniform(0, 1, (3, 2, 2)) * [size[1], size[0]]
    boxes = rng.uniform(0, 1, (3, 4)) * [size[1], size[0], size[1], size[0]]
    prompts = Prompts(
        torch.zeros(3, dtype=torch.int64),
        boxes=torch.from_numpy(boxes).float(),
        points=torch.from_numpy(points).float(),
        labels=torch.ones(3, 2, dtype=torch.int64),
    )
    moved = Preprocess(64, "pad").prompts(prompts, size)
    assert np.allclose(moved.points, transform.apply_coords(points, size), atol=1e-4)
    assert np.allclose(moved.boxes, transform.apply_boxes(boxes, size), atol=1e-4)
    assert Preprocess(64, "pad").inner_size(*size) == transform.get_preprocess_shape(*size, 64)


@pytest.mark.parametrize("size", [(64, 40), (23, 64), (64, 64)])
def test_picture_that_needs_no_scaling_is_sams_own_input_bit_for_bit(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = small_sam().preprocess(torch.from_numpy(image).permute(2, 0, 1))
    assert torch.equal(Preprocess(64, "pad").image(image), expected)


@pytest.mark.parametrize("size", PICTURES)
def test_pictures_are_normalised_and_padding_is_zero(size: tuple[int, int]) -> None:
    colour = np.array([10, 120, 250])
    image = np.broadcast_to(colour.astype(np.uint8), (*size, 3))
    normalised = torch.from_numpy((colour - PIXEL_MEAN) / PIXEL_STD).float()[:, None, None]
    stretched, padded = (Preprocess(64, mode).image(image) for mode in ("stretch", "pad"))
    assert stretched.shape == padded.shape == (3, 64, 64) and padded.dtype == torch.float32
    assert (stretched - normalised).abs().max() < 1e-5
    height, width = Preprocess(64, "pad").inner_size(*size)
    assert (padded[:, :height, :width] - normalised).abs().max() < 1e-5
    assert not padded[:, height:].any() and not padded[:, :, width:].any()
    assert stretched.is_contiguous() and padded.is_contiguous()


@pytest.mark.parametrize("mode", ["pad", "stretch"])
def test_masks_at_the_squares_own_size_average_down_to_those_at_a_quarter(mode: str) -> None:
    to_square = Preprocess(64, mode)
    whole, quarter = (to_square.masks(disc(48, 80)[None], size) for size in (64, 16))
    assert whole.shape == (1, 1, 64, 64)
    assert torch.allclose(torch.nn.functional.avg_pool2d(whole, 4), quarter)


def bilinear(logits: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`logits (h, w)` at fractional pixel places, the border repeated beyond it."""
    rows, columns = rows.clip(0, logits.shape[0] - 1), columns.clip(0, logits.shape[1] - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = np.minimum(top + 1, logits.shape[0] - 1), np.minimum(left + 1, logits.shape[1] - 1)
    y, x = (rows - top)[:, None], (columns - left)[None]
    above = logits[np.ix_(top, left)] * (1 - x) + logits[np.ix_(top, right)] * x
    below = logits[np.ix_(down, left)] * (1 - x) + logits[np.ix_(down, right)] * x
    return above * (1 - y) + below * y


@pytest.mark.parametrize("mode", ["pad", "stretch"])
@pytest.mark.parametrize("size", PICTURES)
def test_logits_go_to_the_original_size_in_one_bilinear_step(size: tuple[int, int], mode: str) -> None:
    logits = np.random.default_rng(1).normal(0, 5, (2, 3, 16, 16))
    preprocess = Preprocess(64, mode)
    inner = preprocess.inner_size(*size)
    found = preprocess.logits(torch.from_numpy(logits).float(), size)
    assert found.shape == (2, 3, *size)
    # An original pixel's centre, in model pixels, then in low-resolution pixels (a quarter), whose centres are at .5.
    rows, columns = (
        (np.arange(original) + 0.5) * covered / original / 4 - 0.5
        for original, covered in zip(size, inner, strict=True)
    )
    for prompt in range(2):
        for mask in range(3):
            expected = bilinear(logits[prompt, mask], rows, columns)
            assert np.abs(found[prompt, mask].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("mode", ["pad", "stretch"])
@pytest.mark.parametrize("size", [(96, 128), (128, 50), (200, 199)])
def test_round_trip_of_a_mask(size: tuple[int, int], mode: str) -> None:
    preprocess, mask = Preprocess(256, mode), disc(*size)
    low = preprocess.masks(mask[None], 64)
    assert low.shape == (1, 1, 64, 64) and low.dtype == torch.float32
    back = preprocess.logits(low - 0.5, size)[0, 0].numpy() > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.96


@pytest.mark.parametrize("mode", ["pad", "stretch"])
def test_boxes_and_masks_move_alike(mode: str) -> None:
    preprocess, mask = Preprocess(256, mode), disc(90, 160)[None]
    box = Prompts(torch.zeros(1, dtype=torch.int64), boxes=torch.from_numpy(tight_boxes(mask)))
    moved = preprocess.prompts(box, mask.shape[1:]).boxes[0]
    there = tight_boxes((preprocess.masks(mask, 256)[:, 0] > 0.5).numpy())[0]
    assert np.abs(moved.numpy() - there).max() < 2


def test_a_low_resolution_pixel_holds_the_share_that_is_covered() -> None:
    mask = np.zeros((1, 8, 8), bool)
    mask[0, :2, :1] = True  # an eighth of the first 4 x 4 block
    mask[0, 4:, 4:] = True
    for mode in ("pad", "stretch"):
        low = Preprocess(8, mode).masks(mask, 2)
        assert low.tolist() == [[[[0.125, 0.0], [0.0, 1.0]]]]
    wide = Preprocess(8, "pad").masks(np.ones((2, 4, 8), bool), 2)
    assert wide.tolist() == [[[[1.0, 1.0], [0.0, 0.0]]]] * 2
    assert Preprocess(8, "pad").masks(np.zeros((0, 4, 8), bool), 2).shape == (0, 1, 2, 2)


def test_unknown_mode_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown preprocessing 'padd'; known: pad, stretch"):
        Preprocess(64, "padd")


@pytest.mark.parametrize("kind", [Preprocess, SamPadding])
@pytest.mark.parametrize("mode", ["pad", "stretch"])
@pytest.mark.parametrize("size", PICTURES)
def test_bool_masks_are_those_of_the_logits(mode: str, kind: type[Preprocess], size: tuple[int, int]) -> None:
    preprocess = kind(64, mode)
    logits = F.interpolate(torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 1, (16, 16))
    logits[1] = -1  # empty masks
    masks = preprocess.enlarged(logits, size)
    assert masks.dtype == torch.bool and torch.equal(masks, preprocess.logits(logits, size) > 0)
    assert masks.any() and not masks[1].any()


def test_a_small_mask_is_enlarged_where_it_is() -> None:
    logits = torch.full((5, 1, 128, 128), -1.0)
    logits[:, :, 60:63, 60:63] = 1
    with FlopCounterMode(display=False) as whole:
        Preprocess(256).logits(logits, (1500, 1500))
    with FlopCounterMode(display=False) as counter:
        assert Preprocess(256).enlarged(logits, (1500, 1500)).flatten(1).any(1).all()
    assert 0 < counter.get_total_flops() < whole.get_total_flops() / 10


@pytest.mark.parametrize("mode", ["pad", "stretch"])
@pytest.mark.parametrize("size", [(300, 200), (64, 64), (40, 50), (30, 400)])
def test_objects_that_share_a_plane_are_moved_as_alone(mode: str, size: tuple[int, int]) -> None:
    masks = np.zeros((40, *size), bool)
    for mask, (row, column, side) in zip(masks, np.random.default_rng(2).integers(0, 28, (40, 3)), strict=True):
        mask[row : row + side, column * size[1] // 30 : column * size[1] // 30 + side] = True  # side 0: empty
    preprocess = Preprocess(64, mode)
    height, width = preprocess.inner_size(*size)
    with mock.patch("samtune.sam.preprocess.cv2.resize", side_effect=cv2.resize) as resize:
        together = preprocess.masks(CroppedMasks(cropped(masks), size), 64)[:, 0].numpy()
    assert 1 < resize.call_count < 40
    for mask, found in zip(masks, together, strict=True):
        alone = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        assert np.array_equal(found[:height, :width], alone)
        assert not found[height:].any() and not found[:, width:].any()
