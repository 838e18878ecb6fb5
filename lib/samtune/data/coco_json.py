"""Annotations in json: COCO 2017, LVIS (polygons and run-length codes by image) and SA-1B (one file an image)."""

import json
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from samtune.common.errors import InputError
from samtune.data.entries import Entry, EntryDataset, Truth, content_root
from samtune.data.natural import polygons_to_mask
from samtune.data.splits import hashed_validation


def read_json(path: Path) -> Any:
    """Contents of a json file; raises `InputError` with path and reason."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"no such file: {path}") from error
    except ValueError as error:
        raise InputError(f"{path} is no valid json (cut off in download?): {error}") from error


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """COCO's `segmentation` as bool `(H, W)`: a list of polygons, or run lengths plain (`list`) or packed (`str`).

    Polygons of fewer than three corners, which LVIS and COCO have a few of, count as nothing.
    """
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        return polygons_to_mask(polygons, height, width) if polygons else np.zeros((height, width), dtype=bool)
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation).astype(bool)


def read_annotations(annotations: list[dict], height: int, width: int, names: dict[int, str]) -> Truth:
    """The annotations of one image: one mask an object, `iscrowd` regions as `ignore` where no object lies."""
    objects = [one for one in annotations if not one.get("iscrowd")]
    masks = [decode(one["segmentation"], height, width) for one in objects]
    crowd = np.zeros((height, width), dtype=bool)
    for one in annotations:
        if one.get("iscrowd"):
            crowd |= decode(one["segmentation"], height, width)
    for mask in masks:
        crowd &= ~mask
    return Truth(masks, tuple(names[one["category_id"]] for one in objects), crowd)


def read_listing(path: Path, images: Path, part: str, folders: tuple[str, ...] | None) -> tuple[list[Entry], Counter]:
    """Entries of one COCO-like json file, and what was dropped by reason.

    Image files lie in `images`, or, for LVIS, in the folder of `images` that the end of `coco_url` names, which must
    be one of `folders`. Ids are `<folder>/<stem>`. Images without an object are dropped.
    """
    listing = read_json(path)
    names = {category["id"]: category["name"] for category in listing["categories"]}
    annotations: dict[int, list[dict]] = defaultdict(list)
    for annotation in listing["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    present: dict[Path, set[str]] = {}
    entries, dropped = [], Counter()
    for image in listing["images"]:
        found = annotations[image["id"]]
        file = images / image["file_name"] if folders is None else images.joinpath(*image["coco_url"].split("/")[-2:])
        if folders is not None and file.parent.name not in folders:
            dropped[f"in {file.parent.name}"] += 1
            continue
        if all(one.get("iscrowd") for one in found):
            dropped["without objects"] += 1
            continue
        if file.parent not in present:
            present[file.parent] = {child.name for child in file.parent.glob("*.jpg")}
        if file.name not in present[file.parent]:
            raise InputError(f"{path} lists an image that is not there: expected {file}")
        read = partial(read_annotations, found, image["height"], image["width"], names)
        entries.append(Entry(f"{file.parent.name}/{file.stem}", file, read, path, part))
    return entries, dropped


def coco2017(folder: Path, *, train: bool = False) -> EntryDataset:
    """`annotations/instances_{train,val}2017.json`, `{train,val}2017/NNNNNNNNNNNN.jpg`.

    val2017 is the test part (as in ASAM; the labels of test2017 are not public). `train=True` opens train2017 too
    (a json file of 450 MB), a fifth of it for validation.
    """
    root = content_root(folder, "annotations/instances_val2017.json")
    entries, dropped = [], Counter()
    for year, part in (("val2017", "test"), *([("train2017", "train")] if train else [])):
        found, left = read_listing(root / "annotations" / f"instances_{year}.json", root / year, part, None)
        entries += found
        dropped += left
    return EntryDataset("coco2017", entries, dropped)


def lvis(
    folder: Path, *, train: bool = False, image_folders: tuple[str, ...] = ("train2017", "val2017")
) -> EntryDataset:
    """`lvis_v1_{train,val}.json` over COCO's images, in `train2017/` and `val2017/` here or in `../coco2017`.

    lvis_v1_val is the test part; three quarters of its images are in train2017. `image_folders=["val2017"]` keeps
    the others alone, as ASAM's script does where it finds no more. `neg_category_ids` name classes known to be
    absent: nothing to prompt for. `train=True` opens lvis_v1_train too.
    """
    root = content_root(folder, "lvis_v1_val.json")
    places = (folder, root, folder.parent / "coco2017")
    images = next((place for place in places if (place / "val2017").is_dir()), folder)
    entries, dropped = [], Counter()
    for year, part in (("val", "test"), *([("train", "train")] if train else [])):
        found, left = read_listing(root / f"lvis_v1_{year}.json", images, part, tuple(image_folders))
        entries += found
        dropped += left
    return EntryDataset("lvis", entries, dropped)


def sa_1b(folder: Path, *, part: str = "") -> EntryDataset:
    """`sa_NNNNNN/sa_N.jpg` with `sa_N.json` (packed run lengths), as the archives unpack; or the pairs directly here.

    `part`: one archive, such as "sa_000000" (what ASAM uses); "" takes all that are there. Train and 5% validation
    by hash of the name; no test part. Classes are not annotated.
    """
    places = [folder / part] if part else [folder, *sorted(folder.glob("sa_*/"))]
    images = [image for place in places for image in sorted(place.glob("sa_*.jpg"))]
    if not images:
        raise InputError(f"nothing found at {places[-1] / 'sa_*.jpg'}")
    described = {path for place in places for path in place.glob("sa_*.json")}
    parts = hashed_validation(image.stem for image in images)
    entries = []
    for image in images:
        path = image.with_suffix(".json")
        if path not in described:
            raise InputError(f"image {image} has no masks: expected {path}")
        entries.append(Entry(image.stem, image, partial(_read_sa_1b, path), path, parts[image.stem]))
    return EntryDataset("sa-1b", entries, hold_out=False)


def _read_sa_1b(path: Path) -> Truth:
    codes = [annotation["segmentation"] for annotation in read_json(path)["annotations"]]
    return Truth([decode(code, *code["size"]) for code in codes])
