"""What the nano SAM learns to do with a prompt: on images, and at first on noise."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import normalize
from tqdm.auto import tqdm

from samtune.losses import balanced_cross_entropy, dice_loss, low_resolution_iou
from samtune.nano.optimisers import average_gradients, rank_and_processes
from samtune.prompts import MASK_VALUES, Prompts, correction_points
from samtune.sam.build import PIXEL_MEAN, PIXEL_STD, Sam
from samtune.sam.decode import encode_prompts

MaskLoss = Callable[[Tensor, Tensor], Tensor]
OUTSIDE, INSIDE = MASK_VALUES


def near_and_far_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy near the object, plus 0.5 times that elsewhere, plus Dice -> `(P,)`.

    Near is the object's box, larger by a quarter on each side (at least 2 pixels). There the outline is decided;
    elsewhere are many easy pixels, which would dominate a common mean.

    Args:
        logits: `(P, h, w)`.
        target: in [0, 1], `(P, h, w)`.
    """
    height, width = target.shape[-2:]
    rows = (target > 0.25).any(2)
    columns = (target > 0.25).any(1)

    def grown(hits: Tensor, side: int) -> Tensor:
        place = torch.arange(side)
        first = torch.where(hits, place, side).amin(1, keepdim=True)
        last = torch.where(hits, place, -1).amax(1, keepdim=True)
        margin = (0.25 * (last - first + 1)).clamp(min=2)
        return ((place >= first - margin) & (place <= last + margin)).float()

    near = grown(rows, height)[:, :, None] * grown(columns, width)[:, None, :]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    inside = (cross_entropy * near).sum((1, 2)) / near.sum((1, 2)).clamp(min=1)
    outside = (cross_entropy * (1 - near)).sum((1, 2)) / (1 - near).sum((1, 2)).clamp(min=1)
    probability = logits.sigmoid()  # Dice as `dice_loss`, but in any precision
    overlap = 2 * (probability * target).sum((1, 2))
    dice = 1 - (overlap + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
    return inside + 0.5 * outside + dice


def balanced_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy averaged over object and background separately, plus Dice: `(P, h, w)` twice -> `(P,)`.

    With it the model stops predicting empty masks soonest.
    """
    logits, target = logits[:, None], target[:, None]
    return (2 * balanced_cross_entropy(logits, target) + dice_loss(logits, target))[:, 0]


def prompt_loss(
    sam: Sam, embedding: Tensor, prompts: Prompts, target: Tensor, mask_loss: MaskLoss = near_and_far_loss
) -> tuple[Tensor, Tensor]:
    """The loss of each prompt `(P,)` and mask token 0's logits `(P, 1, h, w)`.

    Token 0 is trained on every prompt. For a single click, the other three tokens are trained too, by the loss of the
    best of them. The IoU head learns the true IoU of the masks that are trained.

    Args:
        sam: in training.
        embedding: of B images.
        prompts: P prompts in model pixels.
        target: true masks `(P, h, w)` in [0, 1].
        mask_loss: (logits, target) -> `(P,)`.
    """
    sparse, dense = encode_prompts(sam, prompts)
    position = sam.prompt_encoder.get_dense_pe()
    logits, iou = sam.mask_decoder.predict_masks(embedding[prompts.image_index], position, sparse, dense)
    loss = mask_loss(logits[:, 0], target)
    with torch.no_grad():
        true_iou = low_resolution_iou(logits, target[:, None])
    quality = (iou[:, 0] - true_iou[:, 0]) ** 2
    single_click = prompts.boxes is None and prompts.masks is None and prompts.points is not None
    if single_click and prompts.points.shape[1] == 1:
        spread = torch.stack([mask_loss(logits[:, token], target) for token in (1, 2, 3)])
        loss = loss + spread.amin(0)
        quality = quality + ((iou[:, 1:] - true_iou[:, 1:]) ** 2).mean(1)
    return loss + quality, logits[:, :1]


def picture_loss(
    sam: Sam, scenes: list[dict[str, Tensor]], generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch of images: a first pass from box, click, noisy mask or nothing, for some a second with a
    correction click.

    Returns the mean loss over prompts, and the mean IoU by kind of prompt.
    """
    images = torch.stack([scene["image"] for scene in scenes]).float()
    embedding = sam.image_encoder(normalize(images, PIXEL_MEAN, PIXEL_STD))
    masks = torch.cat([scene["masks"] for scene in scenes])
    index = torch.cat([torch.full((len(scene["masks"]),), i) for i, scene in enumerate(scenes)])
    stride = images.shape[-1] // sam.mask_size
    target = F.avg_pool2d(masks[:, None].float(), stride)[:, 0]
    boxes = torch.cat([scene["boxes"] for scene in scenes])
    clicks = torch.cat([scene["clicks"] for scene in scenes])
    draw = torch.rand(len(masks), generator=generator)
    groups = {
        "box": draw < 0.37,
        "point": (draw >= 0.37) & (draw < 0.92),  # the hardest, and the slowest to learn
        "mask": draw >= 0.92,
    }
    losses, scores, again = [], {}, []
    for kind, chosen in groups.items():
        if not chosen.any():
            continue
        prompts = Prompts(index[chosen])
        if kind == "box":
            prompts = Prompts(index[chosen], boxes=boxes[chosen])
        elif kind == "point":
            prompts = Prompts(index[chosen], points=clicks[chosen], labels=torch.ones(int(chosen.sum()), 1).long())
        else:
            coarse = F.avg_pool2d(target[chosen][:, None], 5, 1, 2)
            noise = 0.5 * torch.randn(coarse.shape, generator=generator) * ((coarse > 0.02) & (coarse < 0.98))
            prompts = prompts.with_masks(torch.where(coarse + noise > 0.5, INSIDE, OUTSIDE))
        loss, logits = prompt_loss(sam, embedding, prompts, target[chosen])
        losses.append(loss)
        scores[kind] = low_resolution_iou(logits[:, 0], target[chosen]).mean().item()
        if kind != "mask":
            half = torch.rand(len(loss), generator=generator) < 0.35
            if half.any():
                again.append((kind, prompts[half], logits.detach()[half], target[chosen][half]))
    for kind, prompts, logits, goal in again:
        points, labels = correction_points(logits, goal, generator, stride=stride)
        loss, second = prompt_loss(sam, embedding, prompts.with_points(points, labels).with_masks(logits), goal)
        losses.append(loss)
        scores[f"{kind}+click"] = low_resolution_iou(second[:, 0], goal).mean().item()
    main = [i for i, scene in enumerate(scenes) if len(scene["main"])]
    if main:
        goal = F.avg_pool2d(torch.stack([scenes[i]["main"] for i in main]).float(), stride)[:, 0]
        loss, logits = prompt_loss(sam, embedding, Prompts(torch.tensor(main)), goal)
        losses.append(loss)
        scores["none"] = low_resolution_iou(logits[:, 0], goal).mean().item()
    return torch.cat(losses).mean(), scores


def warm_up_prompts(
    sam: Sam, steps: int, seed: int, prompts: int = 64, progress: bool = True
) -> list[dict[str, float]]:
    """Teach prompt encoder and mask decoder what prompts mean, on embeddings of noise, in place; returns the curve.

    The target of a box is the ellipse in it, that of a click a disc (of three sizes, one for each mask), that of a mask
    itself.
    """
    size, grid = sam.image_size, sam.embedding_size
    rank, processes = rank_and_processes()
    prompts //= processes
    generator = torch.Generator().manual_seed(seed * 8 + rank)
    parameters = [*sam.prompt_encoder.parameters(), *sam.mask_decoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    rise = 0.15 if steps == 10 else 0.1  # a rise of exactly one step makes OneCycleLR divide by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=steps, pct_start=rise)
    place = (torch.arange(sam.mask_size) + 0.5) * (size / sam.mask_size)
    width = sam.prompt_encoder.embed_dim
    curve = []
    bar = tqdm(range(steps), desc="prompt warm-up", disable=not progress, mininterval=5)
    for step in bar:
        embedding = torch.randn(8, width, grid, grid, generator=generator)
        index = torch.randint(8, (prompts,), generator=generator)
        side = torch.exp(torch.rand(prompts, 2, generator=generator) * np.log(25.0)) * 0.04 * size
        centre = side / 2 + torch.rand(prompts, 2, generator=generator) * (size - side).clamp(min=0)
        boxes = torch.cat([centre - side / 2, centre + side / 2 - 1], 1)

        def oval(centre: Tensor, radius: Tensor) -> Tensor:
            x = (place[None, None, :] - centre[:, 0, None, None]) / radius[:, 0, None, None]
            y = (place[None, :, None] - centre[:, 1, None, None]) / radius[:, 1, None, None]
            distance = (x**2 + y**2).clamp(min=1e-6).sqrt()
            return ((1 - distance) * radius.amin(1)[:, None, None] / (size / sam.mask_size) + 0.5).clamp(0, 1)

        kind = step % 4
        if kind in (0, 1):
            goal = oval(centre, side / 2)
            loss, logits = prompt_loss(sam, embedding, Prompts(index, boxes=boxes), goal, balanced_loss)
        elif kind == 2:
            points = torch.rand(prompts, 1, 2, generator=generator) * size
            radius = torch.tensor([0.05, 0.12, 0.3])[torch.randint(3, (prompts,), generator=generator)] * size
            goal = oval(points[:, 0] + 0.5, radius[:, None].expand(-1, 2))
            labels = torch.ones(prompts, 1).long()
            loss, logits = prompt_loss(
                sam, embedding, Prompts(index, points=points, labels=labels), goal, balanced_loss
            )
        else:
            goal = oval(centre, side / 2)
            values = torch.where(goal > 0.5, INSIDE, OUTSIDE)[:, None]
            loss, logits = prompt_loss(sam, embedding, Prompts(index, masks=values), goal, balanced_loss)
        optimiser.zero_grad()
        loss.mean().backward()
        if processes > 1:
            average_gradients(parameters, processes)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        curve.append({"step": step, "kind": kind, "iou": low_resolution_iou(logits[:, 0], goal).mean().item()})
        bar.set_postfix(iou=f"{np.mean([row['iou'] for row in curve[-20:] if row['kind'] < 2] or [0]):.3f}")
    return curve
