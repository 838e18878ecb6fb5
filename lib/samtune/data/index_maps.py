"""Natural sets whose objects are numbered pixel by pixel: ADE20K, PASCAL VOC 2012, Cityscapes."""

from functools import partial
from pathlib import Path

import numpy as np

from samtune.common.errors import InputError
from samtune.data.entries import Entry, EntryDataset, Truth, content_root
from samtune.data.files import find, folders, pictures, read_text
from samtune.data.outlines import read_json
from samtune.data.pixels import read_image, read_index_map


def ade20k(folder: Path) -> EntryDataset:
    """The full release: `.../{training,validation}/<scene>/.../ADE_*.jpg` with `ADE_*_seg.png` beside it.

    The SceneParse150 version does not work, as it has no instances. As in ASAM, validation is the test split, and both
    things and stuff are objects. Class names come from the `.json` files of the 2021 release; with that of 2016 they
    are "class N".
    """
    entries = []
    for image in find(folder, "**/ADE_*.jpg"):
        steps = image.relative_to(folder).parts
        level = next((index for index, step in enumerate(steps) if step in ("training", "validation")), None)
        if level is None:
            continue
        path = image.with_name(f"{image.stem}_seg.png")
        if not path.is_file():
            raise InputError(f"image {image} has no masks: expected {path}")
        part = "train" if steps[level] == "training" else "test"
        scene = steps[level + 1] if level + 2 < len(steps) else ""
        entries.append(Entry(image.stem, image, partial(_read_ade20k, path), path, part, stratum=scene))
    if not entries:
        raise InputError(f"nothing found at {folder / '**/validation/**/ADE_*.jpg'}")
    return EntryDataset("ade20k", entries)


def _read_ade20k(path: Path) -> Truth:
    """The class is R // 10 * 256 + G, and B tells instances apart; class 0 is unlabelled."""
    red, green, blue = np.moveaxis(read_image(path).astype(np.int64), -1, 0)
    code = (red // 10 * 256 + green) * 256 + blue
    named = path.with_name(path.name.removesuffix("_seg.png") + ".json")
    names = {}
    if named.is_file():
        described = read_json(named, "replace")  # names alone are from it: not worth an image
        names = {int(one["name_ndx"]): one["name"] for one in described["annotation"]["object"]}
    codes = [int(value) for value in np.unique(code) if value >= 256]
    return Truth((code == value for value in codes), tuple(names.get(v // 256, f"class {v // 256}") for v in codes))


VOC_NAMES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
).split(",")
VOC_VOID = 255


def voc2012(folder: Path) -> EntryDataset:
    """`VOCdevkit/VOC2012/{JPEGImages,SegmentationObject,SegmentationClass,ImageSets/Segmentation}`.

    As in ASAM, val is the test split (the official test has no public labels). The masks' palette indices number the
    objects; 255, a border of about 5 pixels around each, is void and ignored.
    """
    root = content_root(folder, "SegmentationObject").resolve()
    entries = []
    for name, part in (("train", "train"), ("val", "test")):
        listing = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        for id in read_text(listing).split():
            image, path = root / "JPEGImages" / f"{id}.jpg", root / "SegmentationObject" / f"{id}.png"
            classes = root / "SegmentationClass" / f"{id}.png"
            for due in (image, path, classes):
                if not due.is_file():
                    raise InputError(f"{listing} lists {id}: expected {due}")
            entries.append(Entry(id, image, partial(_read_voc, path, classes), path, part))
    return EntryDataset("voc2012", entries)


def _read_voc(path: Path, classes: Path) -> Truth:
    objects, kinds = read_index_map(path), read_index_map(classes)
    values = [value for value in np.unique(objects) if value not in (0, VOC_VOID)]
    # The class map's void rim may reach a pixel into an object: the commonest class is the object's.
    counts = [np.bincount(kinds[(objects == value) & (kinds != VOC_VOID)], minlength=1) for value in values]
    masks = (objects == value for value in values)
    return Truth(masks, tuple(VOC_NAMES[count.argmax()] for count in counts), objects == VOC_VOID)


CITYSCAPES_THINGS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 29: "caravan", 30: "trailer"} | {
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
CITYSCAPES_STUFF = dict(
    enumerate(
        "road,sidewalk,parking,rail track,building,wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,"
        "traffic sign,vegetation,terrain,sky".split(","),
        start=7,
    )
)


def cityscapes(folder: Path, *, stuff: bool = False) -> EntryDataset:
    """`leftImg8bit/<part>/<city>/*_leftImg8bit.png`, `gtFine/<part>/<city>/*_gtFine_instanceIds.png`.

    As in ASAM, val is the test split (the official test has no public labels); a fifth of train, in whole cities, is
    validation. Objects are the numbered instances. Ignored are void (ids 0 to 6: ego vehicle, out of view, unlabelled
    ...) and groups of things that could not be separated (a thing's id without number). With `stuff`, each stuff class
    of an image (road, sky ...) is one object too, as in ASAM's script.
    """
    root = content_root(folder, "gtFine")
    entries = []
    for name, part in (("train", "train"), ("val", "test")):
        for city in folders(root / "leftImg8bit" / name):
            for image in pictures(city):
                id = image.stem.removesuffix("_leftImg8bit")
                path = root / "gtFine" / name / city.name / f"{id}_gtFine_instanceIds.png"
                if not path.is_file():
                    raise InputError(f"image {image} has no masks: expected {path}")
                entries.append(Entry(id, image, partial(_read_cityscapes, path, stuff), path, part, group=city.name))
    return EntryDataset("cityscapes", entries)


def _read_cityscapes(path: Path, stuff: bool) -> Truth:
    """Values are class id * 1000 + number for instances, else the class id alone."""
    numbered = read_index_map(path)
    values, names = [], []
    for value in np.unique(numbered):
        name = CITYSCAPES_THINGS.get(value // 1000) or (CITYSCAPES_STUFF.get(value) if stuff else None)
        if name:
            values.append(value)
            names.append(name)
    masks = (numbered == value for value in values)
    return Truth(masks, tuple(names), (numbered < 7) | np.isin(numbered, list(CITYSCAPES_THINGS)))
