"""Industrial surfaces in the layout of their downloads: magnetic tiles, NEU-Seg steel strip, CrackForest pavement."""

import hashlib
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from samtune.common.errors import InputError
from samtune.data.entries import Entry, EntryDataset, Truth, binary_entry
from samtune.data.files import by_name, find
from samtune.data.listed import ListedDataset
from samtune.data.pixels import check_same_size, read_image, read_index_map, read_mask, read_mat
from samtune.data.registry_entry import Description, GitSource
from samtune.data.sample import Sample, stack_masks
from samtune.data.splits import by_split, make_split

DEFECTS = ("Blowhole", "Break", "Crack", "Fray", "Uneven")


# Of magnetic-tile. Each tile was photographed about six times in different light, with rising numbers (`exp1_num_7009`,
# `exp2_num_7023` ...), sometimes in two series. The images have no tile number, so images less than this many numbers
# apart count as one tile. Correlations show that this keeps all repeats together (the widest gap within a tile is
# 1,257).
TILE_GAP = 1300


def magnetic_tile(folder: Path, defect_free: bool = False) -> EntryDataset:
    """One mask for each image, of all its defect pixels (> 127); the class is its folder ("blowhole", "break" ...).

    There is no official split: 60/20/20 with seed 0, stratified by defect, whole tiles together: splitting by image
    would put the same defect into two splits. `defect_free=True` adds MT_Free (without masks) to the test split. Images
    with an empty mask (four in MT_Uneven) are left out and counted.
    """
    entries, free = [], []
    dropped = {"image without mask file": 0, "empty mask": 0}
    for kind in DEFECTS + (("Free",) if defect_free else ()):
        masks = by_name(find(folder, f"MT_{kind}/Imgs/*.png"))
        for name, image in by_name(find(folder, f"MT_{kind}/Imgs/*.jpg")).items():
            id = f"{kind.lower()}_{name}"
            if name not in masks:
                dropped["image without mask file"] += 1
            elif kind == "Free":
                free.append(Entry(id, image, part="test"))
            elif not read_mask(masks[name]).any():
                dropped["empty mask"] += 1
            else:
                entries.append(binary_entry(id, image, masks[name], kind.lower()))
    tile_of = tiles([entry.id for entry in entries], TILE_GAP)
    grouped = [replace(entry, group=tile_of.get(entry.id, "")) for entry in entries]
    return EntryDataset("magnetic-tile", grouped + free, dropped)


def tiles(ids: list[str], gap: int) -> dict[str, str]:
    """id -> tile, by the image numbers (`..._num_<number>`): a step of more than `gap` begins a new tile."""
    numbers = {id: int(match[1]) for id in ids if (match := re.search(r"num_(\d+)$", id))}
    found, tile, last = {}, "", -gap - 1
    for id in sorted(numbers, key=lambda id: (numbers[id], id)):
        if numbers[id] - last > gap:
            tile = f"tile {numbers[id]}"
        found[id], last = tile, numbers[id]
    return found


STEEL_DEFECTS = {1: "inclusion", 2: "patches", 3: "scratches"}


class NEUSeg(ListedDataset):
    """One mask for each class of defect in the image (index map: 1 inclusion, 2 patches, 3 scratches).

    Test is official. Validation is 20% of the official training part, with seed 0, stratified by the classes in the
    image; identical files stay together. Images without a defect or an annotation are left out and counted. Ids are
    "training_000001", because both parts use some numbers.
    """

    def __init__(self, folder: Path):
        self._paths: dict[str, tuple[Path, Path]] = {}
        classes, groups = {}, {}
        dropped = {"image without annotation": 0, "empty annotation": 0}
        for part in ("training", "test"):
            annotations = by_name(find(folder, f"annotations/{part}/*.png"))
            for name, image in by_name(find(folder, f"images/{part}/*.jpg")).items():
                if name not in annotations:
                    dropped["image without annotation"] += 1
                    continue
                id, annotation = f"{part}_{name}", annotations[name]
                present = np.flatnonzero(np.bincount(read_index_map(annotation).ravel())[1:]) + 1
                if len(present) == 0:
                    dropped["empty annotation"] += 1
                    continue
                self._paths[id] = image, annotation
                classes[id] = "+".join(str(number) for number in present)
                groups[id] = hashlib.sha256(image.read_bytes()).hexdigest()
        training = [id for id in self._paths if id.startswith("training_")]
        split_of = make_split(training, classes, groups, fractions=(0.8, 0.2), names=("train", "val"))
        split_of |= {id: "test" for id in self._paths if id not in split_of}
        super().__init__("neu-seg", by_split(split_of), dropped)

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        path, annotation = self._paths[id]
        image, labels = read_image(path), read_index_map(annotation)
        check_same_size(image, labels, path, annotation)
        present = [int(number) for number in np.unique(labels) if number > 0]
        if unknown := set(present) - set(STEEL_DEFECTS):
            raise InputError(f"{annotation} holds values {sorted(unknown)}; expected 0 (background) to 3 (scratches)")
        masks = stack_masks([labels == number for number in present], labels.shape)
        return Sample(id, self.name, split, image, masks, None, tuple(STEEL_DEFECTS[number] for number in present))


