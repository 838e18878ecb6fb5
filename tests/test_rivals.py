"""ASAM's rivals: the same parameters and schedule; pictures attacked once, within eps, that fool the victim."""

from pathlib import Path

import numpy as np
import pytest
import torch

from samtune.common.errors import InputError
from samtune.data.augmentation import augment
from samtune.losses import binary_cross_entropy, dice_loss
from samtune.methods import METHODS, build_method, options_in_key
from samtune.prompts import Prompts, tight_boxes
from samtune.sam.preprocess import Preprocess
from samtune.study.attacked import AttackedDataset
from small_sam import ListedSamples, disc_sample, small_sam

RIVALS = ("clean_tuning", "classical_augmentation", "pgd", "dat", "generated", "reconstructed")


@pytest.mark.parametrize("name", [*RIVALS, "asam"])
def test_the_same_parameters_prompts_and_schedule(name: str) -> None:
    asam, method = build_method("asam", small_sam()), build_method(name, small_sam())
    assert list(method.trainable()) == list(asam.trainable()) and method.frozen_encoder
    assert (method.prompts, method.learning_rate, method.recipe["schedule"]) == (asam.prompts, 2e-3, "slow_start")
    assert METHODS[name].name == name and options_in_key(name, {}) == {}


def test_what_is_tuned_can_be_chosen() -> None:
    sizes = {tuned: build_method("asam", small_sam(), tuned=tuned).count_trainable() for tuned in
             ("tokens", "mask_tokens", "iou_token", "decoder")}  # fmt: skip
    assert sizes["mask_tokens"] == 4 * 32 and sizes["iou_token"] == 32 and sizes["tokens"] == 5 * 32
    assert sizes["decoder"] == build_method("decoder_tuning", small_sam()).count_trainable()
    with pytest.raises(InputError, match="unknown part to tune 'token'; known: tokens"):
        build_method("asam", small_sam(), tuned="token")


@pytest.mark.parametrize("side", [64, 90])  # the victim's own, and one that is no multiple of it
def test_pgd_stays_within_eps_is_made_once_and_fools_the_victim(side: int, tmp_path: Path) -> None:
    data = ListedSamples([disc_sample(number, side, side) for number in range(3)])
    method = build_method("pgd", small_sam())
    made = AttackedDataset(data, method, tmp_path, "cpu")
    square, worse = Preprocess(64, "stretch"), []
    for id in made.ids("train"):
        clean, wrong = data.load(id), made.load(id)
        change = np.abs(wrong.image.astype(int) - clean.image).max()
        assert 0 < change <= 8 and np.array_equal(wrong.masks, clean.masks)
        worse.append(_loss(method, clean.image, clean.masks) < _loss(method, wrong.image, clean.masks))
        left = square.resized(wrong.image).astype(int) - square.resized(clean.image)
        assert np.sqrt((left**2).mean()) > 0.7 * 8  # resizing to the victim's square averages little of it away
    assert all(worse)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 3
    again = AttackedDataset(data, build_method("pgd", small_sam()), tmp_path, "cpu").load("000")
    assert np.array_equal(again.image, made.load("000").image)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    AttackedDataset(data, build_method("pgd", small_sam(), eps=4), tmp_path, "cpu").load("000")
    assert len(list(tmp_path.iterdir())) == 4
    late = AttackedDataset(data, method, tmp_path / "late", "cpu")
    for parameter in method.parameters():  # trained meanwhile: the victim stays as it was
        torch.nn.init.zeros_(parameter)
    assert np.array_equal(late.load("000").image, made.load("000").image)


def _loss(method: torch.nn.Module, image: np.ndarray, masks: np.ndarray) -> float:
    """Of the masks for the object's box, with the picture as training resizes it."""
    square = Preprocess(64, "stretch")
    boxes = Prompts(torch.tensor([0]), boxes=torch.from_numpy(tight_boxes(masks)))
    with torch.no_grad():
        logits = method(square.image(image)[None], square.prompts(boxes, masks.shape[1:]))["final"]
    truth = square.masks(masks, logits.shape[-1])
    return float((dice_loss(logits, truth) + binary_cross_entropy(logits, truth)).sum())


def test_strong_augmentation_changes_pictures_as_its_seed_says() -> None:
    sample = disc_sample(1)
    state = torch.get_rng_state()
    image, masks = augment(sample.image, sample.masks, "strong", [0, 1], "a")
    plain, plain_masks = augment(sample.image, sample.masks, "flip_jitter", [0, 1], "a")
    assert image.dtype == np.uint8 and image.shape == plain.shape and np.array_equal(masks, plain_masks)
    assert np.abs(image.astype(int) - plain).mean() > 2
    assert np.array_equal(image, augment(sample.image, sample.masks, "strong", [0, 1], "a")[0])
    assert not np.array_equal(image, augment(sample.image, sample.masks, "strong", [0, 2], "a")[0])
    assert torch.equal(state, torch.get_rng_state())
