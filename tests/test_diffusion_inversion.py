"""Inversion on toys whose answer is known: exact, or wrong by 1 / steps, or right by construction."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor

from samtune.common.errors import InputError
from samtune.diffusion import inversion
from samtune.diffusion.inversion import (
    Denoising,
    ddim_inversion,
    denoise,
    denoising_step,
    direct_offsets,
    invert,
    null_text,
)
from samtune.diffusion.pipeline import SCHEDULE
from samtune.nano.diffusion_models import new_scheduler


class Toy:
    """A noise prediction by formula; `sizes` notes the batch size of every call."""

    def __init__(self, formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self.formula, self.sizes = formula, []
        self.scheduler = new_scheduler()
        self.inverse_scheduler = DDIMInverseScheduler.from_config(self.scheduler.config, **SCHEDULE)

    def noise(self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None = None) -> Tensor:
        self.sizes.append(len(latents))
        shift = 0 if condition is None else condition.mean((1, 2, 3))[:, None, None, None]
        return self.formula(latents, timestep, text) + shift


def drawn(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def texts(count: int = 2, value: float = 1.0) -> Tensor:
    return torch.full((count, 3, 5), value)


def of_time(latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return (timestep * 0.37).sin() * drawn(1, 7).expand_as(latents)


def linear(latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return 0.5 * latents


def with_text(latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return 0.5 * latents + text.mean((1, 2))[:, None, None, None] * (timestep / 1000 + 0.2)


def error(model: Toy, steps: int, rounds: int = 0) -> float:
    latents = drawn()
    noise = ddim_inversion(model, latents, texts(), steps=steps, rounds=rounds)[-1]
    return (denoise(model, noise, Denoising(texts(), steps=steps)) - latents).abs().max().item()


def test_a_step_is_the_papers_formula() -> None:
    model, latents = Toy(linear), drawn()
    abar = model.scheduler.alphas_cumprod
    a = (abar[960] / abar[980]).sqrt()
    b = (1 - abar[960]).sqrt() - a * (1 - abar[980]).sqrt()
    stepped = denoising_step(model, latents, Denoising(texts()), 0)
    assert (stepped - (a * latents + b * 0.5 * latents)).abs().max() < 1e-5
    trajectory = ddim_inversion(model, latents, texts())
    assert trajectory.shape == (51, 2, 4, 8, 8) and torch.equal(trajectory[0], latents)
    assert (trajectory[-1] - (trajectory[-2] - b * 0.5 * trajectory[-2]) / a).abs().max() < 1e-5
    assert (trajectory[1] - latents).abs().max() < 1e-6  # the last timestep is 0, and ends at its own abar


def test_exact_where_the_noise_depends_on_time_alone() -> None:
    assert error(Toy(of_time), 10) < 5e-5 and error(Toy(of_time), 50) < 5e-5


def test_error_falls_as_one_over_steps_where_the_noise_is_linear() -> None:
    errors = [error(Toy(linear), steps) for steps in (25, 50, 100)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 1.8 < coarse / fine < 2.2


def test_fixed_point_iteration_converges_to_the_exact_inverse() -> None:
    errors = [error(Toy(linear), 20, rounds) for rounds in (0, 1, 2, 10)]
    assert all(later < 0.3 * earlier for earlier, later in zip(errors[:3], errors[1:3], strict=False))
    assert errors[-1] < 1e-5


def test_direct_inversion_is_exact_by_construction() -> None:
    model, latents = Toy(with_text), drawn()
    noise, plan = invert(model, latents, texts(value=2.0), texts(value=-1.0), recipe="direct", steps=20)
    assert (denoise(model, noise, plan) - latents).abs().max() < 1e-4
    plain = Denoising(plan.text, None, plan.unconditional, plan.guidance, None, 20)
    assert (denoise(model, noise, plain) - latents).abs().max() > 1  # guidance leads away without the offsets
    trajectory = ddim_inversion(model, latents, plan.text, steps=20)
    assert torch.equal(direct_offsets(model, trajectory, plain), plan.offsets)


def test_negative_prompt_makes_guidance_vanish_and_halves_the_calls() -> None:
    model, latents = Toy(with_text), drawn()
    noise, plan = invert(model, latents, texts(value=2.0), texts(), recipe="negative_prompt", steps=20)
    model.sizes.clear()
    result = denoise(model, noise, plan)
    assert model.sizes == [2] * 20
    same = Denoising(plan.text, None, plan.text.expand(20, -1, -1, -1), 7.5, None, 20)
    model.sizes.clear()
    assert (denoise(model, noise, same) - result).abs().max() < 1e-4
    assert model.sizes == [4] * 20


def test_guidance_is_the_papers_formula() -> None:
    model, latents = Toy(with_text), drawn()
    plan = Denoising(texts(value=2.0), None, texts(value=-1.0).expand(50, -1, -1, -1))  # its weight is ASAM's, 7.5
    stepped = denoising_step(model, latents, plan, 3)
    timestep = torch.tensor(920)
    bound, free = (with_text(latents, timestep, text) for text in (plan.text, plan.unconditional[0]))
    expected = model.scheduler.step(free + 7.5 * (bound - free), timestep, latents).prev_sample
    assert (stepped - expected).abs().max() < 1e-5


def test_guidance_strengthens_masks_that_the_conditional_branch_alone_sees() -> None:
    model, latents, condition = Toy(with_text), drawn(), torch.full((2, 3, 8, 8), 0.3)
    plan = Denoising(texts(value=2.0), condition, texts(value=-1.0).expand(50, -1, -1, -1))
    timestep = torch.tensor(980)
    bound, free = (with_text(latents, timestep, text) for text in (plan.text, plan.unconditional[0]))
    for guided, weight in ((False, 1), (True, 7.5)):
        stepped = denoising_step(model, latents, replace(plan, guided_masks=guided), 0)
        expected = model.scheduler.step(free + 7.5 * (bound - free) + weight * 0.3, timestep, latents).prev_sample
        assert (stepped - expected).abs().max() < 1e-5


def test_null_text_follows_the_trajectory_better_than_the_empty_text() -> None:
    model, latents = Toy(with_text), drawn()
    errors = {}
    for recipe in ("ddim", "null_text"):
        noise, plan = invert(model, latents, texts(value=1.05), texts(value=1.0), recipe=recipe, steps=10)
        errors[recipe] = (denoise(model, noise, plan) - latents).square().mean().item()
    assert plan.unconditional.shape == (10, 2, 3, 5)
    assert errors["null_text"] < 0.3 * errors["ddim"]


def test_null_text_of_a_batch_is_that_of_each_picture_alone() -> None:
    """The first picture's guidance has nothing to correct and stops early; the second works on."""
    text, empty = torch.cat([texts(1, 1.0), texts(1, 1.5)]), texts(2, 1.0)
    model, latents = Toy(with_text), drawn()
    trajectory = ddim_inversion(model, latents, text, steps=5, rounds=20)
    together = null_text(model, trajectory, Denoising(text, guidance=7.5, steps=5), empty)
    assert 1 in model.sizes  # one of the two had stopped
    for index in (0, 1):
        one = slice(index, index + 1)
        alone = null_text(model, trajectory[:, one], Denoising(text[one], guidance=7.5, steps=5), empty[one])
        assert (together[:, one] - alone).abs().max() < 1e-4


