"""The attack on pixels that ASAM is held against: PGD (Madry et al. 2018), without a diffusion model."""

import torch
from torch import Tensor
from torch.nn import functional as F

from samtune.diffusion.attack import AttackConfig, Victim, normalised
from samtune.losses import at_size, binary_cross_entropy, dice_loss
from samtune.prompts import Prompts


def pixel_attack(
    victim: Victim, images: Tensor, prompts: Prompts, masks: Tensor, eps: float, step_size: float, steps: int
) -> Tensor:
    """PGD (Madry et al. 2018) on pixels without a random start: float32 `(B, 3, H, W)` in [0, 1] after the last update.

    The images keep their size; they are stretched to the victim's square inside the gradient, as in training, so that
    training does not average the attack away. The loss is ASAM's without the distance: 100 Dice + 100 BCE.

    Args:
        victim: frozen, in eval mode.
        images: float32 `(B, 3, H, W)` in [0, 1].
        prompts: P prompts in the victim's pixels.
        masks: true masks, float32 `(P, 1, h, w)` in [0, 1].
        eps: L-infinity bound of the change, in units of [0, 1].
        step_size: of one signed update, same units.
        steps: number of updates.
    """
    weights, size = AttackConfig(), victim.image_size
    mode = "area" if images.shape[-2] * images.shape[-1] > size**2 else "bilinear"
    pictures = images.detach()
    for _ in range(steps):
        pictures.requires_grad_(True)
        square = F.interpolate(pictures, (size, size), mode=mode)
        logits = victim.decode(victim.encode(normalised(square, size)), prompts)["final"]
        target = at_size(masks, logits)
        loss = weights.dice * dice_loss(logits, target) + weights.cross_entropy * binary_cross_entropy(logits, target)
        (gradient,) = torch.autograd.grad(loss.sum(), pictures)
        moved = pictures.detach() + step_size * gradient.sign()
        pictures = (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)
    return pictures
