"""The two picture-only baselines: the ellipse by hand and by its area, GrabCut on an easy scene and at its limits."""

import math

import numpy as np
import pytest

from samtune.methods.classical import ellipse, grabcut


def test_ellipse_by_hand() -> None:
    # Box 5 x 3: half axes 2.5 and 1.5. In the outer rows (dy = 1) |dx| <= 2.5 * sqrt(1 - 1 / 2.25) = 1.86.
    mask = ellipse([1, 1, 5, 3], 5, 8)
    expected = np.zeros((5, 8), bool)
    expected[1, 2:5] = expected[3, 2:5] = expected[2, 1:6] = True
    assert np.array_equal(mask, expected)


def test_ellipse_of_one_pixel_and_one_row() -> None:
    assert np.argwhere(ellipse([4, 2, 4, 2], 6, 7)).tolist() == [[2, 4]]
    assert ellipse([1, 3, 5, 3], 6, 7).sum() == 5


def test_ellipse_touches_all_four_sides_and_has_its_area() -> None:
    mask = ellipse([20, 30, 219, 129], 200, 300)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (30, 129, 20, 219)
    assert mask.sum() == pytest.approx(math.pi / 4 * 200 * 100, rel=2e-3)
    assert np.array_equal(mask[30:130, 20:220], mask[30:130, 20:220][::-1, ::-1])


def test_ellipse_takes_boxes_beyond_the_image() -> None:
    assert ellipse([-10, -10, 9, 9], 20, 20).sum() == pytest.approx(math.pi / 4 * 100, rel=0.1)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A red disc on green noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 30) ** 2 + (columns - 35) ** 2 < 15**2
    image = np.where(disc[..., None], [200, 40, 40], [40, 160, 60]) + random.normal(0, 12, (60, 80, 3))
    return image.clip(0, 255).astype(np.uint8), disc


def test_grabcut_finds_a_distinct_object_better_than_its_box() -> None:
    image, disc = scene()
    mask = grabcut(image, [19, 14, 51, 46])
    assert mask.dtype == bool and (mask & disc).sum() / (mask | disc).sum() > 0.97
    outside = mask.copy()
    outside[14:47, 19:52] = False
    assert not outside.any()


def test_grabcut_gives_the_same_mask_again_and_leaves_the_image() -> None:
    # A patchwork of more colours than its models have parts: where their clusters start decides the mask.
    random = np.random.default_rng(6)
    patches = np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((10, 10, 1)))
    image = (patches + random.normal(0, 6, (60, 80, 3))).clip(0, 255).astype(np.uint8)
    before, first = image.copy(), grabcut(image, [15, 8, 64, 51])
    assert all(np.array_equal(grabcut(image, [15.4, 7.6, 64, 51]), first) for _ in range(5))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("box", [[0, 0, 79, 59], [30, 20, 30, 20], [79, 59, 79, 59]])
def test_grabcut_falls_back_to_the_box(box: list[int]) -> None:
    image = np.full((60, 80, 3), 128, np.uint8)  # one colour: nothing can be told apart, or nothing is outside
    expected = np.zeros((60, 80), bool)
    expected[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    assert np.array_equal(grabcut(image, box), expected)
