"""The attack on a toy diffusion model and a small SAM: the paper's update, its bounds, and what is kept."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samtune.diffusion.attack import SLOPE, Attack, AttackConfig, attack, normalised, per_picture, soft_clip
from samtune.diffusion.inversion import Denoising, denoise
from samtune.methods import Method, build_method
from samtune.nano.diffusion_models import new_scheduler
from samtune.prompts import Prompts
from samtune.sam.build import PIXEL_MEAN, PIXEL_STD
from small_sam import small_sam

STEPS = 4


class ToyDiffusion:
    """Latents `(B, 4, 8, 8)` are coarse pictures; the noise depends on time, and on the latents where `mixing`."""

    def __init__(self, mixing: float = 0.0) -> None:
        self.mixing, self.scheduler, self.decoded = mixing, new_scheduler(), 0

    def noise(self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None = None) -> Tensor:
        return (timestep * 0.1).cos() * 0.2 + self.mixing * (latents.roll(1, 2) * 3).tanh()

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded += 1
        return F.interpolate(latents[:, :3] * 0.3 + 0.5, (32, 32), mode="bilinear")


PLAN = Denoising(torch.zeros(2, 1, 1), steps=STEPS)


@pytest.fixture
def victim() -> Method:
    return build_method("zero_shot", small_sam()).eval()


def scene() -> tuple[Tensor, Tensor, Prompts, Tensor]:
    """Noise latents, pictures, three boxes (two on the first picture) and their masks."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    images = torch.rand(2, 3, 32, 32, generator=generator)
    boxes = torch.tensor([[4.0, 4, 40, 40], [20, 8, 60, 30], [10, 10, 50, 60]])
    masks = torch.zeros(3, 1, 64, 64)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[0, top:bottom, left:right] = 1
    return latents, images, Prompts(torch.tensor([0, 0, 1]), boxes=boxes), masks


def run(model: ToyDiffusion, victim: Method, **options: object) -> Attack:
    latents, images, prompts, masks = scene()
    return attack(model, victim, latents, PLAN, images, prompts, masks, AttackConfig(**options))


