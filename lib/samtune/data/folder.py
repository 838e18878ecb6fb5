"""A folder of images and a folder of masks with the same names: the user's own images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from scipy import ndimage
from tqdm.auto import tqdm

from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError, unknown
from samtune.data.files import IMAGE_SUFFIXES, by_name, folders, pictures, readable
from samtune.data.listed import ListedDataset
from samtune.data.pixels import check_same_size, image_size, read_image, read_index_map, read_mask
from samtune.data.sample import TARGETS, CroppedMasks, Dataset, Sample, Target, cropped, pack_masks, stack_masks
from samtune.data.splits import SPLITS, by_split, make_split

MaskCoding = Literal["binary255", "binary1", "index"]
MASK_CODINGS = ("binary255", "binary1", "index")


class BadPair(InputError):
    """A picture and its masks that cannot be used, and that `skip_bad` would leave out."""


class FolderDataset(ListedDataset):
    """Images `<images>/<stem>.<any>` with masks `<masks>/<stem>.<any>` or `<masks>/<stem>/*` (one object a file).

    All masks are read once at the start, so that a bad one is reported before any work is done. Of images only name and
    size are read at the start; a truncated one is found when it is loaded, or with `skip_bad`. Ids are file names as
    `readable` gives them. Empty masks are left out and counted in `dropped`.

    Args:
        images: folder of images.
        masks: folder of masks.
        mask_coding: what the values of masks mean. "binary255": object above 127. "binary1": object 1, background 0.
            "index": each value but 0 is an object.
        void: with "index", the value of pixels that are not scored.
        skip_bad: open every image at the start too, leave out what is bad, and list it in `skipped`.
        split: put all samples into this split; None: split 60/20/20, with seed 0.
        name: of the data set.
        target: "union": all objects of an image as one mask, of which only one is in memory at a time.
        mask_suffix: what a mask's name has after its image's ("_mask" for `a.jpg` and `a_mask.png`).

    Raises `InputError` with what is wrong with a pair of files, or when no sample is left.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path,
        mask_coding: MaskCoding = "binary255",
        void: int | None = None,
        skip_bad: bool = False,
        split: str | None = None,
        name: str = "folder",
        target: Target = "instances",
        mask_suffix: str = "",
    ):
        if mask_coding not in MASK_CODINGS:
            raise unknown("mask_coding", mask_coding, MASK_CODINGS)
        if split is not None and split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if target not in TARGETS:
            raise unknown("target", target, TARGETS)
        if void is not None and mask_coding != "index":
            raise InputError(f"void={void} needs mask_coding='index' (it is {mask_coding!r})")
        self._images, self._masks = Path(images), Path(masks)
        self._coding, self._void, self._target = mask_coding, void, target
        one_folder = self._images.resolve() == self._masks.resolve()
        if one_folder and not mask_suffix:
            raise InputError(f"images and masks are the same folder, {self._images}; keep two, or set mask_suffix")
        ending, both = readable(mask_suffix), by_name(pictures(self._images))
        self._mask_paths = by_name(sorted(pictures(self._masks) + folders(self._masks)), ending)
        self._image_paths = {id: path for id, path in both.items() if not (one_folder and id.endswith(ending))}
        if not self._image_paths:
            raise InputError(f"no picture in {self._images} (of the kinds {', '.join(IMAGE_SUFFIXES)})")
        self.skipped: list[str] = []
        good, empty = [], 0
        ids = sorted(self._image_paths | self._mask_paths)
        for id in tqdm(ids, "read masks", mininterval=2, delay=5, leave=False, disable=None):
            try:
                if self._has_object(id, open_image=skip_bad):
                    good.append(id)
                else:
                    empty += 1
            except InputError as error:
                if not skip_bad:
                    raise BadPair(str(error)) from error
                self.skipped.append(str(error))
        if not good:
            reasons = f"{empty} empty masks, {len(self.skipped)} bad pairs" + "".join(f"\n  {s}" for s in self.skipped)
            raise InputError(f"no sample left of {self._images} with masks {self._masks}: {reasons}")
        split_of = dict.fromkeys(good, split) if split else make_split(good)
        super().__init__(name, by_split(split_of), {"empty mask": empty, "bad": len(self.skipped)})

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        path, mask_path = self._image_paths[id], self._mask_paths[id]
        image = read_image(path)
        if self._coding == "index":
            masks, names, ignore = self._read_numbers(mask_path)
        else:
            masks, names, ignore = self._read_files(mask_path), (), None
        check_same_size(image, masks, path, mask_path)
        return Sample(id, self.name, split, image, masks, ignore, names)

    def _has_object(self, id: str, open_image: bool) -> bool:
        """Check one pair of files. False where all its masks are empty."""
        path, mask_path = self._image_paths.get(id), self._mask_paths.get(id)
        if path is None or mask_path is None:
            found, sort = (mask_path, "image") if path is None else (path, "mask")
            expected = (self._images if path is None else self._masks) / f"{id}.png"
            hint = "" if open_image else self._suffix_hint(id)
            expected = f"{expected} (or {id} with {', '.join(IMAGE_SUFFIXES)})"
            raise InputError(f"{found} has no {sort}; expected {expected}{hint}")
        size = read_image(path).shape[:2] if open_image else image_size(path)
        some = False
        for file in self._files(mask_path):
            mask = self._read(file)
            check_same_size(size, mask, path, file)
            some |= bool((mask != 0).any() if self._void is None else ((mask != 0) & (mask != self._void)).any())
        return some

    def _suffix_hint(self, id: str) -> str:
        """The end of a sentence on an image without mask, where a mask is named as the image and something more."""
        for name in self._mask_paths:
            suffix = name.removeprefix(id)
            if suffix not in ("", name) and not suffix[0].isalnum() and name not in self._image_paths:
                return f"; is {self._mask_paths[name].name} its mask? then set mask_suffix '{suffix}'"
        return ""

    def _files(self, path: Path) -> list[Path]:
        """The mask files of one image: `path` itself, or those in the folder `path`."""
        if not path.is_dir():
            return [path]
        if self._coding == "index":
            raise InputError(f"{path} is a folder of one object a file; mask_coding must be 'binary255' or 'binary1'")
        if not (files := list(by_name(pictures(path)).values())):
            raise InputError(f"{path} holds no mask file ({', '.join(IMAGE_SUFFIXES)})")
        return files

    def _read(self, file: Path) -> np.ndarray:
        """One mask file: bool; with "index", int32 numbers."""
        readers = {"binary255": read_mask, "binary1": _read_binary1, "index": read_index_map}
        return readers[self._coding](file)

    def _read_files(self, path: Path) -> np.ndarray | CroppedMasks:
        """Masks bool `(N, H, W)` without empty ones; N may be 0. With target "union", one mask."""
        files = self._files(path)
        first = self._read(files[0])
        union, crops = first.copy(), cropped([first]) if first.any() else []
        for file in files[1:]:
            mask = self._read(file)
            if mask.shape != first.shape:
                raise InputError(f"masks of one image differ in size: {files[0]} and {file}")
            if self._target == "union":
                union |= mask
            elif mask.any():
                crops += cropped([mask])
        if self._target == "union":
            return stack_masks([union] if union.any() else [], first.shape)
        return pack_masks(crops, first.shape)

    def _read_numbers(self, path: Path) -> tuple[np.ndarray | CroppedMasks, tuple[str, ...], np.ndarray | None]:
        """Masks bool `(N, H, W)`, the number of each, and the void pixels or None. With target "union", one mask."""
        labels = self._read(self._files(path)[0])
        void = labels == self._void if self._void is not None else None
        found = np.unique(labels)
        values = [int(value) for value in found if value != 0 and value != self._void]
        if self._target == "union":
            return stack_masks([np.isin(labels, values)] if values else [], labels.shape), (), void
        # Numbers may be large (24-bit colours): boxes are found by place among the values.
        boxes = dict(zip(found.tolist(), ndimage.find_objects(np.searchsorted(found, labels) + 1), strict=True))
        masks = pack_masks([(boxes[value], labels[boxes[value]] == value) for value in values], labels.shape)
        return masks, tuple(str(value) for value in values), void


def write_folders(dataset: Dataset, ids: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Write samples as plain folders, which `FolderDataset` reads: `folder/images` and `folder/masks`, `<id>.png` each.

    A mask is all objects of a picture, 0 and 255. Returns the two folders.
    """
    images, masks = folder / "images", folder / "masks"
    for id in ids:
        sample = dataset.load(id)
        union = np.any(np.asarray(sample.masks), axis=0).astype(np.uint8) * 255
        for place, pixels in ((images, sample.image[..., ::-1]), (masks, union)):
            write_atomically(place / f"{id.replace('/', '_')}.png", cv2.imencode(".png", pixels)[1].tobytes())
    return images, masks


def _read_binary1(path: Path) -> np.ndarray:
    values = read_index_map(path)
    if not set(np.unique(values).tolist()) <= {0, 1}:
        found = ", ".join(str(value) for value in np.unique(values)[:8])
        raise InputError(f"mask {path} is not coded 0/1 (values {found}); mask_coding 'binary255' or 'index' may fit")
    return values == 1
