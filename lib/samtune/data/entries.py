"""Data sets made from a list of entries: what each image is, where it lies, and how its masks are read."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from samtune.common.errors import InputError
from samtune.data.files import by_name, find, pictures, readable
from samtune.data.listed import ListedDataset
from samtune.data.pixels import check_same_size, read_image, read_index_map, read_mask
from samtune.data.sample import Sample, stack_masks
from samtune.data.splits import by_split, make_split


@dataclass(frozen=True)
class Truth:
    """The objects of one image: `masks` N arrays bool `(H, W)`, `object_class` one name a mask or empty, `ignore`."""

    masks: list[np.ndarray]
    object_class: tuple[str, ...] = ()
    ignore: np.ndarray | None = None


def no_objects() -> Truth:
    """The truth of an image that is known to hold nothing: defect-free, say."""
    return Truth([])


@dataclass(frozen=True)
class Entry:
    """One image: `read_truth` opens `truth_path`; `part` is the official split, or "" where there is none.

    `stratum` is the class that a split of our own is stratified by.
    """

    id: str
    image: Path
    read_truth: Callable[[], Truth] = no_objects
    truth_path: Path | None = None
    part: str = ""
    stratum: str = ""
    group: str = ""


class EntryDataset(ListedDataset):
    """A data set over a list of entries; `load` opens one image and its masks, and leaves out empty ones.

    `hold_out`: take a fifth of an official train part for validation where there is no official one.
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
        """Read one sample; raises `InputError` with both sizes where image and masks disagree."""
        split = self.split_of(id)
        entry = self._entries[id]
        image, truth = read_image(entry.image), entry.read_truth()
        for plane in [*truth.masks, truth.ignore]:
            if plane is not None and entry.truth_path is not None:
                check_same_size(image, plane, entry.image, entry.truth_path)
        kept = [index for index, mask in enumerate(truth.masks) if mask.any()]
        masks = stack_masks([truth.masks[index] for index in kept], image.shape[:2])
        ignore = truth.ignore if truth.ignore is not None and truth.ignore.any() else None
        return Sample(
            id=id,
            dataset=self.name,
            split=split,
            image=image,
            masks=masks,
            ignore=ignore,
            object_class=tuple(truth.object_class[index] for index in kept) if truth.object_class else (),
            group=entry.group,
        )


def assign_splits(entries: Sequence[Entry], hold_out: bool) -> dict[str, str]:
    """id -> split. Official parts stay, but for a fifth of train that becomes val where `hold_out` and there is none.

    Entries without an official part are split 60/20/20. Both are stratified, keep groups whole, and use seed 0.
    """
    strata = {entry.id: entry.stratum for entry in entries}
    groups = {entry.id: entry.group for entry in entries if entry.group}
    splits = {entry.id: entry.part for entry in entries if entry.part}
    if hold_out and "val" not in splits.values():
        training = [id for id, part in splits.items() if part == "train"]
        splits |= make_split(training, strata, groups, fractions=(0.8, 0.2), names=("train", "val"))
    return splits | make_split([entry.id for entry in entries if not entry.part], strata, groups)


def content_root(folder: Path, marker: str) -> Path:
    """The folder that holds `marker` (a path pattern): `folder`, or one up to two levels inside, as archives bring."""
    for depth in ("", "*/", "*/*/"):
        for match in find(folder, depth + marker):
            return match.parents[len(Path(marker).parts) - 1]
    raise InputError(f"nothing found at {folder / marker}")


def pair(images: Iterable[Path], mask_folder: Path, endings: Sequence[str] = ("",)) -> list[tuple[Path, Path]]:
    """Each image with the mask whose name is the image's plus one of `endings`, in any picture format.

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
    """A mask whose every value but 0 is foreground, bool `(H, W)`: VisA codes kinds of defect with small numbers."""
    return read_index_map(path) > 0


def read_bright(path: Path) -> np.ndarray:
    """A mask saved as JPEG, bool `(H, W)`: compression leaves every value near 0 and 255, in each channel its own."""
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
    """A folder of images beside a folder of masks: official `part`, paths, start of image names, end of mask names."""

    part: str
    images: str
    masks: str
    prefix: str = ""
    ending: str = ""


def first_layout(folder: Path, layouts: Sequence[Sequence[Pairing]]) -> list[tuple[str, Path, Path]]:
    """(part, image, mask) of the first layout whose image folders are all there; `InputError` names what is due."""
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
