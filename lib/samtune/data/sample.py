"""What a sample is, what a data set is, and which masks of a sample are used."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
        self.crops, self.shape = crops, (len(crops), *size)

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def nbytes(self) -> int:
        return sum(crop.nbytes for _, crop in self.crops)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        """All planes, bool `(N, H, W)`."""
        planes = np.zeros(self.shape, bool)
        for plane, (box, crop) in zip(planes, self.crops, strict=True):
            plane[box] = crop
        return planes

    def __getitem__(self, index: int | np.ndarray | slice | tuple) -> "np.ndarray | CroppedMasks":
        """One plane bool `(H, W)`; with positions or a bool for each mask, these masks; with slices, planes."""
        if isinstance(index, slice):
            return np.asarray(CroppedMasks(self.crops[index], self.shape[1:]))
        if isinstance(index, tuple):
            return np.asarray(self)[index]
        if isinstance(index, np.ndarray):
            return CroppedMasks([self.crops[place] for place in np.arange(len(self))[index]], self.shape[1:])
        box, crop = self.crops[index]
        plane = np.zeros(self.shape[1:], bool)
        plane[box] = crop
        return plane

    def any(self, axis: int | tuple[int, int] | None = None) -> np.ndarray:
        """As an array's: over 0 the union `(H, W)`, over (1, 2) `(N,)`, over 1 `(N, W)`, over 2 `(N, H)`."""
        if axis is None or axis == (1, 2):
            found = np.array([crop.any() for _, crop in self.crops], bool)
            return found.any() if axis is None else found
        kept = {0: self.shape[1:], 1: (len(self), self.shape[2]), 2: (len(self), self.shape[1])}[axis]
        found = np.zeros(kept, bool)
        for index, (box, crop) in enumerate(self.crops):
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
                for (rows, columns), crop in self.crops
            ],
            self.shape[1:],
        )


def pack_masks(crops: Sequence[Crop], size: tuple[int, int]) -> "np.ndarray | CroppedMasks":
    """Crops as an array bool `(N, H, W)`, or as `CroppedMasks` where that would take more than `MOST_BYTES`."""
    packed = CroppedMasks(crops, size)
    if len(crops) * size[0] * size[1] > MOST_BYTES:
        return packed
    return np.asarray(packed)


def box_around(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a plane bool `(H, W)` between which its foreground lies; empty where there is none."""
    if not len(rows := np.flatnonzero(mask.any(1))):
        return slice(0, 0), slice(0, 0)
    rows = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[rows].any(0))
    return rows, slice(int(columns[0]), int(columns[-1]) + 1)


def cropped(masks: Iterable[np.ndarray]) -> list[Crop]:
    """Planes bool `(H, W)` as crops, each in turn."""
    boxed = ((box_around(mask), mask) for mask in masks)
    return [(box, mask[box].copy()) for box, mask in boxed]


def moved(
    masks: np.ndarray | CroppedMasks,
    move: Callable[[np.ndarray], np.ndarray],
    size: tuple[int, int],
    scale: tuple[float, float],
    shift: tuple[float, float] = (0.0, 0.0),
) -> list[Crop]:
    """What `move` makes of each mask: the values near the object, and where; elsewhere they are zero.

    Masks that stay apart share a plane, so that a thousand objects take a few calls of `move`.

    Args:
        masks: bool `(N, H, W)`.
        move: a plane uint8 `(H, W)`, 0 and 1 -> a plane of `size`. It brings pixel (row, column) to scale * (row,
            column) + shift, and spreads it no further than to the next pixels.
        size: (h, w).
        scale: of rows and columns.
        shift: of rows and columns.
    """
    crops = masks.crops if isinstance(masks, CroppedMasks) else cropped(masks)
    windows = []
    for box, _ in crops:
        window = []
        for side, length, factor, offset in zip(box, size, scale, shift, strict=True):
            start, stop = math.floor(side.start * factor + offset), math.ceil(side.stop * factor + offset)
            reach = 1 + int(factor)
            window.append(slice(*(min(max(place, 0), length) for place in (start - reach, stop + reach))))
        windows.append(tuple(window))
    found: dict[int, Crop] = {}
    left = list(range(len(crops)))
    while left:
        plane, taken, here = np.zeros(masks.shape[1:], np.uint8), np.zeros(size, bool), []
        for index in left:
            if not taken[windows[index]].any():
                taken[windows[index]] = True
                plane[crops[index][0]] |= crops[index][1]
                here.append(index)
        result = move(plane)
        found |= {index: (windows[index], result[windows[index]].copy()) for index in here}
        left = [index for index in left if index not in found]
    return [found[index] for index in range(len(crops))]


@dataclass(frozen=True)
class Sample:
    """One image with its objects.

    Fields:
        id: unique in its data set.
        dataset: its name.
        split: "train", "val" or "test".
        image: uint8 `(H, W, 3)` RGB.
        masks: bool `(N, H, W)`, N >= 0; `CroppedMasks` where they are very many, or very large.
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


CACHED_BYTES = 2**30


class CachedDataset:
    """A data set whose samples, once read, stay in memory until they fill `most` bytes: where every object is a file of
    its own, reading a picture can take longer than a training step on it.
    """

    def __init__(self, dataset: Dataset, most: int = CACHED_BYTES) -> None:
        self.name, self.dropped, self.ids = dataset.name, dataset.dropped, dataset.ids
        self._dataset, self._left = dataset, most
        self._kept: dict[str, Sample] = {}

    def load(self, id: str) -> Sample:
        """As the data set does. Do not change the arrays."""
        if id in self._kept:
            return self._kept[id]
        sample = self._dataset.load(id)
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


def without_empty_masks(sample: Sample) -> Sample:
    """The sample without masks (and their classes) that hold no pixel, from which no prompt can come."""
    kept = sample.masks.any((1, 2))
    return sample if kept.all() else keep_masks(sample, kept)


def keep_masks(sample: Sample, kept: np.ndarray) -> Sample:
    """The sample with the masks where `kept`, bool `(N,)`, is true, and their classes."""
    names = sample.object_class if len(sample.object_class) == len(kept) else ()
    classes = tuple(name for name, keep in zip(names, kept, strict=False) if keep)
    return replace(sample, masks=sample.masks[kept], object_class=classes)


def stack_masks(masks: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """A list of N masks `(H, W)` -> bool `(N, H, W)`, also for N = 0; `shape` is the image's (H, W)."""
    return np.stack(masks).astype(bool, copy=False) if masks else np.zeros((0, *shape), dtype=bool)
