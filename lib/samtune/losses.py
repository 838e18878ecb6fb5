"""Losses on mask logits. Each gives one value PER MASK, so that a caller can take the mean or the minimum of several.

Shapes: `logits (P, M, h, w)`, M masks for each of P prompts, and `target (P, 1, h, w)` or `(P, M, h, w)`, bool or float
in [0, 1]; the result is `(P, M)` float32. All is computed in float32, whatever the precision of the network, and
through log-sigmoids, so that large bfloat16 logits give neither NaN nor infinity. A target of another size raises
`ValueError`: resize it with `at_size`, or sample both with `point_sampled_loss`.

In the formulas p is the sigmoid of the logits, t the target, and sums run over the pixels of one mask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS, OVERSAMPLE, IMPORTANCE = 112 * 112, 3, 0.75  # as in HQ-SAM's, SPT's and ASAM's code
SMOOTH = 1.0  # of the Dice losses: 0 for an empty mask where the target is empty


def at_size(target: Tensor, logits: Tensor) -> Tensor:
    """`target (P, 1, H, W)` at the size of `logits (..., h, w)`: float32 `(P, 1, h, w)`, the share of foreground in
    each pixel.

    Area averaging keeps vessels and cracks thinner than a low-resolution pixel, as soft values; nearest-neighbour
    resizing loses them.
    """
    if target.shape[-2:] == logits.shape[-2:]:
        return target.float()
    return F.interpolate(target.float(), logits.shape[-2:], mode="area")


def low_resolution_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of the thresholded masks (logits > 0, target > 0.5): `(..., h, w)` -> `(...)`; 0 if both are empty."""
    prediction, truth = logits > 0, target > 0.5
    return (prediction & truth).sum((-2, -1)) / (prediction | truth).sum((-2, -1)).clamp(min=1)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy (BCE): mean of -t log p - (1 - t) log(1 - p) over a mask's pixels."""
    logits, target = _same_grid(logits, target)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))


def balanced_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the object and over the background separately; then the mean of the two.

    In training from scratch the model stops predicting empty masks sooner than with the plain mean, in which a small
    object hardly counts. A side without pixels counts 0.
    """
    logits, target = _same_grid(logits, target)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # The mean over the object, and over the background.
    sides = [(loss * part).sum((-2, -1)) / part.sum((-2, -1)).clamp(min=1) for part in (target, 1 - target)]
    return (sides[0] + sides[1]) / 2


def dice_loss(logits: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """1 - (2 sum(p t) + smooth) / (sum p + sum t + smooth), without squares: the Dice loss of HQ-SAM and SPT."""
    logits, target = _same_grid(logits, target)
    probability = logits.sigmoid()
    overlap = (probability * target).sum((-2, -1))
    return 1 - (2 * overlap + smooth) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + smooth)


def squared_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum p^2 + sum t^2 + 1): Dice with squared sums, as in V-Net, of the object alone.

    (TransUNet's and SAMed's code has squared sums too, but takes the mean over object AND background, each summed over
    the whole batch.) Where the logits do not yet tell object from background, it is least at p = sqrt(share of the
    object); `dice_loss` is least at p = 1, so that a model that starts by marking most of a picture is driven to mark
    all of it.
    """
    logits, target = _same_grid(logits, target)
    probability = logits.sigmoid()
    overlap = (probability * target).sum((-2, -1))
    squares = probability.square().sum((-2, -1)) + target.square().sum((-2, -1))
    return 1 - (2 * overlap + SMOOTH) / (squares + SMOOTH)


def samed_loss(logits: Tensor, target: Tensor) -> Tensor:
    """0.2 BCE + 0.8 Dice on the low-resolution logits: SAMed's weights.

    SAMed's own Dice runs over classes and the whole batch, with squared sums; this one is `dice_loss`, per mask.
    """
    return 0.2 * binary_cross_entropy(logits, target) + 0.8 * dice_loss(logits, target)


def point_sampled_loss(
    logits: Tensor,
    target: Tensor,
    points: int = POINTS,
    oversample: float = OVERSAMPLE,
    importance: float = IMPORTANCE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """BCE + Dice on points where the prediction is uncertain (PointRend, HQ-SAM, SPT, ASAM): `(P, M)`.

    Args:
        logits: `(P, M, h, w)`.
        target: `(P, 1, H, W)` of ANY size, showing the same image area. Both are read bilinearly at the same points, so
            that the target keeps its own resolution.
        points: points a mask; never more than h * w.
        oversample: see `uncertain_points`.
        importance: see `uncertain_points`.
        generator: draws the points; on the logits' device.
    """
    prompts, count, height, width = logits.shape
    logits = logits.float().reshape(prompts * count, 1, height, width)
    target = target.float().expand(-1, count, -1, -1).reshape(prompts * count, 1, *target.shape[-2:])
    coords = uncertain_points(logits, min(points, height * width), oversample, importance, generator)
    sampled, truth = point_sample(logits, coords)[..., None], point_sample(target, coords)[..., None]
    return (binary_cross_entropy(sampled, truth) + dice_loss(sampled, truth)).reshape(prompts, count)


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    points: int,
    oversample: float = OVERSAMPLE,
    importance: float = IMPORTANCE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """PointRend's points for `logits (N, 1, h, w)`: float32 `(N, points, 2)`, (x, y) in [0, 1] over the whole mask.

    Args:
        logits: the certainty of a point is the absolute value of its logit.
        points: how many, for each mask.
        oversample: `oversample * points` candidates are drawn uniformly.
        importance: the least certain candidates become this share of the points; the rest is drawn uniformly anew.
        generator: on the logits' device.
    """
    options = {"generator": generator, "device": logits.device}
    coords = torch.rand(len(logits), int(points * oversample), 2, **options)
    kept = int(importance * points)
    certainty = point_sample(logits.float(), coords)[:, 0].abs()
    nearest = certainty.topk(kept, dim=1, largest=False, sorted=False).indices
    coords = coords.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([coords, torch.rand(len(logits), points - kept, 2, **options)], dim=1)


def point_sample(maps: Tensor, coords: Tensor) -> Tensor:
    """Bilinear values of `maps (N, C, h, w)` at `coords (N, K, 2)`, (x, y) in [0, 1]: `(N, C, K)`; zero beyond the
    border.

    0 and 1 are the outer edges of the border pixels, as in detectron2's `point_sample`.
    """
    return F.grid_sample(maps, 2 * coords[:, :, None] - 1, align_corners=False)[..., 0]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) between the pixels' Bernoulli distributions, mean over a mask's pixels: KL in SAM-SP's Eq.
    (3).

    Args:
        student: logits.
        teacher: logits; detach them if the teacher must not learn.
        temperature: T, above 0. Both logits are divided by T and the result is multiplied by T^2, so that the gradient
            does not shrink as T grows (Hinton et al. 2015, section 2).
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    foreground = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    background = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (foreground + background).mean((-2, -1))


def distillation_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the pixels' probabilities.

    Not of the logits: they are unbounded, and the most certain pixels would outweigh the edges.
    """
    return (student.float().sigmoid() - teacher.float().sigmoid()).square().mean((-2, -1))


def _same_grid(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[-2:] != target.shape[-2:]:
        raise ValueError(f"logits are {tuple(logits.shape[-2:])}, the target {tuple(target.shape[-2:])}: see at_size")
    return logits.float(), target.float().expand_as(logits)