def authors_attack(model: ToyDiffusion, victim: Method, number: int, config: AttackConfig) -> list[Tensor]:
    """Every latent of the algorithm of the facts sheet, for one picture, as plainly as it reads there."""
    latents, images, prompts, masks = scene()
    chosen = prompts.image_index == number
    start, original = latents[number : number + 1], images[number : number + 1]
    prompts, masks = prompts[chosen].at_image(0), F.adaptive_avg_pool2d(masks[chosen], 32)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (PIXEL_MEAN, PIXEL_STD))

    def seen(image: Tensor) -> Tensor:
        return (F.interpolate(image, (64, 64), mode="bilinear") * 255 - mean) / std

    z, m, latent_list = start, torch.zeros_like(start), [start]
    for _ in range(config.steps):
        z0 = denoise(model, z, replace(PLAN, text=PLAN.text[:1])).requires_grad_(True)
        decoded = model.decode(z0)
        image = torch.where(decoded < 0, 1e-3 * decoded, torch.where(decoded > 1, 1 + 1e-3 * (decoded - 1), decoded))
        logits = victim(seen(image), prompts)["final"]
        p = logits.sigmoid()
        dice = 1 - (2 * (p * masks).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
        entropy = F.binary_cross_entropy_with_logits(logits, masks)
        loss = 100 * dice.mean() + 100 * entropy - (seen(image) - seen(original)).norm()
        gradient = torch.autograd.grad(loss, z0)[0]
        m = 0.5 * m + gradient / gradient.norm(1)
        z = start + (z + 0.02 * m.sign() - start).clamp(-0.2, 0.2)
        latent_list.append(z)
    return latent_list


class ToyVictim:
    """Logits are the picture's colours: of the loss's three terms none is so large that it hides another's weight."""

    image_size = 64

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        small = F.interpolate(embedding, (32, 32), mode="bilinear")
        return {"final": 0.1 * small[prompts.image_index].sum(1, keepdim=True)}

    def __call__(self, images: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        return self.decode(images, prompts)


def every_latent(**options: object) -> Tensor:
    """The noise latents of all steps of `attack`, `(steps + 1, 2, 4, 8, 8)`: those with which a denoising begins."""
    model, seen = ToyDiffusion(0.1), []
    noise = model.noise
    model.noise = lambda latents, *rest: seen.append(latents.detach()) or noise(latents, *rest)
    run(model, ToyVictim(), steps=12, **options)
    return torch.stack(seen[::STEPS])


def agreement(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs() < 1e-4).float().mean().item()


@pytest.fixture(scope="module")
def authors_latents() -> Tensor:
    config = AttackConfig(steps=12)
    pictures = [authors_attack(ToyDiffusion(0.1), ToyVictim(), number, config) for number in (0, 1)]
    return torch.stack([torch.cat(step) for step in zip(*pictures, strict=True)])


def test_latents_are_those_of_the_authors_algorithm_at_every_step(authors_latents: Tensor) -> None:
    assert agreement(every_latent(), authors_latents) > 0.995  # a sign may turn where the momentum is almost 0
    assert (authors_latents - authors_latents[0]).abs().max() > 0.2 - 1e-5  # the bound is reached


@pytest.mark.parametrize(
    "change",
    [
        *({weight: 0.0} for weight in ("dice", "cross_entropy", "distance", "momentum")),
        {"dice": 1000.0}, {"cross_entropy": 1000.0}, {"distance": 10.0}, {"momentum": 0.9}, {"step_size": 0.04},
        {"eps": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_every_weight_of_the_attack_matters(authors_latents: Tensor, change: dict[str, float]) -> None:
    assert agreement(every_latent(**change), authors_latents) < 0.97


def test_the_picture_kept_is_that_of_the_least_iou(victim: Method) -> None:
    result = run(ToyDiffusion(0.1), victim, steps=3)
    assert result.iou.shape == (4, 2)
    for number in (0, 1):
        latents = authors_attack(ToyDiffusion(0.1), victim, number, AttackConfig(steps=3))
        assert agreement(result.latents[number], latents[result.iou[:, number].argmin()][0]) > 0.99


def test_a_loss_that_is_not_a_number_is_told(victim: Method) -> None:
    latents, images, prompts, masks = scene()
    latents[1] = torch.nan
    with pytest.raises(FloatingPointError, match="nan"):
        attack(ToyDiffusion(), victim, latents, PLAN, images, prompts, masks, AttackConfig(steps=1))


def test_the_attack_lowers_the_iou_within_its_bounds(victim: Method) -> None:
    model = ToyDiffusion()
    result = run(model, victim, steps=15, distance=0.0)
    latents = scene()[0]
    assert (result.latents - latents).abs().max() <= 0.2 + 1e-5
    assert torch.allclose(result.iou.amin(0), _iou(victim, result.worst), atol=0.02)
    assert torch.allclose(result.iou[0], _iou(victim, result.first), atol=0.02)
    assert result.iou.amin(0).mean() < result.iou[0].mean() - 0.01
    assert model.decoded == 16  # nothing is rendered twice
    clean = model.decode(denoise(model, latents, PLAN)).clamp(0, 1)
    assert torch.allclose(result.first, clean, atol=2e-3)
    worst = model.decode(denoise(model, result.latents, PLAN)).clamp(0, 1)
    assert torch.allclose(result.worst, worst, atol=2e-3)


def _iou(victim: Method, images: Tensor) -> Tensor:
    _, _, prompts, masks = scene()
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (PIXEL_MEAN, PIXEL_STD))
    with torch.no_grad():
        seen = (F.interpolate(images, (64, 64), mode="bilinear") * 255 - mean) / std
        found = victim(seen, prompts)["final"] > 0
    truth = F.adaptive_avg_pool2d(masks, 32) > 0.5
    values = (found & truth).sum((1, 2, 3)) / (found | truth).sum((1, 2, 3))
    return torch.stack([values[:2].mean(), values[2]])


def test_the_shortcut_is_the_true_gradient_where_the_noise_depends_on_time_alone(victim: Method) -> None:
    """Then z_0 is a multiple of z_T plus a constant, and the multiple vanishes in the L1 norm."""
    shortcut, true = (run(ToyDiffusion(), victim, steps=2, last_steps=k) for k in (0, STEPS))
    assert torch.allclose(shortcut.iou, true.iou, atol=1e-3)
    assert ((shortcut.latents - true.latents).abs() < 1e-4).float().mean() > 0.99
    beyond = run(ToyDiffusion(), victim, steps=2, last_steps=STEPS + 3)  # through all there are
    assert torch.equal(beyond.latents, true.latents)
    differing = [run(ToyDiffusion(0.5), victim, steps=1, last_steps=k) for k in (0, STEPS)]
    assert not torch.equal(differing[0].iou[1], differing[1].iou[1])


def test_the_distance_alone_brings_the_picture_nearer_to_the_original(victim: Method) -> None:
    decoded: list[Tensor] = []

    class Noting(ToyDiffusion):
        def decode(self, latents: Tensor) -> Tensor:
            decoded.append(super().decode(latents))
            return decoded[-1]

    run(Noting(), victim, steps=10, dice=0.0, cross_entropy=0.0)
    before, after = ((decoded[place] - scene()[1]).norm() for place in (0, -1))
    assert after < before - 0.1


def test_the_embedding_term_acts(victim: Method) -> None:
    """Alone, it moves the embedding away from the original's."""
    decoded: list[Tensor] = []

    class Noting(ToyDiffusion):
        def decode(self, latents: Tensor) -> Tensor:
            decoded.append(super().decode(latents))
            return decoded[-1]

    run(Noting(), victim, steps=10, dice=0.0, cross_entropy=0.0, distance=0.0, embedding=1.0)
    with torch.no_grad():
        pictures = (scene()[1], decoded[0].detach(), decoded[-1])
        original, *found = (victim.encode(normalised(one, victim.image_size)) for one in pictures)
    before, after = ((one - original).square().mean() for one in found)
    assert after > before


def test_soft_clip_keeps_a_slope() -> None:
    values = torch.tensor([-2.0, 0.25, 3.0], requires_grad=True)
    soft_clip(values).sum().backward()
    assert torch.allclose(values.grad, torch.tensor([SLOPE, 1.0, SLOPE]))
    assert torch.allclose(soft_clip(values), torch.tensor([-0.002, 0.25, 1.002]))


def test_means_are_taken_picture_by_picture() -> None:
    assert per_picture(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([1, 1, 0]), 2).tolist() == [5.0, 2.0]
