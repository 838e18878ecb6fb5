"""Data sets made from a list of entries: each says what the image is, where it is, and how to read its masks."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from samtune.common.errors import InputError
from samtune.data.files import by_name, find, pictures, readable
from samtune.data.listed import ListedDataset
from samtune.data.pixels import check_same_size, read_image, read_index_map, read_mask
from samtune.data.sample import Crop, Sample, cropped, pack_masks
from samtune.data.splits import by_split, make_split


@dataclass(frozen=True)
class Truth:
    """The objects of one image.

    Fields:
        masks: N arrays bool `(H, W)`, best made one at a time.
        object_class: one name for each mask, or empty.
        ignore: bool `(H, W)`, or None.
    """

    masks: Iterable[np.ndarray]
    object_class: tuple[str, ...] = ()
    ignore: np.ndarray | None = None


def no_objects() -> Truth:
    """The truth of an image that is known to have no object (no defect, say)."""
    return Truth([])


@dataclass(frozen=True)
class Entry:
    """One image of a data set.

    Fields:
        id: unique in the set.
        image: its file.
        read_truth: reads the masks.
        truth_path: the file that it reads, for messages.
        part: the official split, or "" where there is none.
        stratum: the class by which our own splits are stratified.
        group: images of one group stay in one split.
    """

    id: str
    image: Path
    read_truth: Callable[[], Truth] = no_objects
    truth_path: Path | None = None
    part: str = ""
    stratum: str = ""
    group: str = ""


class EntryDataset(ListedDataset):
    """A data set from a list of entries. `load` opens one image and its masks, and leaves out empty masks.

    Args:
        name: in the registry.
        entries: all images.
        dropped: how many were left out, by reason.
        hold_out: without an official validation part, take a fifth of the training part for it.

    Raises `InputError` where two images have the same id.
    """

    def __init__(
        self,
        name: str,
        entries: Sequence[Entry],
        dropped: Mapping[str, int] | None = None,
        hold_out: bool = True,
    ):
        self._entries = {entry.id: entry for entry in entries}
        if len(self._entries) != len(entries):
            twice = sorted(id for id, count in Counter(entry.id for entry in entries).items() if count > 1)
            raise InputError(f"{name}: two images have the same id: {', '.join(twice[:3])}")
        super().__init__(name, by_split(assign_splits(entries, hold_out)), dropped)

    def load(self, id: str) -> Sample:
        """Read one sample. Raises `InputError` with both sizes where image and mask differ in size."""
        split = self.split_of(id)
        entry = self._entries[id]
        image, truth = read_image(entry.image), entry.read_truth()
        crops: list[Crop] = []
        kept = []
        for index, plane in enumerate(chain(truth.masks, [] if truth.ignore is None else [truth.ignore])):
            if entry.truth_path is not None:
                check_same_size(image, plane, entry.image, entry.truth_path)
            if plane is not truth.ignore and plane.any():
                kept.append(index)
                crops += cropped([plane])
        ignore = truth.ignore if truth.ignore is not None and truth.ignore.any() else None
        return Sample(
            id=id,
            dataset=self.name,
            split=split,
            image=image,
            masks=pack_masks(crops, image.shape[:2]),
            ignore=ignore,
            object_class=tuple(truth.object_class[index] for index in kept) if truth.object_class else (),
            group=entry.group,
        )


def assign_splits(entries: Sequence[Entry], hold_out: bool) -> dict[str, str]:
    """The split of each id. Official splits stay; with `hold_out`, a fifth of train becomes val where there is no
    official val.

    Entries without an official split are split 60/20/20. Our splits are stratified, keep groups whole, and use seed 0.
    """
    strata = {entry.id: entry.stratum for entry in entries}
    groups = {entry.id: entry.group for entry in entries if entry.group}
    splits = {entry.id: entry.part for entry in entries if entry.part}
    if hold_out and "val" not in splits.values():
        training = [id for id, part in splits.items() if part == "train"]
        splits |= make_split(training, strata, groups, fractions=(0.8, 0.2), names=("train", "val"))
    return splits | make_split([entry.id for entry in entries if not entry.part], strata, groups)


def content_root(folder: Path, marker: str) -> Path:
    """The folder that holds `marker` (a path pattern): `folder` itself, or one up to two levels inside it, as in
    archives.

    Raises `InputError` where nothing matches.
    """
    for depth in ("", "*/", "*/*/"):
        for match in find(folder, depth + marker):
            return match.parents[len(Path(marker).parts) - 1]
    raise InputError(f"nothing found at {folder / marker}")


def pair(images: Iterable[Path], mask_folder: Path, endings: Sequence[str] = ("",)) -> list[tuple[Path, Path]]:
    """Each image with its mask, whose name is the image's plus one of `endings`, in any image format.

    Raises `InputError` with both paths where an image has no mask.
    """
    masks = by_name(pictures(mask_folder))
    pairs = []
    for image in images:
        names = [readable(image.stem + ending) for ending in endings]
        found = [masks[name] for name in names if name in masks]
        if not found:
            raise InputError(f"image {image} has no mask: expected {mask_folder / (image.stem + endings[0])}.png")
        pairs.append((image, found[0]))
    return pairs


def read_nonzero(path: Path) -> np.ndarray:
    """A mask in which every value but 0 is foreground, bool `(H, W)`. (VisA numbers its kinds of defect.)"""
    return read_index_map(path) > 0


def read_bright(path: Path) -> np.ndarray:
    """A published mask of 0 and 255, bool `(H, W)`, that was stored as JPEG or resized: other values lie between, and
    channels differ.
    """
    return read_image(path).mean(axis=2) > 127


def binary_entry(
    id: str,
    image: Path,
    mask: Path,
    object_class: str = "",
    part: str = "",
    read: Callable[[Path], np.ndarray] = read_mask,
) -> Entry:
    """An image with one binary mask, all of one class."""
    return Entry(id, image, partial(_binary_truth, mask, object_class, read), mask, part, stratum=object_class)


def _binary_truth(mask: Path, object_class: str, read: Callable[[Path], np.ndarray]) -> Truth:
    return Truth([read(mask)], (object_class,) if object_class else ())


@dataclass(frozen=True)
class Pairing:
    """A folder of images and a folder of masks.

    Fields:
        part: the official split, or "".
        images: path of the image folder.
        masks: path of the mask folder.
        prefix: image names begin with it.
        ending: a mask's name is the image's plus this.
    """

    part: str
    images: str
    masks: str
    prefix: str = ""
    ending: str = ""


def first_layout(folder: Path, layouts: Sequence[Sequence[Pairing]]) -> list[tuple[str, Path, Path]]:
    """(part, image, mask) of the first layout whose image folders are all there. Raises `InputError` with the paths
    expected.
    """
    for layout in layouts:
        try:
            roots = [content_root(folder, pairing.images) for pairing in layout]
        except InputError:
            continue
        return [
            (pairing.part, image, mask)
            for root, pairing in zip(roots, layout, strict=True)
            for image, mask in pair(
                [path for path in pictures(root / pairing.images) if path.stem.startswith(pairing.prefix)],
                root / pairing.masks,
                (pairing.ending,),
            )
        ]
    expected = ", or ".join(" and ".join(str(folder / pairing.images) for pairing in layout) for layout in layouts)
    raise InputError(f"expected {expected}")
