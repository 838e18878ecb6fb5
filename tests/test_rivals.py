"""ASAM's rivals: the same parameters and schedule; pictures attacked once, within eps, that fool the victim."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samtune.common.errors import InputError
from samtune.data.augmentation import augment
from samtune.diffusion.attack import AttackConfig
from samtune.diffusion.pixel_attack import pixel_attack
from samtune.losses import binary_cross_entropy, dice_loss
from samtune.methods import METHODS, build_method
from samtune.prompts import Prompts, tight_boxes
from samtune.sam.build import PIXEL_MEAN, PIXEL_STD
from samtune.sam.preprocess import Preprocess
from samtune.study.attacked import AttackedDataset
from samtune.study.plan import options_in_key
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


class Mixing:
    """A victim whose logits are sums over 5 x 5 pixels of either sign: Dice and cross-entropy pull apart."""

    image_size = 16

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        kernel = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(1)) / 5
        return {"final": F.conv2d(embedding, kernel, padding=2)[prompts.image_index]}


@pytest.mark.parametrize(("side", "mode"), [(24, "area"), (12, "bilinear")])
def test_pgd_is_that_of_its_formula(side: int, mode: str) -> None:
    victim, generator = Mixing(), torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, side, side, generator=generator)
    masks = torch.zeros(3, 1, 16, 16)
    masks[0, ..., 2:9], masks[1, ..., 5:7, :], masks[2, ..., 9:, 9:] = 1, 1, 1
    prompts = Prompts(torch.tensor([0, 0, 1]))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (PIXEL_MEAN, PIXEL_STD))
    moved = images.clone()
    for _ in range(4):
        moved.requires_grad_(True)
        logits = victim.decode((255 * F.interpolate(moved, (16, 16), mode=mode) - mean) / std, prompts)["final"]
        p = logits.sigmoid()
        dice = 1 - (2 * (p * masks).sum((1, 2, 3)) + 1) / ((p + masks).sum((1, 2, 3)) + 1)
        entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2, 3))
        uphill = torch.autograd.grad((dice + entropy).sum(), moved)[0].sign()
        moved = moved.detach() + 0.02 * uphill
        moved = torch.minimum(torch.maximum(moved, images - 0.05), images + 0.05).clamp(0, 1)
    found = pixel_attack(victim, images, prompts, masks, eps=0.05, step_size=0.02, steps=4)
    assert ((found - moved).abs() < 1e-5).float().mean() > 0.995  # a sign may turn where the gradient is almost 0
    assert (found - images).abs().max() == pytest.approx(0.05) and found.min() >= 0 and found.max() <= 1


def test_pgd_has_its_usual_strength_and_the_steps_of_asams_attack() -> None:
    method = build_method("pgd", small_sam())
    assert (method.eps, method.step_size) == (8, 2) and method.steps == AttackConfig().steps == 10


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
