"""Annotations in json: COCO 2017, LVIS (polygons and run-length codes by image) and SA-1B (one file an image)."""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np
from tqdm.auto import tqdm

from samtune.common.errors import InputError
from samtune.data.entries import Entry, EntryDataset, Truth, content_root
from samtune.data.files import find, pictures, readable
from samtune.data.outlines import class_name, is_crowd, plain_id, read_json, read_listing, read_outline
from samtune.data.pixels import check_same_size, image_size
from samtune.data.splits import hashed_validation


def read_annotations(path: Path, annotations: list[dict], image: dict, file: Path, names: dict[str, str]) -> Truth:
    """The annotations of one image: one mask for each object; `iscrowd` regions are ignored where no object is."""
    height, width = image_size(file)
    if listed := [image[side] for side in ("height", "width") if image.get(side)]:
        try:
            tall, wide = (int(float(side)) for side in listed)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: image {image['id']} is given the size {listed}, not height and width") from error
        check_same_size((height, width), (tall, wide), file, path)
    objects = [one for one in annotations if not is_crowd(one)]
    crowd = np.zeros((height, width), dtype=bool)
    for one in annotations:
        if is_crowd(one):
            crowd |= read_outline(one, height, width, path)
    for one in objects if crowd.any() else ():
        crowd &= ~read_outline(one, height, width, path)
    masks = (read_outline(one, height, width, path) for one in objects)
    return Truth(masks, tuple(class_name(one, names) for one in objects), crowd)


def list_entries(
    path: Path, images: Path, part: str, folders: tuple[str, ...] | None, skipped: list[str] | None = None
) -> tuple[list[Entry], Counter]:
    """Entries of one COCO-like json file, and how many images were left out, by reason.

    Ids are `<folder>/<stem>`. Images without an object are left out.

    Args:
        path: the json file.
        images: folder of the images.
        part: the official split.
        folders: LVIS only: the image is in a folder of `images`, named at the end of `coco_url`; only these folders are
            used.
        skipped: gets a line for each image that is not there, which is else an `InputError`.
    """
    listed, all_annotations, names = read_listing(path)
    annotations: dict[str, list[dict]] = defaultdict(list)
    for annotation in all_annotations:
        annotations[plain_id(annotation["image_id"])].append(annotation)
    present: dict[Path, dict[str, Path]] = {}
    entries, dropped = [], Counter()
    for image in listed:
        found = annotations.pop(plain_id(image["id"]), [])
        named = image.get("coco_url" if folders is not None else "file_name")
        if not named:
            raise InputError(f"{path}: image {image['id']} has no file name")
        parts = PureWindowsPath(str(named)).parts  # takes both kinds of slash
        place = images / parts[-2] if folders is not None else images.joinpath(*parts[:-1])
        if folders is None and not place.is_dir():  # the name repeats the folder: "val2017/1.jpg" in val2017
            place = images
        if folders is not None and place.name not in folders:
            dropped[f"in {place.name}"] += 1
            continue
        if all(is_crowd(one) for one in found):
            dropped["without objects"] += 1
            continue
        if place not in present:
            present[place] = {_file_key(child.name): child for child in pictures(place)}
        file = present[place].get(_file_key(parts[-1]))
        if file is None:
            absent = f"{path} lists an image that is not there: expected {place / parts[-1]}"
            if skipped is None:
                raise InputError(absent)
            skipped.append(absent)
            dropped["bad"] += 1
            continue
        read = partial(read_annotations, path, found, image, file, names)
        entries.append(Entry(f"{place.name}/{readable(file.stem)}", file, read, path, part))
    dropped["annotation of an image that is not listed"] += sum(map(len, annotations.values()))
    return entries, dropped


def _file_key(name: str) -> str:
    """The name by which a file is found: readable, with ".JPG" as ".jpg"."""
    stem, dot, suffix = readable(name).rpartition(".")
    return stem + dot + suffix.lower()


