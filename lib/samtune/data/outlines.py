"""Outlines as COCO's json holds them: polygons and run lengths, in the ways in which people's tools write them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from samtune.common.errors import InputError
from samtune.data.files import read_text

FARTHEST = 1e6  # of a corner from the picture's, in pixels: far beyond it, pycocotools ends the process


def read_json(path: Path, errors: str = "strict") -> Any:
    """Contents of a json file; raises `InputError` with path and reason. `errors` as `read_text` takes it."""
    try:
        return json.loads(read_text(path, errors))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no valid json (cut off in download?): {error}") from error


def read_listing(path: Path) -> tuple[list[dict], list[dict], dict[str, str]]:
    """Images, annotations and category names by id of a COCO-like file; names are {} where it has no categories.

    Raises `InputError` where it has no list of images or annotations, or one of them lacks the id that links them.
    """
    contents = read_json(path)
    found: list[list[dict]] = []
    for name, keys in (("images", ("id",)), ("annotations", ("image_id",)), ("categories", ("id", "name"))):
        rows = contents.get(name, [] if name == "categories" else None) if isinstance(contents, dict) else None
        if not isinstance(rows, list):
            raise InputError(f"{path} has no list {name!r}: is it a COCO file?")
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or any(row.get(key) is None for key in keys):
                raise InputError(f"{path}: number {number} of {name!r} has no {' or '.join(keys)}")
        found.append(rows)
    images, annotations, categories = found
    return images, annotations, {plain_id(row["id"]): str(row["name"]) for row in categories}


def plain_id(value: Any) -> str:
    """An id as tools write it (7, 7.0, "7", "007") as one text, so that ids of two types still match."""
    try:
        return str(int(value)) if float(value) == int(float(value)) else str(value)
    except (TypeError, ValueError, OverflowError):
        return str(value).strip()


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Does it mark a region of many objects, which is no object itself? (COCO's `iscrowd`: 1, or "1", or true)"""
    return str(annotation.get("iscrowd", 0)).lower() in ("1", "1.0", "true")


def class_name(annotation: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The category's name, "class 7" where the file does not name category 7."""
    number = plain_id(annotation.get("category_id"))
    return names.get(number, f"class {number}")


def read_outline(annotation: Mapping[str, Any], height: int, width: int, path: Path) -> np.ndarray:
    """COCO's `segmentation` as bool `(H, W)`; `InputError` with file and annotation id where it is damaged."""
    try:
        return decode(annotation.get("segmentation"), height, width)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        about = f"annotation {annotation.get('id', '(without id)')}"
        raise InputError(f"{path}: {about} cannot be read: {error or type(error).__name__}") from error


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A list of polygons, one polygon, or run lengths, plain or packed, as bool `(H, W)`.

    A polygon is a list of numbers or of corners. Polygons of fewer than three corners, which LVIS and COCO have a few
    of, count as nothing. Raises `ValueError` for what has no outline, odd numbers of coordinates, and run lengths of
    another size.
    """
    if not segmentation:
        raise ValueError("it has no outline (segmentation)")
    if isinstance(segmentation, dict):
        size = [int(side) for side in segmentation.get("size") or (height, width)]
        if size != [height, width]:
            found = "x".join(map(str, size[::-1]))
            raise ValueError(f"its run lengths are of {found} pixels, the image has {width}x{height}")
        return _decode_runs(segmentation["counts"], height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f"its outline is {type(segmentation).__name__}, not polygons or run lengths")
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if all(isinstance(corner, list) and len(corner) == 2 for corner in polygons):  # one polygon, as corners
        polygons = [polygons]
    polygons = [np.asarray(polygon, dtype=float).ravel() for polygon in polygons]
    for polygon in polygons:
        if len(polygon) % 2 or not (np.abs(polygon) <= FARTHEST).all():
            raise ValueError(f"a polygon of {len(polygon)} numbers is not x, y, x, y ... in pixels")
    polygons = [polygon.tolist() for polygon in polygons if len(polygon) >= 6]
    return polygons_to_mask(polygons, height, width) if polygons else np.zeros((height, width), dtype=bool)


def polygons_to_mask(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """COCO polygons `[[x1, y1, x2, y2, ...], ...]` of one object as bool `(H, W)`, rasterised by pycocotools."""
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return coco_mask.decode(encoded).astype(bool)


def _decode_runs(counts: list[int] | str | bytes, height: int, width: int) -> np.ndarray:
    """Run lengths, background first, column by column. pycocotools reads past the end where their sum is wrong."""
    runs = np.array(counts if isinstance(counts, list) else _unpack(counts))
    if (runs % 1 != 0).any():
        raise ValueError("its run lengths are not whole numbers")
    runs = runs.astype(np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its run lengths sum to {runs.sum()}, the image has {height * width} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _unpack(packed: str | bytes) -> list[int]:
    """COCO's packed run lengths: five bits a character, and from the fourth on the difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in packed.encode() if isinstance(packed, str) else packed:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its packed run lengths hold the character {chr(character)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last of a number
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its packed run lengths are cut off")
    return runs
