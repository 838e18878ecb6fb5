"""Training pictures of the nano SAM: views of bank pictures, pasted segments, masks that fit what is seen."""

import cv2
import numpy as np
import pytest

from samtune.data.sample import Sample
from samtune.nano import scenes
from samtune.nano.scenes import (
    LARGEST_SIDE,
    Picture,
    bank_picture,
    crop_scene,
    paste_scene,
    photometric,
    picture_bank,
    random_view,
    training_scene,
    warp_cutout,
    warp_image,
)
from small_sam import ListedSamples, disc_sample

SIZE = 96


def flat_picture(number: int, height: int = 90, width: int = 120) -> Picture:
    """A bright red disc on dark blue."""
    mask = disc_sample(number, height, width).masks[0]
    image = np.where(mask[..., None], np.array([230, 20, 20]), np.array([20, 20, 120])).astype(np.uint8)
    return bank_picture(image, mask[None], {0}, main=0)


BANK = [flat_picture(number) for number in range(4)]


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def test_bank_picture_is_shrunk_and_keeps_each_mask_in_its_box() -> None:
    sample = disc_sample(0, 400, 800)
    speck = np.zeros((1, 400, 800), bool)
    speck[0, 5:8, 5:8] = True  # under 4 pixels a side when shrunk: left out
    masks = np.concatenate([speck, sample.masks, sample.masks[:, ::-1]])
    picture = bank_picture(sample.image, masks, whole={0, 2}, main=1)
    assert picture.image.shape == (192, LARGEST_SIDE, 3) and picture.image.dtype == np.uint8
    assert len(picture.cutouts) == 2 and picture.whole == (1,) and picture.main == 0
    for mask, cutout, (x, y) in zip(masks[1:], picture.cutouts, picture.corners, strict=True):
        canvas = np.zeros((192, LARGEST_SIDE), bool)
        canvas[y : y + cutout.shape[0], x : x + cutout.shape[1]] = cutout
        small = cv2.resize(mask.astype(np.float32), (LARGEST_SIDE, 192), interpolation=cv2.INTER_AREA)
        assert overlap(canvas, small > 0.5) > 0.98
        assert cutout.any(0).all() or cutout.any(1).all()
        assert cutout[0].any() and cutout[-1].any() and cutout[:, 0].any() and cutout[:, -1].any()


def test_small_picture_keeps_its_size() -> None:
    sample = disc_sample(1)
    picture = bank_picture(sample.image, sample.masks, set())
    assert np.array_equal(picture.image, sample.image) and picture.whole == () and picture.main is None


def test_masks_follow_their_picture_through_any_view() -> None:
    rng, padded = np.random.default_rng(0), 0
    for number in range(30):
        picture = BANK[number % 4]
        (image, masks), main = crop_scene(picture, SIZE, rng)
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert masks.shape == (1, SIZE, SIZE) and masks.dtype == bool and main == 0
        red = image[..., 0].astype(int) > image[..., 2].astype(int) + 50  # not the mean colour outside the picture
        if masks[0].sum() > 100:
            assert overlap(red, masks[0]) > 0.85
        padded += bool((image == (124, 116, 104)).all(-1).any())
    assert padded > 3  # some views show the picture's edge


def test_view_that_changes_nothing_shows_the_picture_itself() -> None:
    picture = flat_picture(0, SIZE, SIZE)
    view = np.hstack([np.eye(2), np.zeros((2, 1))]).astype(np.float32)
    assert np.array_equal(warp_image(picture.image, view, np.eye(2), SIZE), picture.image)
    mask = warp_cutout(picture, 0, view, SIZE)
    assert mask.dtype == np.float32 and set(np.unique(mask)) <= {0, 1}
    assert np.array_equal(mask > 0.5, picture.image[..., 0] > 128)


def test_views_are_the_whole_picture_padded_or_stretched_or_a_crop() -> None:
    rng, kinds = np.random.default_rng(1), {"pad": 0, "stretch": 0, "crop": 0}
    picture = BANK[0]
    height, width = picture.image.shape[:2]
    corners = np.array([[0, 0, 1], [width, height, 1], [width, 0, 1], [0, height, 1]]).T
    for _ in range(200):
        view, linear = random_view(picture, SIZE, rng)
        assert np.allclose(view[:, :2], linear, atol=1e-6)
        moved = np.sort((view @ corners).round(3), axis=1)
        if np.allclose(moved[0, [0, -1]], [0, SIZE]) and np.allclose(moved[1, [0, -1]], [0, SIZE], atol=1e-2):
            kinds["stretch"] += 1
        elif np.allclose(moved[:, [0, -1]], [[0, SIZE], [0, SIZE * height / width]], atol=1e-2):
            kinds["pad"] += 1
        else:
            kinds["crop"] += 1
    assert 25 <= kinds["pad"] <= 75 and 20 <= kinds["stretch"] <= 60 and kinds["crop"] >= 80