def coco2017(folder: Path, *, train: bool = False) -> EntryDataset:
    """`annotations/instances_{train,val}2017.json`, `{train,val}2017/NNNNNNNNNNNN.jpg`.

    As in ASAM, val2017 is the test split (test2017 has no public labels). `train=True` also opens train2017 (a json
    file of 450 MB), of which a fifth is validation.
    """
    root = content_root(folder, "annotations/instances_val2017.json")
    entries, dropped = [], Counter()
    for year, part in (("val2017", "test"), *([("train2017", "train")] if train else [])):
        found, left = list_entries(root / "annotations" / f"instances_{year}.json", root / year, part, None)
        entries += found
        dropped += left
    return EntryDataset("coco2017", entries, dropped)


def own_pictures(images: Path, annotations: Path, skip_bad: bool = False) -> tuple[EntryDataset, list[str]]:
    """A folder of the user's images with one COCO file, all in the training split; and one line for each image that
    cannot be used, which is an `InputError` without `skip_bad`.
    """
    skipped: list[str] = []
    entries, dropped = list_entries(annotations, images, "train", None, skipped if skip_bad else None)
    entries = [replace(one, id=_place(one.image, images)) for one in entries]
    dataset, good = EntryDataset("pictures", entries, dropped, hold_out=False), [] if skip_bad else entries
    for entry in tqdm(entries, "read masks", mininterval=2, delay=5, leave=False, disable=None) if skip_bad else ():
        try:
            dataset.load(entry.id)
            good.append(entry)
        except InputError as error:
            skipped.append(str(error))
            dropped["bad"] += 1
    if not good:
        reasons = [f"{count} {reason}" for reason, count in dropped.items() if count] + skipped
        raise InputError(f"no picture left of {images} with {annotations}: {'; '.join(reasons) or 'it lists none'}")
    return EntryDataset("pictures", good, dropped, hold_out=False), skipped


def _place(image: Path, folder: Path) -> str:
    """Where an image is in a folder, without the file type."""
    inside = image.relative_to(folder) if image.is_relative_to(folder) else image
    return readable(inside.with_suffix("").as_posix())


def lvis(
    folder: Path, *, train: bool = False, image_folders: tuple[str, ...] = ("train2017", "val2017")
) -> EntryDataset:
    """`lvis_v1_{train,val}.json` for COCO's images in `train2017/` and `val2017/`, here or in `../coco2017`.

    lvis_v1_val is the test split; three quarters of its images are in train2017. `image_folders=["val2017"]` uses only
    the others, as ASAM's script does where it finds no more. `neg_category_ids`, classes that are known to be absent,
    are not used. `train=True` also opens lvis_v1_train.
    """
    root = content_root(folder, "lvis_v1_val.json")
    places = (folder, root, folder.parent / "coco2017")
    images = next((place for place in places if (place / "val2017").is_dir()), folder)
    entries, dropped = [], Counter()
    for year, part in (("val", "test"), *([("train", "train")] if train else [])):
        found, left = list_entries(root / f"lvis_v1_{year}.json", images, part, tuple(image_folders))
        entries += found
        dropped += left
    return EntryDataset("lvis", entries, dropped)


def sa_1b(folder: Path, *, part: str = "") -> EntryDataset:
    """`sa_NNNNNN/sa_N.jpg` with `sa_N.json` (packed run lengths), as the archives unpack; or the files directly here.

    `part`: one archive, such as "sa_000000" (which ASAM uses); "": all that are there. A hash of the name chooses 5%
    for validation, the rest is train; there is no test split and there are no classes.
    """
    places = [folder / part] if part else [folder, *(path for path in find(folder, "sa_*") if path.is_dir())]
    images = [image for place in places for image in find(place, "sa_*.jpg")]
    if not images:
        raise InputError(f"nothing found at {places[-1] / 'sa_*.jpg'}")
    described = {path for place in places for path in find(place, "sa_*.json")}
    parts = hashed_validation(image.stem for image in images)
    entries = []
    for image in images:
        path = image.with_suffix(".json")
        if path not in described:
            raise InputError(f"image {image} has no masks: expected {path}")
        entries.append(Entry(image.stem, image, partial(_read_sa_1b, path), path, parts[image.stem]))
    return EntryDataset("sa-1b", entries, hold_out=False)


def _read_sa_1b(path: Path) -> Truth:
    contents = read_json(path)
    try:
        height, width = int(contents["image"]["height"]), int(contents["image"]["width"])
        annotations = list(contents["annotations"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no file of SA-1B: no image size or annotations") from error
    return Truth(read_outline(annotation, height, width, path) for annotation in annotations)
