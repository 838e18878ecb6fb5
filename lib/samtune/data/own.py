"""Pictures and masks in plain folders, opened by the folder's name: sets of your own, and ASAM's in this layout."""

import hashlib
import json
import os
import re
from functools import partial
from pathlib import Path

from samtune.common.errors import InputError
from samtune.data.entries import Entry, EntryDataset, Truth
from samtune.data.files import by_name, folders, pictures, readable, walk
from samtune.data.pixels import read_mask
from samtune.data.registry_entry import Description
from samtune.data.splits import SPLITS

LAYOUT = ("images/*", "masks/*")
HOW_TO = (
    "images/<id>.jpg, with a mask masks/<id>.png, 0 and 255; or masks/<id>/NNN.png, one for each object (its class may "
    "follow: NNN_<class>.png)"
)
SPLITS_TEXT = "as the folders images/train, images/val, images/test (masks likewise) say; without them 60/20/20, seed 0"


def mask_folders(folder: Path, *, name: str) -> EntryDataset:
    """`images/<id>.jpg` with a mask `masks/<id>.png`, or a folder `masks/<id>/` of masks, one for each object.

    In such a folder a mask's name may end in its class: `003.png` has none, `003_paper.png` is a "paper". Masks are
    binary. Official splits are `images/test/<id>.jpg` with `masks/test/<id>/` (likewise train, val; where val is
    missing, it is a fifth of train); without such folders, 60/20/20. An image whose folder has no mask is left out.
    Raises `InputError` for an image without masks, masks without an image, and folders of other names.
    """
    images, masks = folder / "images", folder / "masks"
    parts = [path.name for path in folders(images)]
    strange = [path for path in folders(images) if path.name not in SPLITS]
    if parts:  # then all is in them
        strange += pictures(images) + pictures(masks) + [path for path in folders(masks) if path.name not in parts]
    if strange:
        raise InputError(f"{strange[0]}: the folders in images are {', '.join(SPLITS)}, and masks has the same alone")
    entries, dropped = [], 0
    for part in parts or [""]:
        root = masks / part
        places = by_name(folders(root) + pictures(root)) if root.is_dir() else {}
        for stem, image in by_name(pictures(images / part)).items():
            if stem not in places:
                raise InputError(f"image {image} has no masks: expected {root / stem}.png, or a folder {root / stem}")
            place = places.pop(stem)
            files = pictures(place) if place.is_dir() else [place]
            if files:
                id = f"{part}/{stem}" if part else stem  # numbers may begin at 1 in every part
                entries.append(Entry(id, image, partial(_read_masks, files, place.is_dir()), place, part))
            dropped += not files
        if places:
            spare = next(iter(places.values()))
            raise InputError(f"{spare} is the mask of no picture: expected one in {images / part}")
    return EntryDataset(name, entries, {"without objects": dropped})


def _read_masks(masks: list[Path], named: bool) -> Truth:
    names = tuple(path.stem.partition("_")[2] for path in masks) if named else ()
    return Truth((read_mask(path) for path in masks), names if any(names) else ())


def own_names(root: Path) -> list[str]:
    """The folders in `root` that can be opened as sets of one's own: letters, digits, `.`, `_` and `-` in their names,
    and folders `images` and `masks` in them."""
    found = [path for path in root.glob("*") if re.fullmatch(r"\w[\w.-]*", readable(path.name))]
    # `os.path`: another user's folder may not be looked into.
    return sorted(readable(one.name) for one in found if all(os.path.isdir(one / part) for part in ("images", "masks")))


def fingerprint(folder: Path) -> str:
    """Of the names and sizes of a set's files, hexadecimal."""
    places = [path for part in ("images", "masks") for path in walk(folder / part, "**/*") if path.is_file()]
    files = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in places)
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def describe_own(name: str) -> Description:
    """The description of a set of one's own."""
    return Description(
        name=name,
        factory=partial(mask_folders, name=name),
        title="your own: pictures with masks",
        domain="natural",
        licence="yours",
        citation="yours",
        how_to_get=f"put there {HOW_TO}",
        splits=SPLITS_TEXT,
        layout=LAYOUT,
    )
