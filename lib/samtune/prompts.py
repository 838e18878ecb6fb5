"""Prompts: boxes, points, masks or nothing, drawn from true masks.

Coordinates are (x, y) pixels of the original image until `Prompts.scaled` moves them to the model's square. Each random
number comes from a generator seeded by (seed, sample, kind of prompt, object index). So no prompt depends on the order
of images, the batch size or the number of devices, and every method gets the same prompts.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from samtune.common.errors import InputError, unknown
from samtune.data.sample import CroppedMasks

KINDS = ("box", "box_jitter", "point1", "point5", "point10", "point_centre", "mask", "none")
FOREGROUND, BACKGROUND, PADDING = 1, 0, -1  # labels of points, as SAM's prompt encoder reads them
MASK_VALUES = (-8.0, 8.0)  # background and foreground of a mask prompt: like confident logits


@dataclass(frozen=True)
class Prompts:
    """P prompts of one kind, for one image or several. A field that the kind lacks is None.

    Fields:
        image_index: int64 `(P,)`: which image of the batch each prompt is for.
        boxes: float32 `(P, 4)`, xyxy, maxima inclusive.
        points: float32 `(P, K, 2)`.
        labels: of the points, int64 `(P, K)`: 1 foreground, 0 background, -1 padding.
        masks: float32 `(P, 1, h, w)`, logits or values like them, at the model's low resolution.

    Raises `ValueError` on shapes that do not fit together.
    """

    image_index: Tensor
    boxes: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.points is None) != (self.labels is None):
            raise ValueError("points and labels come together")
        count, clicks = len(self.image_index), 0 if self.labels is None else self.labels.shape[-1]
        expected = {"image_index": (count,), "boxes": (count, 4)}
        expected |= {"points": (count, clicks, 2), "labels": (count, clicks)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
        if self.masks is not None and (self.masks.ndim != 4 or tuple(self.masks.shape[:2]) != (count, 1)):
            raise ValueError(f"masks has shape {tuple(self.masks.shape)}, expected ({count}, 1, h, w)")

    def __len__(self) -> int:
        return len(self.image_index)

    def __getitem__(self, index: slice | Tensor) -> "Prompts":
        """The prompts at `index`: a slice, integer positions or a bool mask, but no single number."""
        return self._map(lambda value: value[index])

    def to(self, device: torch.device | str) -> "Prompts":
        """The same prompts on another device."""
        return self._map(lambda value: value.to(device))

    def at_image(self, index: int) -> "Prompts":
        """The same prompts, all for image `index` of a batch."""
        return dataclasses.replace(self, image_index=torch.full_like(self.image_index, index))

    def scaled(self, x: float, y: float) -> "Prompts":
        """Boxes and points times `x` and `y`, as `SamPredictor` scales them to model pixels; masks stay as they are."""
        factor = torch.tensor([x, y], dtype=torch.float32, device=self.image_index.device)
        boxes = None if self.boxes is None else self.boxes * factor.repeat(2)
        return dataclasses.replace(self, boxes=boxes, points=None if self.points is None else self.points * factor)

    def with_points(self, points: Tensor, labels: Tensor) -> "Prompts":
        """These prompts with more clicks, `points (P, K, 2)` and `labels (P, K)`, after those they have."""
        if self.points is not None and self.labels is not None:
            points, labels = torch.cat([self.points, points], 1), torch.cat([self.labels, labels], 1)
        return dataclasses.replace(self, points=points, labels=labels)

    def by_clicks(self) -> list[tuple[Tensor, "Prompts"]]:
        """The prompts in groups of equal number of clicks, without padding; with each group its positions `(n,)` among
        all.
        """
        if self.labels is None:
            return [(torch.arange(len(self)), self)]
        counts = (self.labels != PADDING).sum(1).cpu()
        groups = []
        for count in counts.unique().tolist():
            positions = torch.nonzero(counts == count)[:, 0]
            own = self[positions]
            real = own.labels != PADDING
            points = own.points[real].view(-1, count, 2) if count else None
            labels = own.labels[real].view(-1, count) if count else None
            groups.append((positions, dataclasses.replace(own, points=points, labels=labels)))
        return groups

    def with_masks(self, masks: Tensor) -> "Prompts":
        """These prompts with a low-resolution mask each, `(P, 1, h, w)`; it replaces any that they have."""
        return dataclasses.replace(self, masks=masks)

    def with_padded_masks(self, height: int, width: int, value: float) -> "Prompts":
        """Masks padded at the right and the bottom with `value`, from the image's part of the square to the whole
        square.
        """
        if self.masks is None:
            return self
        margin = (0, width - self.masks.shape[-1], 0, height - self.masks.shape[-2])
        return dataclasses.replace(self, masks=F.pad(self.masks, margin, value=value))

    @staticmethod
    def concatenate(parts: Sequence["Prompts"]) -> "Prompts":
        """All prompts of `parts` in order; image indices do not change; prompts with fewer clicks get padding clicks.

        Raises `ValueError` when there are no parts or their kinds differ.
        """
        if not parts:
            raise ValueError("nothing to concatenate")
        clicks = max(0 if part.labels is None else part.labels.shape[1] for part in parts)
        parts = [part._with_clicks(clicks) for part in parts]
        joined = {}
        for name in (field.name for field in dataclasses.fields(Prompts)):
            values = [getattr(part, name) for part in parts]
            if any(value is None for value in values):
                if not all(value is None for value in values):
                    raise ValueError(f"prompts of different kinds: some have {name}, some do not")
                continue
            joined[name] = torch.cat(values)
        return Prompts(**joined)

    def _with_clicks(self, count: int) -> "Prompts":
        """Padding clicks up to `count` for each prompt, if there are clicks at all."""
        if self.labels is None or self.labels.shape[1] == count:
            return self
        missing = count - self.labels.shape[1]
        points = self.points.new_zeros(len(self), missing, 2)
        return self.with_points(points, self.labels.new_full((len(self), missing), PADDING))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Prompts":
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Prompts(**{name: None if value is None else function(value) for name, value in values.items()})


def parse_kind(kind: str) -> tuple[str, ...]:
    """The parts of a kind such as "box+point1"; every "point<k>" is valid. Raises `InputError` on unknown or repeated
    parts.
    """
    parts = tuple(kind.split("+"))
    for part in parts:
        if part not in KINDS and not re.fullmatch(r"point[1-9]\d*", part):
            raise unknown("prompt", part, KINDS)
    families = [_family(part) for part in parts]
    if len(set(families)) < len(families) or ("none" in families and len(families) > 1):
        raise InputError(f"prompt {kind!r}: one box, one point<k> and one mask can be joined by +, each once; not none")
    return parts


def make_prompts(
    kind: str,
    masks: np.ndarray | CroppedMasks,
    seed_key: str,
    seed: int = 0,
    low_resolution: tuple[int, int] | None = None,
    *,
    box_noise: float = 0.1,
    mask_values: tuple[float, float] = MASK_VALUES,
) -> Prompts:
    """One prompt for each of N masks; every `image_index` is 0.

    Args:
        kind: one of `KINDS`, any "point<k>", or several joined by "+".
        masks: bool `(N, H, W)`.
        seed_key: names the sample (data set and id).
        seed: of the run.
        low_resolution: (height, width) of a mask prompt, which shows the whole image resized to that.
        box_noise: of "box_jitter", see `jitter_boxes`.
        mask_values: background and foreground of a mask prompt. The default looks like confident logits; HQ-SAM's
            script takes (0, 255).

    An object's clicks come from one stream of random numbers: the click of "point1" is the first of "point5" and of
    "box+point1". "point_centre" is not random, see `centre_points`.

    Raises `InputError` on an empty mask (leave those out first) or an unknown kind, `ValueError` on a wrong shape.
    """
    if not isinstance(masks, CroppedMasks):
        masks = np.asarray(masks, dtype=bool)
    if len(masks.shape) != 3:
        raise ValueError(f"masks has shape {masks.shape}, expected (N, H, W)")
    parts = parse_kind(kind)
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise InputError(f"{seed_key}: no prompt can come from an empty mask (object {empty[0]})")
    boxes = tight_boxes(masks)
    generators = {
        part: [object_generator(seed, seed_key, _family(part), index) for index in range(len(masks))] for part in parts
    }
    prompts = Prompts(torch.zeros(len(masks), dtype=torch.int64))
    for part in parts:
        if part == "box":
            prompts = dataclasses.replace(prompts, boxes=torch.from_numpy(boxes))
        elif part == "box_jitter":
            moved = jitter_boxes(boxes, masks.shape[1:], box_noise, generators[part])
            prompts = dataclasses.replace(prompts, boxes=torch.from_numpy(moved))
        elif part == "mask":
            if low_resolution is None:
                raise ValueError("a mask prompt needs low_resolution=(height, width)")
            prompts = prompts.with_masks(noisy_masks(masks, low_resolution, mask_values, generators[part]))
        elif part == "point_centre":
            prompts = prompts.with_points(*centre_points(masks))
        elif part != "none":
            count = int(part.removeprefix("point"))
            prompts = prompts.with_points(*random_points(masks, boxes, count, generators[part]))
    return prompts


def tight_boxes(masks: np.ndarray | CroppedMasks) -> np.ndarray:
    """Boxes float32 `(N, 4)` around non-empty masks bool `(N, H, W)`: first and last foreground column and row, as in
    SPT.
    """
    columns, rows = masks.any(axis=1), masks.any(axis=2)
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right = masks.shape[2] - 1 - columns[:, ::-1].argmax(axis=1)
    bottom = masks.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def large_parts(mask: np.ndarray, share: float) -> np.ndarray:
    """A mask bool `(h, w)` without its connected parts (4 neighbours) of less than `share` of its foreground."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    return (areas >= max(1, share * areas.sum()))[labels]