def test_null_texts_schedule() -> None:
    """Adam's first update is its learning rate, whatever the gradient: 1e-2 (1 - i / 100) in 50 steps."""
    model = Toy(with_text)
    text, empty = texts(1, 5.0), texts(1, 0.0)
    trajectory = ddim_inversion(model, drawn(1), text)
    moved = null_text(model, trajectory, Denoising(text), empty, inner_steps=1)
    steps = torch.cat([moved[:1] - empty, moved.diff(dim=0)]).abs().mean((1, 2, 3))
    assert torch.allclose(steps[:20], 1e-2 * (1 - torch.arange(20) / 100), rtol=1e-3)


@pytest.mark.parametrize(("share", "updates"), [(0.99, 1), (1.01, 10)])
def test_null_text_works_on_until_the_error_is_below_a_bound_that_grows(share: float, updates: int) -> None:
    """All latents stay 0, whatever the text, so that the squared error is what the trajectory makes it."""
    model = Toy(lambda latents, timestep, text: latents * text.mean())
    bounds = 1e-5 + 2e-5 * torch.arange(5)
    levels = torch.cat([(share * bounds).sqrt().flip(0), torch.zeros(1)])
    trajectory = levels[:, None, None, None, None].expand(-1, 1, 4, 8, 8)
    null_text(model, trajectory, Denoising(texts(1), steps=5), texts(1))
    assert model.sizes == [1] * 5 * (updates + 2)  # and at every step one for the caption and one for the final text


class Noting(Toy):
    """Takes the noise of `with_text`; every call notes which picture each latent, text and condition is of."""

    def noise(self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None = None) -> Tensor:
        assert condition is not None and len(latents) == len(text) == len(condition)
        self.seen.append([values.flatten(1).mean(1).sign().tolist() for values in (latents, condition)])
        return super().noise(latents, timestep, text)


@pytest.mark.parametrize("recipe", inversion.RECIPES)
def test_every_call_is_given_each_pictures_own_mask(recipe: str) -> None:
    model = Noting(with_text)
    model.seen = []
    condition = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(-1, 3, 8, 8)
    latents = drawn() + 5 * condition[:, :1]  # so far apart that their means keep their signs
    text, empty = torch.cat([texts(1, 1.0), texts(1, 1.05)]), texts()
    noise, plan = invert(model, latents, text, empty, condition, recipe, guidance=3.0, steps=4, rounds=30)
    denoise(model, noise, plan)
    assert plan.guidance == 3.0 and all(found == given for found, given in model.seen)
    if recipe == "null_text":
        assert min(model.sizes) == 1  # the first picture had stopped: the second one's mask was picked


def test_unknown_recipe() -> None:
    with pytest.raises(InputError, match="unknown inversion 'null'; known: null_text, "):
        invert(Toy(linear), drawn(), texts(), texts(), recipe="null")
    assert set(inversion.RECIPES) == {"ddim", "null_text", "negative_prompt", "direct"}
