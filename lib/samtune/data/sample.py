"""What a sample is, what a data set is, and which masks of a sample are used."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from samtune.common.errors import unknown

Target = Literal["union", "instances"]
TARGETS = ("union", "instances")
MOST_BYTES = 2**27  # of masks as planes; above, objects are kept as crops
Crop = tuple[tuple[slice, slice], np.ndarray]  # rows and columns, and bool `(h, w)` there


class CroppedMasks:
    """Masks bool `(N, H, W)` of which only each object's box is in memory; read as an array is, a plane at a time.

    A thousand nuclei in 2048 x 2048 pixels take 4 GB as planes, and a few megabytes as crops.
    """

    dtype, ndim = np.dtype(bool), 3

    def __init__(self, crops: Sequence[Crop], size: tuple[int, int]) -> None:
        """`size`: height and width of the planes."""
        self._crops, self.shape = crops, (len(crops), *size)

    def __len__(self) -> int:
        return len(self._crops)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int | np.ndarray) -> "np.ndarray | CroppedMasks":
        """One plane bool `(H, W)`; with positions or a bool for each mask, these masks."""
        if isinstance(index, np.ndarray):
            return CroppedMasks([self._crops[place] for place in np.arange(len(self))[index]], self.shape[1:])
        box, crop = self._crops[index]
        plane = np.zeros(self.shape[1:], bool)
        plane[box] = crop
        return plane

    def any(self, axis: int | tuple[int, int] | None = None) -> np.ndarray:
        """As an array's: over 0 the union `(H, W)`, over (1, 2) `(N,)`, over 1 `(N, W)`, over 2 `(N, H)`."""
        if axis is None or axis == (1, 2):
            found = np.array([crop.any() for _, crop in self._crops], bool)
            return found.any() if axis is None else found
        kept = {0: self.shape[1:], 1: (len(self), self.shape[2]), 2: (len(self), self.shape[1])}[axis]
        found = np.zeros(kept, bool)
        for index, (box, crop) in enumerate(self._crops):
            if axis == 0:
                found[box] |= crop
            else:
                found[index, box[2 - axis]] = crop.any(axis - 1)
        return found

    def flipped(self) -> "CroppedMasks":
        """Left and right exchanged."""
        width = self.shape[2]
        return CroppedMasks(
            [
                ((rows, slice(width - columns.stop, width - columns.start)), crop[:, ::-1])
                for (rows, columns), crop in self._crops
            ],
            self.shape[1:],
        )


def pack_masks(crops: Sequence[Crop], size: tuple[int, int]) -> "np.ndarray | CroppedMasks":
    """Crops as an array bool `(N, H, W)`, or as `CroppedMasks` where that would take more than `MOST_BYTES`."""
    packed = CroppedMasks(crops, size)
    if len(crops) * size[0] * size[1] > MOST_BYTES:
        return packed
    return stack_masks(list(packed), size)


def cropped(masks: Iterable[np.ndarray]) -> list[Crop]:
    """Planes bool `(H, W)` as crops, each in turn."""
    crops = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (slice(0, 0), slice(0, 0))
        if len(rows):
            box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        crops.append((box, mask[box].copy()))
    return crops


@dataclass(frozen=True)
class Sample:
    """One image with its objects.

    Fields:
        id: unique in its data set.
        dataset: its name.
        split: "train", "val" or "test".
        image: uint8 `(H, W, 3)` RGB.
        masks: bool `(N, H, W)`, N >= 0; `CroppedMasks` where a folder's image has very many objects.
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
    masks: np.ndarray | CroppedMasks
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


class Remembered:
    """A data set whose samples, once read, stay in memory until they fill `most` bytes: where every object is a file of
    its own, reading a picture can take longer than a training step on it.
    """

    def __init__(self, dataset: Dataset, most: int = 2**30) -> None:
        self.name, self.dropped, self.ids = dataset.name, dataset.dropped, dataset.ids
        self._dataset, self._left = dataset, most
        self._kept: dict[str, Sample] = {}

    def load(self, id: str) -> Sample:
        """As the data set does. Do not change the arrays."""
        if id in self._kept:
            return self._kept[id]
        sample = self._dataset.load(id)
        if isinstance(sample.masks, np.ndarray):
            size = sample.image.nbytes + sample.masks.nbytes
            if size <= self._left:
                self._left -= size
                self._kept[id] = sample
        return sample


def target_masks(sample: Sample, target: Target) -> np.ndarray | CroppedMasks:
    """The masks that prompts are made from and predictions are compared with, bool `(N, H, W)`.

    "instances": the sample's masks. "union": one mask with all objects, N = 1; N = 0 where there are none. Raises
    `InputError` on another target.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if target == "instances":
        return sample.masks
    union = sample.masks.any(axis=0)[None]
    return union if union.any() else union[:0]


def stack_masks(masks: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """A list of N masks `(H, W)` -> bool `(N, H, W)`, also for N = 0; `shape` is the image's (H, W)."""
    return np.stack(masks).astype(bool) if masks else np.zeros((0, *shape), dtype=bool)
