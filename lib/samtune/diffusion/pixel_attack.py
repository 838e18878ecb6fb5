"""The attack on pixels that ASAM is held against: PGD (Madry et al. 2018), without a diffusion model."""

import torch
from torch import Tensor

from samtune.diffusion.attack import AttackConfig, Victim, normalised
from samtune.losses import at_size, binary_cross_entropy, dice_loss
from samtune.prompts import Prompts


def pixel_attack(
    victim: Victim, images: Tensor, prompts: Prompts, masks: Tensor, eps: float, step_size: float, steps: int
) -> Tensor:
    """PGD: pictures `(B, 3, S, S)` in [0, 1], each value within `eps` of `images` (L-infinity).

    `steps` times along the sign of the gradient. The loss is that of ASAM's attack, less its distance: 100 Dice + 100
    BCE, against the masks float32 `(P, 1, H, W)` of P `prompts` in the victim's pixels.
    """
    weights = AttackConfig()
    pictures = images.detach()
    for _ in range(steps):
        pictures.requires_grad_(True)
        logits = victim.decode(victim.encode(normalised(pictures, victim.image_size)), prompts)["final"]
        target = at_size(masks, logits)
        loss = weights.dice * dice_loss(logits, target) + weights.cross_entropy * binary_cross_entropy(logits, target)
        (gradient,) = torch.autograd.grad(loss.sum(), pictures)
        moved = pictures.detach() + step_size * gradient.sign()
        pictures = (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)
    return pictures
