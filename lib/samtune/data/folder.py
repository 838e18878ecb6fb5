"""A plain folder of images and a folder of masks with the same names: the user's own pictures."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from samtune.common.errors import InputError, unknown
from samtune.data.listed import SPLITS, ListedDataset
from samtune.data.sample import (
    IMAGE_SUFFIXES,
    Sample,
    check_same_size,
    read_image,
    read_index_map,
    read_mask,
    stack_masks,
)
from samtune.data.splits import by_split, make_split

MaskCoding = Literal["binary255", "binary1", "index"]
MASK_CODINGS = ("binary255", "binary1", "index")


class FolderDataset(ListedDataset):
    """Images `<images>/<stem>.<any>` with masks `<masks>/<stem>.<any>` or `<masks>/<stem>/*` (one object a file).

    `mask_coding` says what the masks' values mean; nothing is guessed: "binary255" (object > 127), "binary1" (object
    1, background 0), "index" (every value but 0 is an object; `void`, if given, marks pixels that are not scored).
    `split` puts all samples in one split; without it they are split 60/20/20, seeded.

    Masks are read once at the start, so that a bad one is reported before any work is done; of images only name and
    size are looked at, and a truncated one is found when it is loaded. With `skip_bad` every image is opened at the
    start too; what is bad is left out and listed in `skipped`, one line each. Empty masks are dropped and counted
    in `dropped`. Raises `InputError` with all that is wrong at a pair, or when no sample is left.
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
    ):
        if mask_coding not in MASK_CODINGS:
            raise unknown("mask_coding", mask_coding, MASK_CODINGS)
        if split is not None and split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if void is not None and mask_coding != "index":
            raise InputError(f"void={void} needs mask_coding='index' (it is {mask_coding!r})")
        self._images, self._masks = Path(images), Path(masks)
        self._coding, self._void = mask_coding, void
        self._image_paths = _by_stem(self._images, folders=False)
        self._mask_paths = _by_stem(self._masks, folders=True)
        if self._images.resolve() == self._masks.resolve():
            raise InputError(f"images and masks are the same folder, {self._images}; keep them in two")
        if not self._image_paths:
            raise InputError(f"no picture in {self._images} (of the kinds {', '.join(IMAGE_SUFFIXES)})")
        self.skipped: list[str] = []
        good, empty = [], 0
        for id in sorted(self._image_paths | self._mask_paths):
            try:
                if self._has_object(id, open_image=skip_bad):
                    good.append(id)
                else:
                    empty += 1
            except InputError as error:
                if not skip_bad:
                    raise
                self.skipped.append(str(error))
        if not good:
            reasons = f"{empty} empty masks, {len(self.skipped)} bad pairs" + "".join(f"\n  {s}" for s in self.skipped)
            raise InputError(f"no sample left of {self._images} with masks {self._masks}: {reasons}")
        split_of = dict.fromkeys(good, split) if split else make_split(good)
        super().__init__(name, by_split(split_of), {"empty mask": empty, "bad": len(self.skipped)})

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        path = self._image_paths[id]
        image = read_image(path)
        masks, names, ignore = self._read_masks(id)
        check_same_size(image, masks, path, self._mask_paths[id])
        return Sample(id, self.name, split, image, masks, ignore, names)

    def _has_object(self, id: str, open_image: bool) -> bool:
        """Check one pair; false where its masks are empty."""
        path, mask_path = self._image_paths.get(id), self._mask_paths.get(id)
        if path is None or mask_path is None:
            found, sort = (mask_path, "image") if path is None else (path, "mask")
            expected = (self._images if path is None else self._masks) / f"{id}.png"
            raise InputError(f"{found} has no {sort}; expected {expected} (or {id} with {', '.join(IMAGE_SUFFIXES)})")
        masks, _, _ = self._read_masks(id)
        height, width = read_image(path).shape[:2] if open_image else _image_size(path)
        check_same_size(np.empty((height, width, 0)), masks, path, mask_path)
        return bool(masks.any())

    def _read_masks(self, id: str) -> tuple[np.ndarray, tuple[str, ...], np.ndarray | None]:
        """Masks bool `(N, H, W)` without empty ones (N = 0 where all are), names of index values, void or None."""
        path = self._mask_paths[id]
        if self._coding == "index":
            if path.is_dir():
                raise InputError(
                    f"{path} is a folder of one object a file; mask_coding must be 'binary255' or 'binary1'"
                )
            labels = read_index_map(path)
            void = labels == self._void if self._void is not None else None
            values = [int(value) for value in np.unique(labels) if value != 0 and value != self._void]
            masks = stack_masks([labels == value for value in values], labels.shape)
            return masks, tuple(str(value) for value in values), void
        read = read_mask if self._coding == "binary255" else _read_binary1
        if path.is_file():
            mask = read(path)
            return stack_masks([mask] if mask.any() else [], mask.shape), (), None
        files = sorted(_by_stem(path, folders=False).values())
        if not files:
            raise InputError(f"{path} holds no mask file ({', '.join(IMAGE_SUFFIXES)})")
        layers = [read(file) for file in files]
        for layer, file in zip(layers, files, strict=True):
            if layer.shape != layers[0].shape:
                raise InputError(f"masks of one image differ in size: {files[0]} and {file}")
        return stack_masks([layer for layer in layers if layer.any()], layers[0].shape), (), None


def _by_stem(folder: Path, folders: bool) -> dict[str, Path]:
    """Picture files (and, if asked, folders) by name without suffix; two of one name are an error."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.suffix.lower() in IMAGE_SUFFIXES or (folders and path.is_dir())):
            continue
        stem = path.name if path.is_dir() else path.stem
        if stem in found:
            raise InputError(f"two files for {stem!r}: {found[stem]} and {path}; keep one")
        found[stem] = path
    return found


def _image_size(path: Path) -> tuple[int, int]:
    """(height, width) once turned upright, from the header where Pillow can read it."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # Pillow cannot read all that read_image can, and read_image says why when neither can
        return read_image(path).shape[:2]
    return (width, height) if turned else (height, width)


def _read_binary1(path: Path) -> np.ndarray:
    values = read_index_map(path)
    if not set(np.unique(values).tolist()) <= {0, 1}:
        found = ", ".join(str(value) for value in np.unique(values)[:8])
        raise InputError(f"mask {path} is not coded 0/1 (values {found}); mask_coding 'binary255' or 'index' may fit")
    return values == 1
