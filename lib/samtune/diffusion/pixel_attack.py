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
    """PGD from `images` on, without a random start: pictures `(B, 3, H, W)` in [0, 1], each value within `eps` of
    `images` (L-infinity), after the last of the steps.

    The pictures are attacked at their own size: they are stretched to the victim's square inside the gradient, by area
    averaging where they shrink, so that training, which stretches them too, averages nothing of the attack away.

    `steps` times along the sign of the gradient. The loss is that of ASAM's attack, less its distance: 100 Dice + 100
    BCE, against the masks float32 `(P, 1, h, w)` of P `prompts` in the victim's pixels.
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
