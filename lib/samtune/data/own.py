"""Pictures and masks in plain folders, opened by the folder's name: sets of your own, and ASAM's in this layout."""

import re
from functools import partial
from pathlib import Path

from samtune.common.errors import InputError
from samtune.data.entries import Entry, EntryDataset, Truth
from samtune.data.files import by_name, folders, pictures, readable
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
    """
    parts = [part for part in SPLITS if (folder / "images" / part).is_dir()]
    entries, dropped = [], 0
    for part in parts or [""]:
        root = folder / "masks" / part
        places = by_name(folders(root) + pictures(root))
        for image in pictures(folder / "images" / part):
            stem = readable(image.stem)
            if stem not in places:
                raise InputError(f"image {image} has no masks: expected {root / stem}.png, or a folder {root / stem}")
            place = places[stem]
            masks = pictures(place) if place.is_dir() else [place]
            if masks:
                id = f"{part}/{stem}" if part else stem  # numbers may begin at 1 in every part
                entries.append(Entry(id, image, partial(_read_masks, masks, place.is_dir()), place, part))
            dropped += not masks
    return EntryDataset(name, entries, {"without objects": dropped})


def _read_masks(masks: list[Path], named: bool) -> Truth:
    names = tuple(path.stem.partition("_")[2] for path in masks) if named else ()
    return Truth((read_mask(path) for path in masks), names if any(names) else ())


def own_names(root: Path) -> list[str]:
    """The folders in `root` that can be opened as sets of one's own: letters, digits, `.`, `_` and `-` in their names,
    and folders `images` and `masks` in them."""
    found = [path for path in root.glob("*") if re.fullmatch(r"\w[\w.-]*", path.name)]
    return sorted(one.name for one in found if all((one / part).is_dir() for part in ("images", "masks")))


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