def test_pasted_segments_hide_what_is_below() -> None:
    rng, several = np.random.default_rng(2), 0
    for _ in range(12):
        image, masks = paste_scene(BANK, SIZE, rng)
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert masks.dtype == bool and masks.shape[1:] == (SIZE, SIZE)
        assert masks.sum(0).max(initial=0) <= 1  # what is visible belongs to one object
        several += len(masks) >= 3
    assert several >= 6


def test_nothing_is_pasted_from_pictures_without_whole_objects() -> None:
    bare = [bank_picture(picture.image, np.zeros((0, 90, 120), bool), set()) for picture in BANK]
    image, masks = paste_scene(bare, SIZE, np.random.default_rng(0))
    assert image.shape == (SIZE, SIZE, 3) and masks.shape == (0, SIZE, SIZE)


def test_photometric_changes_colours_and_nothing_else() -> None:
    image = BANK[0].image
    results = [photometric(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    assert len({result.tobytes() for result in results}) == 20
    grey = [result for result in results if (result == result[..., :1]).all()]
    assert len(grey) < 8
    disc = image[..., 0] > 128
    for result in results:
        inside, outside = (result[part].astype(float).mean(0) for part in (disc, ~disc))
        assert np.abs(inside - outside).max() > 10  # the object stays to be seen


@pytest.mark.parametrize("shares", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.3, 0.2)])
def test_every_training_scene_has_objects_worth_a_prompt(shares: tuple[float, float, float]) -> None:
    mains = 0
    for seed in range(6):
        image, masks, main = training_scene(BANK, SIZE, np.random.default_rng(seed), shares, mosaic=0.0)
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert len(masks) >= 1 and masks.dtype == bool and masks.shape[1:] == (SIZE, SIZE)
        for mask in masks:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert mask.sum() >= 12 and np.ptp(rows) >= 2 and np.ptp(columns) >= 2
        if main is not None:
            assert main.shape == (SIZE, SIZE) and main.dtype == bool and main.mean() >= 0.02
        mains += main is not None
        again = training_scene(BANK, SIZE, np.random.default_rng(seed), shares, mosaic=0.0)
        assert np.array_equal(again[0], image) and np.array_equal(again[1], masks)
    assert mains == 0 if shares[0] == 0 else mains > 0  # only a real picture has a main object


def test_mosaic_is_four_scenes_of_half_the_size_with_the_objects_of_all() -> None:
    half = SIZE // 2
    image, masks, main = training_scene(BANK, SIZE, np.random.default_rng(5), mosaic=1.0)
    rng = np.random.default_rng(5)
    rng.random()  # whether it is a mosaic
    count = 0
    for place in range(4):
        part = (slice(half * (place // 2), half * (place // 2 + 1)), slice(half * (place % 2), half * (place % 2 + 1)))
        own, own_masks, _ = training_scene(BANK, half, rng, mosaic=0.0)
        assert np.array_equal(image[part], own)
        found = masks[count : count + len(own_masks)]
        assert np.array_equal(found[:, *part], own_masks) and found.sum() == own_masks.sum()
        count += len(own_masks)
    assert main is None and len(masks) == count


# ---------------------------------------------------------------- the bank


class Annotated(ListedSamples):
    """bsds500 as the bank sees it: the first picture has three annotators, the second one."""

    def annotators(self, id: str) -> int:
        return 3 if id == "000" else 1


def quarters(number: int) -> Sample:
    """Four masks of growing size, the last of them nearly half the picture."""
    sample = disc_sample(number)
    masks = np.zeros((4, 48, 64), bool)
    for index, width in enumerate((2, 10, 20, 30)):
        masks[index, 5:45, :width] = True
    return Sample(sample.id, "listed", "train", sample.image, masks)


def test_bank_takes_from_each_set_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def open_dataset(name: str, **options: object) -> ListedSamples:
        asked.append((name, options))
        kind = Annotated if name == "bsds500" else ListedSamples
        return kind([quarters(number) for number in range(3)], name)

    monkeypatch.setattr(scenes, "open_dataset", open_dataset)
    bank = picture_bank(limit=2)
    assert asked == [
        ("bsds500", {}), ("bsds500", {"annotator": 1}), ("bsds500", {"annotator": 2}), ("ccp", {"whole": True}),
        ("car-parts", {}),
    ]  # fmt: skip
    (regions, alone, *again), (person, _, car, _) = bank[:8], bank[8:]  # bsds500 counts four times
    assert again == [regions, alone] * 3
    # a mask 2 pixels wide is left out everywhere
    assert [len(picture.cutouts) for picture in (regions, alone, *bank[8:])] == [9, 3, 3, 3, 4, 4]
    assert regions.main is None and regions.whole == (0, 1) and alone.whole == (0, 1)  # of less than 35%
    assert person.main == 2 and set(person.whole) == {0, 1, 2}
    assert car.main == 3 and car.whole == (3,)
    assert car.cutouts[3].sum() == max(cutout.sum() for cutout in car.cutouts)


def test_bank_of_a_procedural_set() -> None:
    bank = picture_bank(("synthetic-natural",), limit=1)
    assert len(bank) == 1 and len(bank[0].cutouts) > 2 and bank[0].main is None