def jitter_boxes(
    boxes: np.ndarray, size: tuple[int, int], noise: float, generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """HQ-SAM's box noise: float32 `(N, 4)`.

    The centre moves by up to `noise` half sides, and each side changes by up to `noise` of itself. So an edge moves by
    at most `noise` of the side.

    Args:
        boxes: float32 `(N, 4)`.
        size: (height, width); the result is clipped to it.
        noise: as a share of the sides.
        generators: one a box.
    """
    draws = np.array([generator.uniform(-1, 1, 4) for generator in generators]).reshape(-1, 4)
    side = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + side / 2 + draws[:, :2] * noise * side / 2
    half = (side + draws[:, 2:] * noise * side) / 2
    limit = np.array([size[1] - 1, size[0] - 1] * 2)
    return np.concatenate([centre - half, centre + half], axis=1).clip(0, limit).astype(np.float32)


def random_points(
    masks: np.ndarray | CroppedMasks, boxes: np.ndarray, count: int, generators: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """`count` random foreground pixels of each mask, without replacement.

    A mask with fewer pixels gets all of them, then padding clicks (label -1 at 0, 0).

    Args:
        masks: bool `(N, H, W)`.
        boxes: the masks' tight boxes.
        count: K.
        generators: one a mask.

    Returns:
        Points float32 `(N, K, 2)` and labels int64 `(N, K)`.
    """
    points = np.zeros((len(masks), count, 2), np.float32)
    labels = np.full((len(masks), count), PADDING, np.int64)
    for index, (mask, generator) in enumerate(zip(masks, generators, strict=True)):
        left, top, right, bottom = boxes[index].astype(int)
        rows, columns = np.nonzero(mask[top : bottom + 1, left : right + 1])
        chosen: dict[int, None] = {}  # an ordered set: fewer points are then the first of more
        while len(chosen) < min(count, len(rows)):
            chosen[int(generator.integers(len(rows)))] = None
        picked = list(chosen)
        points[index, : len(picked)] = np.stack([columns[picked] + left, rows[picked] + top], axis=1)
        labels[index, : len(picked)] = FOREGROUND
    return torch.from_numpy(points), torch.from_numpy(labels)


def centre_points(masks: np.ndarray | CroppedMasks) -> tuple[Tensor, Tensor]:
    """The pixel of each mask that is farthest from the mask's edge: points float32 `(N, 1, 2)` and labels int64 `(N,
    1)`.

    The image border counts as an edge; of equal pixels the first in reading order is taken. SAM's authors evaluate with
    this click (Kirillov et al. 2023, section 7.1).
    """
    points = np.zeros((len(masks), 1, 2), np.float32)
    for index, mask in enumerate(masks):
        padded = np.pad(mask.astype(np.uint8), 1)
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        points[index, 0] = np.unravel_index(distance.argmax(), mask.shape)[::-1]
    return torch.from_numpy(points), torch.full((len(masks), 1), FOREGROUND)


def noisy_masks(
    masks: np.ndarray | CroppedMasks,
    size: tuple[int, int],
    values: tuple[float, float],
    generators: Sequence[np.random.Generator],
) -> Tensor:
    """The noisy mask prompt of HQ-SAM and ASAM: float32 `(N, 1, h, w)`.

    The mask is resized bilinearly. Where scaling it down by 8 and up again changes it by 0.01 or more, that is at edges
    and fine detail, Gaussian noise (std 1) is added; then above 0.5 is foreground. As in their code, an object much
    smaller than a low-resolution pixel can vanish.

    Args:
        masks: bool `(N, H, W)`.
        size: (h, w).
        values: what background and foreground become.
        generators: one a mask.
    """
    clean, noise = torch.zeros(len(masks), 1, *size), torch.zeros(len(masks), 1, *size)
    for index, (mask, generator) in enumerate(zip(masks, generators, strict=True)):
        clean[index] = _resize(torch.from_numpy(mask)[None, None].float(), size)[0]
        noise[index, 0] = torch.from_numpy(generator.standard_normal(size, dtype=np.float32))
    coarse = _resize(clean, (max(1, size[0] // 8), max(1, size[1] // 8)))
    unstable = (clean - _resize(coarse, size)).abs() >= 0.01
    background, foreground = values
    return torch.where(clean + noise * unstable > 0.5, foreground, background).float()


def correction_points(
    prediction: Tensor, truth: Tensor, generator: torch.Generator | None = None, stride: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One correction click for each mask, as in SAM's training (Kirillov et al. 2023, appendix A): a random wrong
    pixel.

    Args:
        prediction: logits (foreground > 0) or bool, `(P, h, w)` or `(P, 1, h, w)`.
        truth: bool or probabilities (foreground > 0.5), of the same shape.
        generator: on the masks' device.
        stride: model pixels a low-resolution pixel. The click is at the pixel's centre, (x + 0.5) * stride - 0.5.

    Returns:
        Points float32 `(P, 1, 2)` and labels int64 `(P, 1)`: 1 where foreground was missed, 0 where background was
            marked. Where nothing is wrong, the click is a random foreground pixel; where the truth is empty too, any
            pixel (label 0).
    """
    height, width = truth.shape[-2:]
    predicted = (prediction if prediction.dtype == torch.bool else prediction > 0).reshape(-1, height * width)
    actual = (truth if truth.dtype == torch.bool else truth > 0.5).reshape(-1, height * width)
    region = predicted ^ actual
    region = torch.where(region.any(1, keepdim=True), region, actual)
    region = torch.where(region.any(1, keepdim=True), region, torch.ones_like(region))
    # Take the n-th pixel of the region, n drawn uniformly: the first at which the running count reaches n.
    running = region.cumsum(1)
    draw = torch.rand(len(region), 1, generator=generator, device=region.device, dtype=torch.float64)
    rank = (draw * running[:, -1:]).long().clamp(max=running[:, -1:] - 1) + 1
    index = torch.searchsorted(running, rank)
    labels = actual.gather(1, index).long()
    pixel = torch.stack([index % width, index // width], dim=-1).float()
    return (pixel + 0.5) * stride - 0.5, labels


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)


def _family(part: str) -> str:
    """ "box", "point", "mask" or "none": a part without its number or variant. It seeds the generator."""
    return re.match(r"[a-z]+", part).group()


def object_generator(seed: int, seed_key: str, family: str, index: int) -> np.random.Generator:
    """The random numbers of one object's prompt.

    Args:
        seed: of the run.
        seed_key: names the sample.
        family: "box", "point", "mask", "none", or "noise" (latents).
        index: of the object.
    """
    digest = hashlib.sha256(f"{seed}/{seed_key}/{family}/{index}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