def crack_forest(folder: Path) -> EntryDataset:
    """One mask for each image, of all crack pixels: `Segmentation == 2`.

    3 is intact surface inside a net of cracks: background, as 1. 4 (100 to 440 pixels in five images) marks faint
    cracks, which most users of the set do not count: those pixels are ignored. There is no official split: 60/20/20
    with seed 0. Images without annotation (37 of 155) are left out.
    """
    images = by_name(find(folder, "image/*.jpg"))
    annotations = by_name(find(folder, "groundTruth/*.mat"))
    entries = [
        Entry(id, images[id], partial(_cracks, annotations[id]), annotations[id])
        for id in images.keys() & annotations.keys()
    ]
    without = {
        "image without annotation": len(images.keys() - annotations.keys()),
        "annotation without image": len(annotations.keys() - images.keys()),
    }
    return EntryDataset("crackforest", entries, without)


def _cracks(annotation: Path) -> Truth:
    labels = read_mat(annotation, "groundTruth")["Segmentation"][0, 0]
    return Truth([labels == 2], ("crack",), labels == 4)


DATASETS: dict[str, Description] = {
    description.name: description
    for description in (
        Description(
            name="magnetic-tile",
            factory=magnetic_tile,
            title="MTD: surface defects of magnetic tiles, 5 kinds",
            domain="industrial",
            licence='none stated; "It is welcomed to use our dataset", cite the paper',
            citation="Huang, Qiu, Yuan: Surface defect saliency of magnetic tile. The Visual Computer 2020",
            how_to_get="git clone (the repository's name ends in a dot)",
            splits="none official: seeded 60/20/20 over 388 pictures, stratified by defect, whole tiles together",
            source=GitSource(
                "https://github.com/abin24/Magnetic-tile-defect-datasets.", "cc4eb530b57b9cb7225bf76023873043ffd50655"
            ),
            layout=tuple(f"MT_{kind}/Imgs/*.jpg" for kind in DEFECTS),
            images=388,
            committed_pictures=True,
        ),
        Description(
            name="neu-seg",
            factory=NEUSeg,
            title="NEU-Seg: defects of hot-rolled steel strip, 3 classes",
            domain="industrial",
            licence="none stated; cite the authors",
            citation="Dong, Song, He, Xu, Yan, Meng: PGA-Net: Pyramid Feature Fusion and Global Context Attention "
            "Network for Automated Surface Defect Detection. IEEE Transactions on Industrial Informatics 2020",
            how_to_get="git clone",
            splits="official test; validation is a seeded 20% of the official training part, stratified by class",
            source=GitSource("https://github.com/DHW-Master/NEU_Seg", "da8cebedb292beca4d101db8c442d5706fac3bfe"),
            layout=tuple(f"{kind}/{part}" for kind in ("images", "annotations") for part in ("training", "test")),
            images=4470,
        ),
        Description(
            name="crackforest",
            factory=crack_forest,
            title="CrackForest: cracks in pavement",
            domain="industrial",
            licence="non-commercial research only",
            citation="Shi, Cui, Qi, Meng, Chen: Automatic road crack detection using random structured forests. "
            "IEEE Transactions on Intelligent Transportation Systems 2016",
            how_to_get="git clone",
            splits="none official: seeded 60/20/20",
            source=GitSource(
                "https://github.com/cuilimeng/CrackForest-dataset", "ed57c2d96754e6c7d105805cd29aeeb3a799f267"
            ),
            layout=("image/*.jpg", "groundTruth/*.mat"),
            images=118,
        ),
    )
}
