"""What a sample is, what a data set is, and which masks of a sample are used."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from samtune.common.errors import unknown

Target = Literal["union", "instances"]
TARGETS = ("union", "instances")


@dataclass(frozen=True)
class Sample:
    """One image with its objects.

    Fields:
        id: unique in its data set.
        dataset: its name.
        split: "train", "val" or "test".
        image: uint8 `(H, W, 3)` RGB.
        masks: bool `(N, H, W)`, N >= 0.
        ignore: bool `(H, W)`, true where nothing is scored (void, outside the field of view), or None. Training takes
            these pixels as background.
        object_class: one name for each mask, or empty.
        group: images of one group (a patient, a sequence) stay in one split; "" where there is none.
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
    """A data set: it lists ids without opening an image, and loads one sample at a time.

    Attributes:
        name: in the registry.
        dropped: how many images the listing left out, by reason (an empty mask, an image without annotation).
    """

    name: str
    dropped: dict[str, int]

    def ids(self, split: str) -> list[str]:
        """Sorted sample ids of "train", "val" or "test"."""

    def load(self, id: str) -> Sample:
        """Read one sample. Raises `InputError` with the file's name when it cannot be read."""


def target_masks(sample: Sample, target: Target) -> np.ndarray:
    """The masks that prompts are made from and predictions are compared with, bool `(N, H, W)`.

    "instances": the sample's masks. "union": one mask with all objects, N = 1; N = 0 where there are none. Raises
    `InputError` on another target.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if target == "instances":
        return sample.masks
    union = sample.masks.any(axis=0, keepdims=True)
    return union if union.any() else sample.masks[:0]


def stack_masks(masks: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """A list of N masks `(H, W)` -> bool `(N, H, W)`, also for N = 0; `shape` is the image's (H, W)."""
    return np.stack(masks).astype(bool) if masks else np.zeros((0, *shape), dtype=bool)
