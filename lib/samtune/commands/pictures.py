"""The user's images: opened, a part held out, and all looked through once before the work begins."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from samtune.commands.settings import TuneSettings
from samtune.common.errors import InputError, counted
from samtune.data.coco_json import own_pictures
from samtune.data.duplicates import DuplicatePair, Fingerprint, duplicates_across_splits, fingerprint
from samtune.data.folder import BadPair, FolderDataset
from samtune.data.listed import ListedDataset
from samtune.data.sample import Dataset, Sample, target_masks
from samtune.data.splits import by_split, make_split
from samtune.sam.build import Sam
from samtune.sam.preprocess import Preprocess


def open_pictures(
    images: Path, masks: Path, settings: TuneSettings, skip_bad: bool
) -> tuple[ListedDataset, Sequence[str]]:
    """A folder of images and one of masks (or a COCO file) as a data set, and a line for each bad file left out.

    Raises `InputError` for the first bad file, unless such are skipped.
    """
    if masks.suffix.lower() == ".json":
        if (settings.mask_coding, settings.void, settings.mask_suffix) != ("binary255", None, ""):
            raise InputError(
                f"{masks} is a COCO file: mask coding, void and mask suffix are of masks that are pictures"
            )
        try:
            return own_pictures(images, masks, skip_bad)
        except InputError as error:
            raise error if skip_bad else InputError(f"{error} (--skip-bad leaves bad files out)") from error
    options = (settings.mask_coding, settings.void, skip_bad, "train", "pictures", settings.target)
    try:
        pictures = FolderDataset(images, masks, *options, settings.mask_suffix)
    except BadPair as error:
        raise InputError(f"{error} (--skip-bad leaves bad files out and lists them)") from error
    return pictures, pictures.skipped


class HeldOut(ListedDataset):
    """The training images of a set, split: a fifth, drawn with seed 0, is "val", the rest is "train"."""

    def __init__(self, pictures: Dataset) -> None:
        split_of = make_split(pictures.ids("train"), fractions=(0.8, 0.2), names=("train", "val"))
        super().__init__(pictures.name, by_split(split_of), pictures.dropped)
        if not self.ids("val"):
            raise InputError(f"{len(split_of)} pictures with a mask are too few to hold a fifth out: 3 are needed")
        self._pictures = pictures

    def load(self, id: str) -> Sample:
        """Read one picture and its masks."""
        return replace(self._pictures.load(id), split=self.split_of(id))


@dataclass(frozen=True)
class Contents:
    """What is in the images.

    Fields:
        digest: 12 hexadecimal digits, a hash of names, splits, pixels and masks: what tuned weights depend on.
        objects: number of objects to tune on (images, with target "union").
        small: number of those smaller than a pixel of the model's masks.
        lost: number of those that have no pixel left at the model's size.
        alike: pictures to tune on and held-out ones that show the same.
    """

    digest: str
    objects: int
    small: int
    lost: int
    alike: list[DuplicatePair]


def look_through(data: ListedDataset, settings: TuneSettings, sam: Sam) -> Contents:
    """Load every picture once. Raises `InputError` naming the file that cannot be read."""
    digest, preprocess = hashlib.sha256(), Preprocess(sam.image_size, settings.preprocess)
    objects = small = lost = 0
    prints: dict[str, Fingerprint] = {}
    parts = [(split, id) for split in ("train", "val") for id in data.ids(split)]
    for split, id in tqdm(parts, "look through", mininterval=2, leave=False, disable=None):
        sample = data.load(id)
        digest.update(f"{split}/{id} {sample.image.shape} {len(sample.masks)}".encode())
        digest.update(sample.image.tobytes())
        prints[id] = fingerprint(sample.image)
        for mask in chain(sample.masks, [] if sample.ignore is None else [sample.ignore]):
            digest.update(np.packbits(mask).tobytes())
        for window, share in preprocess.shares(target_masks(sample, settings.target)) if split == "train" else ():
            square = np.zeros((1, sam.image_size, sam.image_size), np.float32)
            square[0][window] = share
            objects += 1
            lost += not (share > 0.5).any()
            small += not (F.adaptive_avg_pool2d(torch.from_numpy(square), sam.mask_size) > 0.5).any()
    alike = duplicates_across_splits(prints, {id: split for split, id in parts})
    return Contents(digest.hexdigest()[:12], objects, small, lost, alike)


def alike_text(contents: Contents) -> str:
    """One line about held-out pictures that show what others teach; "" where there are none."""
    if not contents.alike:
        return ""
    first = contents.alike[0]
    return (
        f"warning: {counted(len(contents.alike), 'pair')} of a picture to tune on and a held-out one look alike, such "
        f"as {first.first} and {first.second} (frames of a video, repeated shots?): the scores below are too good"
    )


def small_objects_text(contents: Contents, sam: Sam) -> str:
    """One line about objects that are too small for the model; "" where there are none."""
    if not contents.small:
        return ""
    side, objects = sam.mask_size, counted(contents.objects, "object")
    return (
        f"warning: {contents.small} of {objects} to tune on are smaller than a pixel of the model's {side}x{side} "
        f"masks, and {contents.lost} vanish at its {sam.image_size} pixels and teach nothing: cut pictures into parts"
    )
