"""A picture's noise latent: DDIM inversion, and what makes guided denoising lead back to the picture.

ASAM projects a picture so (CVPR 2024): the inverted trajectory z*_0 ... z*_T, then null-text optimisation (Mokady et
al. 2023).
Faster or exact in its place: negative-prompt inversion (Miyake et al. 2023), direct inversion (Ju et al. 2024),
fixed-point inversion (AIDI, Pan et al. 2023).

A DDIM step from t to t-1 is D(z, e) = A_t z + B_t e with A_t = sqrt(abar_{t-1} / abar_t) and
B_t = sqrt(1 - abar_{t-1}) - A_t sqrt(1 - abar_t); `scheduler.step` computes it, `inverse_scheduler.step` its inverse
(z - B_t e) / A_t. Guided noise: e_w = e_uncond + w (e_cond - e_uncond).
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from samtune.common.errors import unknown

RECIPES = ("ddim", "null_text", "negative_prompt", "direct")
STEPS, GUIDANCE = 50, 7.5  # ASAM's
LEARNING_RATE, INNER_STEPS = 1e-2, 10  # null-text optimisation, as in Mokady et al.


class Model(Protocol):
    """What inversion asks of a diffusion model, see `LatentDiffusion`."""

    scheduler: DDIMScheduler
    inverse_scheduler: DDIMInverseScheduler

    def noise(self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None = None) -> Tensor:
        """The predicted noise."""


@dataclass(frozen=True)
class Denoising:
    """How the noise latents of B pictures are denoised.

    Fields:
        text: captions `(B, T, C)`.
        condition: mask images `(B, 3, S, S)`, or None.
        unconditional: `(steps, B, T, C)`, one embedding a step, or None: no guidance, one network call a step.
        guidance: the weight w.
        offsets: `(steps, B, 4, h, w)`, added after each step (direct inversion), or None.
        steps: of denoising.
        guided_masks: the mask images go to the conditional branch alone, so that guidance strengthens them as it does
            the captions (ControlNet, Zhang et al. 2023, section 3.4; diffusers' guess mode, without its weights).
    """

    text: Tensor
    condition: Tensor | None = None
    unconditional: Tensor | None = None
    guidance: float = GUIDANCE
    offsets: Tensor | None = None
    steps: int = STEPS
    guided_masks: bool = False


def denoising_step(model: Model, latents: Tensor, plan: Denoising, number: int) -> Tensor:
    """Step `number` (0 is the first, at the most noise) of `plan`: D(z, e_w) + offset."""
    model.scheduler.set_timesteps(plan.steps)
    timestep = model.scheduler.timesteps[number]
    if plan.unconditional is None:
        noise = model.noise(latents, timestep, plan.text, plan.condition)
    else:
        noise = guided_noise(model, latents, timestep, plan, plan.unconditional[number])
    latents = model.scheduler.step(noise, timestep, latents).prev_sample
    return latents if plan.offsets is None else latents + plan.offsets[number]


def guided_noise(model: Model, latents: Tensor, timestep: Tensor, plan: Denoising, unconditional: Tensor) -> Tensor:
    """e_w, both branches in one call unless their networks differ."""
    if plan.guided_masks:
        free = model.noise(latents, timestep, unconditional)
        return free + plan.guidance * (model.noise(latents, timestep, plan.text, plan.condition) - free)
    condition = None if plan.condition is None else plan.condition.repeat(2, 1, 1, 1)
    both = model.noise(latents.repeat(2, 1, 1, 1), timestep, torch.cat([unconditional, plan.text]), condition)
    free, bound = both.chunk(2)
    return free + plan.guidance * (bound - free)


@torch.no_grad()
def denoise(model: Model, latents: Tensor, plan: Denoising) -> Tensor:
    """Noise latents `(B, 4, h, w)` -> z_0."""
    for number in range(plan.steps):
        latents = denoising_step(model, latents, plan, number)
    return latents


@torch.no_grad()
def ddim_inversion(
    model: Model,
    latents: Tensor,
    text: Tensor,
    condition: Tensor | None = None,
    steps: int = STEPS,
    rounds: int = 0,
) -> Tensor:
    """The trajectory z*_0 ... z*_T, `(steps + 1, B, 4, h, w)`, by the conditional branch alone (guidance 1).

    z_t = (z_{t-1} - B_t e(z_{t-1}, t)) / A_t. With `rounds`, fixed-point inversion: so many times more with the noise
    predicted at the newest z_t instead of z_{t-1}.
    """
    model.inverse_scheduler.set_timesteps(steps)
    trajectory = [latents]
    for timestep in model.inverse_scheduler.timesteps:
        noise = model.noise(latents, timestep, text, condition)
        moved = model.inverse_scheduler.step(noise, timestep, latents).prev_sample
        for _ in range(rounds):
            noise = model.noise(moved, timestep, text, condition)
            moved = model.inverse_scheduler.step(noise, timestep, latents).prev_sample
        latents = moved
        trajectory.append(latents)
    return torch.stack(trajectory)


def null_text(
    model: Model,
    trajectory: Tensor,
    plan: Denoising,
    empty: Tensor,
    inner_steps: int = INNER_STEPS,
) -> Tensor:
    """Null-text optimisation: unconditional embeddings `(steps, B, T, C)` with which `plan` follows the trajectory.

    At step i, Adam lowers the squared error between the stepped latent and z*_{T-i-1}; the embedding starts as that of
    the step before, at first `empty` `(B, T, C)`, and the learning rate is 1 - i / (2 steps) of `LEARNING_RATE`. Each
    picture stops by itself, after an update whose error before was below 1e-5 + 2e-5 i.

    Args:
        model: the diffusion model.
        trajectory: `(steps + 1, B, 4, h, w)` from `ddim_inversion`.
        plan: its `unconditional` is not used.
        empty: `(B, T, C)`.
        inner_steps: the most updates in a step.
    """
    model.scheduler.set_timesteps(plan.steps)
    latents, embedding, kept = trajectory[-1], empty, []
    for number, timestep in enumerate(model.scheduler.timesteps):
        target = trajectory[-2 - number]
        with torch.no_grad():
            bound = model.noise(latents, timestep, plan.text, plan.condition)
        embedding = embedding.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([embedding], lr=LEARNING_RATE * (1 - number / (2 * plan.steps)))
        active = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        for _ in range(inner_steps):
            # Pictures that have stopped are left out of the batch.
            condition = None if plan.condition is None else plan.condition[active]
            free = model.noise(latents[active], timestep, embedding[active], condition)
            noise = free + plan.guidance * (bound[active] - free)
            stepped = model.scheduler.step(noise, timestep, latents[active]).prev_sample
            errors = (stepped - target[active]).square().mean((1, 2, 3))
            optimiser.zero_grad()
            errors.sum().backward()
            before = embedding.detach().clone()
            optimiser.step()
            with torch.no_grad():  # Adam's momentum moves an embedding without a gradient too
                embedding.copy_(torch.where(active[:, None, None], embedding, before))
            active[active.clone()] = errors.detach() >= 1e-5 + 2e-5 * number
            if not active.any():
                break
        kept.append(embedding.detach())
        with torch.no_grad():
            free = model.noise(latents, timestep, kept[-1], plan.condition)
            noise = free + plan.guidance * (bound - free)
            latents = model.scheduler.step(noise, timestep, latents).prev_sample
    return torch.stack(kept)


@torch.no_grad()
def direct_offsets(model: Model, trajectory: Tensor, plan: Denoising) -> Tensor:
    """Direct inversion: r_t = z*_{t-1} - D(z*_t, e_w(z*_t)), `(steps, B, 4, h, w)`, first step first."""
    plan = replace(plan, offsets=None)
    steps = [
        trajectory[-2 - number] - denoising_step(model, trajectory[-1 - number], plan, number)
        for number in range(plan.steps)
    ]
    return torch.stack(steps)


def invert(
    model: Model,
    latents: Tensor,
    text: Tensor,
    empty: Tensor,
    condition: Tensor | None = None,
    recipe: str = "null_text",
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    rounds: int = 0,
) -> tuple[Tensor, Denoising]:
    """Picture latents z_0 `(B, 4, h, w)` -> noise latents z_T, and the denoising that leads back from them.

    Args:
        text: captions `(B, T, C)`; `empty`: the empty caption, the same shape.
        recipe: "ddim" (guided denoising without a correction), "null_text", "direct", or "negative_prompt": the
            unconditional embedding is the caption's own, so that guidance vanishes and half of the network calls with
            it.
        rounds: of fixed-point iteration in the inversion, see `ddim_inversion`.

    Raises `InputError` for an unknown recipe.
    """
    if recipe not in RECIPES:
        raise unknown("inversion", recipe, RECIPES)
    trajectory = ddim_inversion(model, latents, text, condition, steps, rounds)
    plan = Denoising(text, condition, None, guidance, steps=steps)
    if recipe != "negative_prompt":
        plan = replace(plan, unconditional=empty.expand(steps, -1, -1, -1))
    if recipe == "null_text":
        plan = replace(plan, unconditional=null_text(model, trajectory, plan, empty))
    elif recipe == "direct":
        plan = replace(plan, offsets=direct_offsets(model, trajectory, plan))
    return trajectory[-1], plan
