"""Adversarial latent optimisation: the noise latent of a picture is moved until SAM's masks go wrong.

ASAM (CVPR 2024), as its authors' code does it. Ten times: denoise z_T to z_0 without a gradient; take the gradient of
the loss at z_0, through the autoencoder's decoder and SAM, and apply it to z_T as if denoising were the identity
(gradient shortcut). The loss to ascend is kappa Dice + gamma BCE - beta ||x_adv - x||_2.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.transforms.v2.functional import normalize

from samtune.diffusion.inversion import Denoising, denoising_step
from samtune.diffusion.pipeline import LatentDiffusion
from samtune.losses import at_size, binary_cross_entropy, dice_loss, low_resolution_iou
from samtune.prompts import Prompts
from samtune.sam.build import PIXEL_MEAN, PIXEL_STD

SLOPE = 1e-3  # of the smooth clip outside [0, 1]


@dataclass(frozen=True)
class AttackConfig:
    """ASAM's values.

    Fields:
        steps: updates of the latent; one more picture than that is decoded.
        step_size: of an update.
        eps: how far a latent value may go from its start (L-infinity).
        momentum: of the gradients, each of L1 norm 1.
        dice: kappa of the loss.
        cross_entropy: gamma of the loss.
        distance: beta of the loss. The norm is over all pixels of the victim's input: at 256 pixels a side it, and so
            the weight of beta, is about a quarter of that at SAM's 1,024.
        embedding: weight of the squared error between the image embeddings of x_adv and x (ASAM's later code: 0.5).
        last_steps: denoising steps that the gradient really goes back through, at most all; 0 is the shortcut, and so
            is 1, as the last step (t = 0) leaves the latent as it is.
    """

    steps: int = 10
    step_size: float = 0.02
    eps: float = 0.2
    momentum: float = 0.5
    dice: float = 100.0
    cross_entropy: float = 100.0
    distance: float = 1.0
    embedding: float = 0.0
    last_steps: int = 0


class Victim(Protocol):
    """Any SAM-like model: a `Method`, or whatever has these."""

    image_size: int

    def encode(self, images: Tensor) -> Tensor:
        """Normalised images `(B, 3, V, V)` -> embeddings."""

    def decode(self, embedding: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """Embeddings and P prompts in the victim's pixels -> {"final": logits `(P, 1, h, w)`}."""


@dataclass(frozen=True)
class Attack:
    """What an attack on B pictures gave.

    `first` float32 `(B, 3, S, S)` in [0, 1]: the reconstruction, unattacked, as decoded; `worst`: the picture of the
    least IoU, as decoded, with its noise latents `latents` `(B, 4, h, w)`; `iou` `(steps + 1, B)`: mean over a
    picture's masks, at low resolution, of every picture that was decoded; the first row is the reconstruction's.
    """

    first: Tensor
    worst: Tensor
    latents: Tensor
    iou: Tensor


def attack(
    model: LatentDiffusion,
    victim: Victim,
    latents: Tensor,
    plan: Denoising,
    images: Tensor,
    prompts: Prompts,
    masks: Tensor,
    config: AttackConfig | None = None,
) -> Attack:
    """Move the noise latents of B pictures against `victim`.

    Args:
        model: the frozen diffusion model.
        victim: frozen, in eval mode.
        latents: z_T, float32 `(B, 4, h, w)`.
        plan: the denoising that leads from z_T back to the images.
        images: the pictures themselves, float32 `(B, 3, S, S)` in [0, 1].
        prompts: P prompts in the victim's pixels (boxes, points, or both), every picture with one at least.
        masks: the true mask of each prompt, float32 or bool `(P, 1, H, W)`, stretched to the square as pictures are.
        config: None: ASAM's values.

    Returns: an `Attack`.

    Raises `FloatingPointError` where a picture's loss is not finite.
    """
    config = config or AttackConfig()
    start, momentum = latents, torch.zeros_like(latents)
    originals = normalised(images, victim.image_size)
    with torch.no_grad():
        original_embedding = victim.encode(originals) if config.embedding else None
    history: list[Tensor] = []
    first, worst, worst_latents = images, images, latents
    least = torch.full((len(images),), torch.inf, device=images.device)
    for step in range(config.steps + 1):
        last = step == config.steps
        with torch.set_grad_enabled(not last):
            source, decoded = _decoded(model, latents, plan, 0 if last else config.last_steps)
            adversarial = normalised(decoded, victim.image_size)
            embedding = victim.encode(adversarial)
            logits = victim.decode(embedding, prompts)["final"]
            target = at_size(masks, logits)
            if not last:
                # One loss a picture; in their sum no picture sees another's gradient.
                dice, entropy = dice_loss(logits, target)[:, 0], binary_cross_entropy(logits, target)[:, 0]
                wrong = config.dice * dice + config.cross_entropy * entropy
                loss = per_picture(wrong, prompts.image_index, len(images))
                loss = loss - config.distance * (adversarial - originals).flatten(1).norm(dim=1)
                if config.embedding:
                    loss = loss + config.embedding * (embedding - original_embedding).square().flatten(1).mean(1)
                if not loss.isfinite().all():
                    raise FloatingPointError(f"the attack's loss is {loss.tolist()} on the pictures at update {step}")
                (gradient,) = torch.autograd.grad(loss.sum(), source)
        overlap = low_resolution_iou(logits.detach(), target)[:, 0]
        history.append(per_picture(overlap, prompts.image_index, len(images)))
        picture = decoded.detach().clamp(0, 1)
        if step == 0:
            first = picture
        better = history[-1] < least
        worst = torch.where(better[:, None, None, None], picture, worst)
        worst_latents = torch.where(better[:, None, None, None], latents, worst_latents)
        least = torch.minimum(least, history[-1])
        if not last:
            size = gradient.abs().sum((1, 2, 3), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
            momentum = config.momentum * momentum + gradient / size
            latents = latents + config.step_size * momentum.sign()
            latents = start + (latents - start).clamp(-config.eps, config.eps)
    return Attack(first, worst, worst_latents, torch.stack(history))


def _decoded(model: LatentDiffusion, latents: Tensor, plan: Denoising, last_steps: int) -> tuple[Tensor, Tensor]:
    """The latents at which the gradient is taken, and the picture, clipped softly to [0, 1].

    Those of z_0, or of `last_steps` before it: the steps in between are computed again in the backward pass.
    """
    before = max(plan.steps - last_steps, 0)
    source = latents
    with torch.no_grad():
        for number in range(before):
            source = denoising_step(model, source, plan, number)
    source = source.detach().requires_grad_(torch.is_grad_enabled())
    moved = source
    for number in range(before, plan.steps):
        moved = checkpoint(denoising_step, model, moved, plan, number, use_reentrant=False)
    return source, soft_clip(model.decode(moved))


def soft_clip(images: Tensor) -> Tensor:
    """`images` clipped to [0, 1], with a slope of 1e-3 outside, so that a gradient leads back."""
    clipped = images.clamp(0, 1)
    return clipped + SLOPE * (images - clipped)


def normalised(images: Tensor, size: int) -> Tensor:
    """Images float32 `(B, 3, S, S)` in [0, 1] -> SAM's input `(B, 3, size, size)`, resized bilinearly."""
    resized = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    return normalize(255 * resized, PIXEL_MEAN, PIXEL_STD)


def per_picture(values: Tensor, image_index: Tensor, count: int) -> Tensor:
    """`values` `(P,)` of prompts -> their mean in each of `count` pictures, `(count,)`."""
    sums = torch.zeros(count, device=values.device, dtype=values.dtype).index_add(0, image_index, values)
    return sums / torch.bincount(image_index, minlength=count)
