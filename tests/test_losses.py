"""Losses against torch's and MONAI's formulas, a plain PointRend, and what must not change them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from samtune import losses

PIXEL_LOSSES = [
    losses.binary_cross_entropy,
    losses.balanced_cross_entropy,
    losses.dice_loss,
    losses.squared_dice_loss,
    losses.samed_loss,
]


def pair(prompts: int = 4, masks: int = 1, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(prompts, masks, size, size, generator=generator)
    return logits, torch.rand(prompts, 1, size, size, generator=generator) > 0.6


def test_low_resolution_iou_by_hand() -> None:
    logits = torch.tensor([[[1.0, 1, -1], [0, 1, -1]], [[-1.0, -1, 0], [-1, -1, -1]]])  # 0 is background
    target = torch.tensor([[[1.0, 0.5, 0.6], [0, 1, 0]], [[0.0, 0, 0], [0, 0.5, 0]]])  # half a pixel too
    assert losses.low_resolution_iou(logits, target).tolist() == [0.5, 0.0]


def test_cross_entropy_equals_torch() -> None:
    logits, target = pair()
    expected = [F.binary_cross_entropy_with_logits(x, t.float()) for x, t in zip(logits, target, strict=True)]
    assert torch.allclose(losses.binary_cross_entropy(logits, target)[:, 0], torch.stack(expected))


def test_balanced_cross_entropy_by_hand() -> None:
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1, 0], [0, 0]]]])
    logits[0, 0, 0, 0] = np.log(3)  # probability 3/4 inside, 1/2 outside
    assert losses.balanced_cross_entropy(logits, target).item() == pytest.approx((np.log(4 / 3) + np.log(2)) / 2)
    nothing = losses.balanced_cross_entropy(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert nothing.item() == pytest.approx(np.log(2) / 2)


def test_dice_equals_monai() -> None:
    logits, target = pair()
    peer = DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1, reduction="none")(logits, target.float())
    assert torch.allclose(losses.dice_loss(logits, target), peer.reshape(4, 1))


def test_squared_dice_equals_monai() -> None:
    logits, target = pair()
    peer = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=1, smooth_dr=1, reduction="none")(logits, target.float())
    assert torch.allclose(losses.squared_dice_loss(logits, target), peer.reshape(4, 1))


def test_only_the_squared_dice_loss_keeps_an_uninformed_mask_from_growing() -> None:
    target = torch.zeros(1, 1, 10, 10)
    target[..., :1] = 1  # a tenth of the picture
    downhill = {}
    for loss in (losses.dice_loss, losses.squared_dice_loss):
        level = torch.tensor(1.0, requires_grad=True)  # p = 0.73 everywhere
        loss(level.expand(1, 1, 10, 10), target).sum().backward()
        downhill[loss] = -level.grad.item()
    assert downhill[losses.dice_loss] > 0 > downhill[losses.squared_dice_loss]


def test_dice_by_hand() -> None:
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1, 1], [0, 0]]]])
    # 4 pixels at 1/2: overlap 1, sums 2 and 2
    assert losses.dice_loss(logits, target).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    assert losses.dice_loss(logits - 1e4, target * 0).item() == 0  # two empty masks


def test_weighted_sums() -> None:
    logits, target = pair()
    entropy, dice = losses.binary_cross_entropy(logits, target), losses.dice_loss(logits, target)
    assert torch.allclose(losses.samed_loss(logits, target), 0.2 * entropy + 0.8 * dice)


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_pixel_losses_know_no_order_and_no_batch(loss) -> None:
    logits, target = pair(masks=3)
    value = loss(logits, target)
    assert value.shape == (4, 3) and value.dtype == torch.float32
    assert torch.allclose(loss(logits.flip(-1), target.flip(-1)), value)
    assert torch.allclose(loss(logits.mT, target.mT), value)
    assert torch.allclose(loss(logits[1:2, 2:], target[1:2]), value[1:2, 2:])


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_large_bfloat16_logits_give_finite_values_and_gradients(loss) -> None:
    logits, target = pair()
    logits = (1e4 * logits).bfloat16().requires_grad_()
    value = loss(logits, target)
    value.sum().backward()
    assert value.dtype == torch.float32 and value.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_gradient_is_the_slope(loss) -> None:
    logits, target = pair(1, 1, 4)
    logits.requires_grad_()
    loss(logits, target).sum().backward()
    step = 1e-2
    with torch.no_grad():
        for row, column in ((0, 0), (1, 3), (3, 2)):
            nudge = torch.zeros_like(logits)
            nudge[0, 0, row, column] = step
            slope = (loss(logits + nudge, target) - loss(logits - nudge, target)) / (2 * step)
            assert logits.grad[0, 0, row, column] == pytest.approx(slope.item(), rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_another_size_is_refused(loss) -> None:
    with pytest.raises(ValueError, match="at_size"):
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8))


def test_at_size_keeps_areas() -> None:
    _, target = pair(size=64)
    small = losses.at_size(target, torch.zeros(4, 1, 16, 16))
    assert torch.allclose(small, target.float().reshape(4, 1, 16, 4, 16, 4).mean((3, 5)))
    assert torch.equal(losses.at_size(target, torch.zeros(4, 1, 64, 64)), target.float())


def bilinear(plane: np.ndarray, x: float, y: float) -> float:
    """Value at (x, y) in [0, 1]: pixel i has its centre at (i + 0.5) / n, zero outside; written out plainly."""
    height, width = plane.shape
    column, row = x * width - 0.5, y * height - 0.5
    left, top = int(np.floor(column)), int(np.floor(row))
    value = 0.0
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                value += plane[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


def test_point_sampling_equals_a_plain_pointrend() -> None:
    logits, target = pair(2, 1, 8)
    target = target.repeat_interleave(3, 2).repeat_interleave(3, 3)  # the target has its own resolution
    ours = losses.point_sampled_loss(logits, target, points=40, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    candidates = torch.rand(2, 120, 2, generator=generator).numpy()
    fresh = torch.rand(2, 10, 2, generator=generator).numpy()
    for index in range(2):
        plane, truth = logits[index, 0].numpy(), target[index, 0].numpy().astype(float)
        by_certainty = sorted(candidates[index], key=lambda place: abs(bilinear(plane, *place)))
        places = by_certainty[:30] + list(fresh[index])
        value = np.array([bilinear(plane, *place) for place in places])
        wanted = np.array([bilinear(truth, *place) for place in places])
        probability = 1 / (1 + np.exp(-value))
        entropy = -(wanted * np.log(probability) + (1 - wanted) * np.log(1 - probability)).mean()
        dice = 1 - (2 * (probability * wanted).sum() + 1) / (probability.sum() + wanted.sum() + 1)
        assert ours[index, 0].item() == pytest.approx(entropy + dice, rel=1e-4)


def test_sampled_points_crowd_at_the_edge() -> None:
    ramp = torch.linspace(-8, 8, 64).expand(1, 1, 64, 64)
    places = losses.uncertain_points(ramp, 2000, generator=torch.Generator().manual_seed(0))
    near = ((places[0, :, 0] - 0.5).abs() < 0.13).float().mean()
    assert places.shape == (1, 2000, 2) and 0 <= places.min() and places.max() <= 1
    assert 0.75 < near < 0.86  # 75% nearest to zero, and a quarter uniform
    uniform = losses.uncertain_points(ramp, 2000, importance=0.0, generator=torch.Generator().manual_seed(0))
    assert ((uniform[0, :, 0] - 0.5).abs() < 0.13).float().mean() == pytest.approx(0.26, abs=0.04)


def test_point_sampled_loss_takes_several_masks_and_repeats_with_its_generator() -> None:
    logits, target = pair(3, 3, 32)
    first, again = (losses.point_sampled_loss(logits, target, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    assert first.shape == (3, 3) and torch.equal(first, again)
    other = losses.point_sampled_loss(logits, target, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(first, other) and torch.allclose(first, other, atol=0.3)


@pytest.mark.parametrize(("side", "points"), [(16, 16 * 16), (120, 112 * 112)])
def test_the_papers_number_of_points_and_never_more_than_pixels(side: int, points: int) -> None:
    logits, target = pair(1, 1, side)
    usual, asked, fewer = (
        losses.point_sampled_loss(logits, target, generator=torch.Generator().manual_seed(1), **options)
        for options in ({}, {"points": points}, {"points": points - 1})
    )
    assert torch.equal(usual, asked) and not torch.equal(usual, fewer)


def test_every_mask_is_held_against_the_target_of_its_own_prompt() -> None:
    target = torch.zeros(3, 1, 16, 16)
    target[0, ..., :8], target[1, ..., :8, :], target[2, ..., 8:] = 1, 1, 1
    logits = 12 * target - 6
    found = losses.point_sampled_loss(torch.cat([logits, -logits], 1), target, points=64)
    assert found.shape == (3, 2) and found[:, 0].max() < 1 < found[:, 1].min()


def test_without_importance_the_points_agree_with_all_pixels() -> None:
    target = torch.zeros(1, 1, 64, 64)
    target[..., :40] = 1
    logits = torch.full((1, 1, 64, 64), 0.7)
    whole = losses.binary_cross_entropy(logits, target) + losses.dice_loss(logits, target, smooth=0)
    sampled = losses.point_sampled_loss(logits, target, importance=0.0, generator=torch.Generator().manual_seed(0))
    assert sampled.item() == pytest.approx(whole.item(), abs=0.03)


def test_descending_the_point_sampled_loss_finds_the_mask() -> None:
    target = torch.zeros(2, 1, 64, 64)
    target[0, :, 10:40, 20:50], target[1, :, 30:, :30] = 1, 1
    logits = torch.zeros(2, 1, 16, 16, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        optimiser.zero_grad()
        losses.point_sampled_loss(logits, target, generator=generator).mean().backward()
        optimiser.step()
    grown = F.interpolate(logits, (64, 64), mode="bilinear") > 0
    assert ((grown & (target > 0)).sum() / (grown | (target > 0)).sum()) > 0.93


def test_point_sampled_loss_survives_bfloat16() -> None:
    logits, target = pair()
    logits = (1e4 * logits).bfloat16().requires_grad_()
    value = losses.point_sampled_loss(logits, target)
    value.sum().backward()
    assert value.dtype == torch.float32 and value.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distillation_equals_torch_distributions(temperature: float) -> None:
    (student, _), (teacher, _) = pair(), pair(seed=1)
    divergence = kl_divergence(Bernoulli(logits=teacher / temperature), Bernoulli(logits=student / temperature))
    ours = losses.distillation_loss(student, teacher, temperature)
    assert torch.allclose(ours, temperature**2 * divergence.mean((2, 3)), rtol=1e-4, atol=1e-6)


def test_distillation_is_zero_at_the_teacher_and_leaves_detaching_to_the_caller() -> None:
    for loss in (losses.distillation_loss, losses.distillation_squared_error):
        (student, _), (teacher, _) = pair(), pair(seed=1)
        assert loss(teacher, teacher).abs().max() < 1e-6
        loss(student.requires_grad_(), teacher.requires_grad_()).sum().backward()
        assert teacher.grad.abs().sum() > 0 and student.grad.abs().sum() > 0


def test_distillation_gradient_keeps_its_size_at_high_temperature() -> None:
    (student, _), (teacher, _) = pair(), pair(seed=1)
    sizes = []
    for temperature in (50.0, 100.0):
        leaf = (student / 10).clone().requires_grad_()
        losses.distillation_loss(leaf, teacher / 10, temperature).sum().backward()
        sizes.append(leaf.grad.abs().sum().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def test_squared_error_is_of_probabilities() -> None:
    (student, _), (teacher, _) = pair(), pair(seed=1)
    expected = (student.sigmoid() - teacher.sigmoid()).pow(2).mean((2, 3))
    assert torch.allclose(losses.distillation_squared_error(student, teacher), expected)


def test_distillation_survives_sure_bfloat16_logits() -> None:
    student = torch.tensor([[[[-1e4, 1e4, 0.0, -1e4]]]]).bfloat16().requires_grad_()
    teacher = torch.tensor([[[[1e4, -1e4, 1e4, -1e4]]]]).bfloat16()
    value = losses.distillation_loss(student, teacher, 2.0)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()
