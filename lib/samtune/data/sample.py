"""What a sample is, what a data set is, and which masks of a sample count."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from samtune.common.errors import unknown

Target = Literal["union", "instances"]
TARGETS = ("union", "instances")


@dataclass(frozen=True)
class Sample:
    """One image with its objects.

    id: unique in its data set.
    dataset, split: where it comes from.
    image: uint8 `(H, W, 3)` RGB.
    masks: bool `(N, H, W)`, N >= 0.
    ignore: bool `(H, W)`, true where nothing is scored (void, outside the field of view; background to the losses in
        training), or None.
    object_class: one name per mask, or empty.
    group: the patient or sequence that must not be torn apart by a split, or "".
    caption: a sentence, or "".
    """

    id: str
    dataset: str
    split: str
    image: np.ndarray
    masks: np.ndarray
    ignore: np.ndarray | None = None
    object_class: tuple[str, ...] = field(default=())
    group: str = ""
    caption: str = ""


class Dataset(Protocol):
    """A data set: lists ids without opening an image, loads one sample at a time.

    `dropped` counts what the listing left out, by reason (an empty mask, an image without annotation).
    """

    name: str
    dropped: dict[str, int]

    def ids(self, split: str) -> list[str]:
        """Sorted sample ids of "train", "val" or "test"."""

    def load(self, id: str) -> Sample:
        """Read one sample; raises `InputError` naming the file when it cannot be read."""


def target_masks(sample: Sample, target: Target) -> np.ndarray:
    """What the prompts are made from and the prediction is scored against, bool `(N, H, W)`.

    "instances": the sample's masks as they are; "union": all of them as one mask, N = 1 (N = 0 where the sample
    has none, or only empty ones).
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if target == "instances":
        return sample.masks
    union = sample.masks.any(axis=0, keepdims=True)
    return union if union.any() else sample.masks[:0]


def stack_masks(masks: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """A list of N masks `(H, W)` as bool `(N, H, W)`; right for N = 0 too, with `shape` the image's (H, W)."""
    return np.stack(masks).astype(bool) if masks else np.zeros((0, *shape), dtype=bool)
