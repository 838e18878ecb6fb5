"""Natural images in the layout of their downloads: BSDS500, COCO128-seg, Clothing Co-Parsing, Car Parts."""

from pathlib import Path

import cv2
import numpy as np

from samtune.common.errors import InputError
from samtune.data.files import by_name, find, read_text
from samtune.data.listed import ListedDataset
from samtune.data.outlines import class_name, plain_id, polygons_to_mask, read_listing, read_outline
from samtune.data.pixels import check_same_size, read_image, read_mat
from samtune.data.registry_entry import Description, GitSource, LinkSource
from samtune.data.sample import Sample, stack_masks
from samtune.data.splits import SPLITS, by_split, hashed_validation


class BSDS500(ListedDataset):
    """Objects are the connected regions of one annotator's segmentation, with the background, which has no label there.

    Official splits. `annotator` counts from 0; an image has 4 to 9 (`annotators(id)`).
    """

    def __init__(self, folder: Path, annotator: int = 0):
        self._folder = folder / "BSDS500" / "data"
        self._annotator = annotator
        self._truths = {split: by_name(find(self._folder, f"groundTruth/{split}/*.mat")) for split in SPLITS}
        self._images = {split: by_name(find(self._folder, f"images/{split}/*.jpg")) for split in SPLITS}
        missing = sum(len(self._truths[split].keys() ^ self._images[split].keys()) for split in SPLITS)
        both = {split: self._truths[split].keys() & self._images[split].keys() for split in SPLITS}
        super().__init__("bsds500", both, {"image or ground truth missing": missing})

    def annotators(self, id: str) -> int:
        """The number of people who segmented this image."""
        return self._truth(id)[1].size

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        path, truth = self._truth(id)
        if not 0 <= self._annotator < truth.size:
            raise InputError(f"{path} has annotators 0 to {truth.size - 1}, asked for {self._annotator}")
        labels = truth.flat[self._annotator]["Segmentation"][0, 0]
        image_path = self._images[split][id]
        image = read_image(image_path)
        check_same_size(image, labels, image_path, path)
        return Sample(id, self.name, split, image, connected_regions(labels))

    def _truth(self, id: str) -> tuple[Path, np.ndarray]:
        path = self._truths[self.split_of(id)][id]
        return path, read_mat(path, "groundTruth")


def connected_regions(labels: np.ndarray) -> np.ndarray:
    """The 8-connected regions of equal value in an integer map `(H, W)`: bool `(N, H, W)`, in the order of values.

    With 8 neighbours each label of BSDS500's annotators is one region.
    """
    regions = []
    for value in np.unique(labels):
        count, numbered = cv2.connectedComponents((labels == value).astype(np.uint8), connectivity=8)
        regions += [numbered == number for number in range(1, count)]
    return stack_masks(regions, labels.shape)


class COCO128(ListedDataset):
    """One mask for each line of the label file. All images are "test", because nothing may be trained on them.

    A line is `class x1 y1 x2 y2 ...`, with coordinates in [0, 1]. An object in several parts is one polygon with thin
    bridges, as Ultralytics stores it. Images without a label file have no masks; label files without an image are left
    out and counted.
    """

    def __init__(self, folder: Path):
        self._images = by_name(find(folder, "coco128-seg/images/train2017/*.jpg"))
        self._labels = by_name(find(folder, "coco128-seg/labels/train2017/*.txt"))
        orphans = self._labels.keys() - self._images.keys()
        super().__init__("coco128-seg", {"test": sorted(self._images)}, {"label file without image": len(orphans)})

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        image = read_image(self._images[id])
        height, width = image.shape[:2]
        path = self._labels.get(id)
        masks, names = [], []
        for number, line in enumerate(read_text(path).splitlines() if path else [], start=1):
            fields = line.split()
            if not fields:
                continue
            try:
                name = dict(enumerate(COCO_NAMES))[int(fields[0])]
                corners = np.array(fields[1:], dtype=float).reshape(-1, 2)
                if len(corners) < 3 or not np.isfinite(corners).all():
                    raise ValueError("fewer than three corners, or no numbers")
            except (ValueError, KeyError) as error:
                raise InputError(f"{path}, line {number}: not a class number and three or more corners") from error
            masks.append(polygons_to_mask([(corners * (width, height)).ravel().tolist()], height, width))
            names.append(name)
        return Sample(id, self.name, split, image, stack_masks(masks, (height, width)), object_class=tuple(names))


class ClothingCoParsing(ListedDataset):
    """One mask for each garment or body label (not for null). `whole=True` adds the person, their union, as the last
    mask.

    A hash of the name chooses 5% for validation, the rest is train; there is no test split.
    """

    def __init__(self, folder: Path, whole: bool = False):
        self._photos = by_name(find(folder, "photos/*.jpg"))
        self._maps = by_name(find(folder, "annotations/pixel-level/*.mat"))
        self._whole = whole
        self._label_list = folder / "label_list.mat"
        self._label_names: list[str] | None = None
        annotated, photos = self._maps.keys(), self._photos.keys()
        without = {"photo without pixel-level annotation": len(photos - annotated)}
        without["annotation without photo"] = len(annotated - photos)
        super().__init__("ccp", by_split(hashed_validation(annotated & photos)), without)

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        if self._label_names is None:
            self._label_names = [str(name[0]) for name in read_mat(self._label_list, "label_list").ravel()]
        path, photo = self._maps[id], self._photos[id]
        labels = read_mat(path, "groundtruth")
        image = read_image(photo)
        check_same_size(image, labels, photo, path)
        present = [int(value) for value in np.unique(labels) if value > 0]
        masks = [labels == value for value in present]
        names = [self._label_names[value] for value in present]
        if self._whole and masks:
            masks.append(labels > 0)
            names.append("person")
        return Sample(id, self.name, split, image, stack_masks(masks, labels.shape), object_class=tuple(names))


class CarParts(ListedDataset):
    """One mask for each COCO annotation (a part in several pieces, such as both wheels of a side, is one mask).

    Test is official; a hash of the name ("train1") chooses 5% of the training set for validation.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._images: dict[str, tuple[str, dict]] = {}
        self._annotations: dict[str, list[dict]] = {}
        self._names: dict[str, dict[str, str]] = {}
        split_of = {}
        missing = 0
        for part in ("trainingset", "testset"):
            ids = self._read_part(part)
            present = {id for id in ids if (folder / part / self._images[id][1]["path"]).is_file()}
            missing += len(ids) - len(present)
            split_of |= hashed_validation(present) if part == "trainingset" else dict.fromkeys(present, "test")
        super().__init__("car-parts", by_split(split_of), {"annotated image missing": missing})

    def _read_part(self, part: str) -> list[str]:
        path = self._folder / part / "annotations.json"
        images, annotations, names = read_listing(path)
        by_number = {}
        for image in images:
            if lacks := [key for key in ("file_name", "path", "height", "width") if not image.get(key)]:
                raise InputError(f"{path}: image {image['id']} has no {lacks[0]}")
            name = Path(image["file_name"]).stem
            by_number[plain_id(image["id"])], self._images[name] = name, (part, image)
        for annotation in annotations:
            number = plain_id(annotation["image_id"])
            if number not in by_number:
                raise InputError(f"{path}: annotation {annotation.get('id')} is of image {number}, which is not listed")
            self._annotations.setdefault(by_number[number], []).append(annotation)
        self._names[part] = names
        return list(by_number.values())

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        part, entry = self._images[id]
        image = read_image(self._folder / part / entry["path"])
        height, width = image.shape[:2]
        if (height, width) != (entry["height"], entry["width"]):
            raise InputError(
                f"image {self._folder / part / entry['path']} is {width}x{height} pixels but annotations.json "
                f"says {entry['width']}x{entry['height']}"
            )
        annotations = self._annotations.get(id, [])
        path = self._folder / part / "annotations.json"
        masks = [read_outline(annotation, height, width, path) for annotation in annotations]
        names = tuple(class_name(annotation, self._names[part]) for annotation in annotations)
        return Sample(id, self.name, split, image, stack_masks(masks, (height, width)), object_class=names)


COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")

DATASETS: dict[str, Description] = {
    description.name: description
    for description in (
        Description(
            name="bsds500",
            factory=BSDS500,
            title="BSDS500: natural images with human segmentations",
            domain="natural",
            licence="non-commercial research and education",
            citation="Arbelaez, Maire, Fowlkes, Malik: Contour Detection and Hierarchical Image Segmentation. "
            "PAMI 2011",
            how_to_get="git clone (mirror of the Berkeley release)",
            splits="official: 200 train, 100 val, 200 test",
            source=GitSource("https://github.com/BIDS/BSDS500", "a04b7c6c3a9f0ace74bf205c72a43d32e1c72722"),
            layout=("BSDS500/data/images/test/*.jpg", "BSDS500/data/groundTruth/test/*.mat"),
            images=500,
            pretraining="train split; val for choices; test held out",
        ),
        Description(
            name="coco128-seg",
            factory=COCO128,
            title="COCO128-seg: the first 128 images of COCO train2017 with instance polygons",
            domain="natural",
            licence="images: Flickr terms; annotations: CC BY 4.0",
            citation="Lin et al.: Microsoft COCO: Common Objects in Context. ECCV 2014 (subset by Ultralytics)",
            how_to_get="zip archive; unpack it inside the folder",
            splits="everything is test: held out for zero-shot scores",
            source=LinkSource("https://github.com/ultralytics/assets/releases/download/v0.0.0/coco128-seg.zip"),
            layout=("coco128-seg/images/train2017/*.jpg", "coco128-seg/labels/train2017/*.txt"),
            images=128,
        ),
        Description(
            name="ccp",
            factory=ClothingCoParsing,
            title="CCP: Clothing Co-Parsing, street photographs with garment regions",
            domain="natural",
            licence="Apache-2.0 (in its repository)",
            citation="Yang, Luo, Lin: Clothing Co-Parsing by Joint Image Segmentation and Labeling. CVPR 2014",
            how_to_get="git clone",
            splits="none official: 5% validation by hash of the name, the rest train, no test",
            source=GitSource(
                "https://github.com/bearpaw/clothing-co-parsing", "fe34fb77721a9973fbae92c05f7f12b664d10110"
            ),
            layout=("photos/*.jpg", "annotations/pixel-level/*.mat", "label_list.mat"),
            images=1004,
            committed_pictures=True,
            pretraining="train split; 5% by hash of the name for choices",
        ),
        Description(
            name="car-parts",
            factory=CarParts,
            title="Car Parts: 18 kinds of car parts, instances",
            domain="natural",
            licence="none stated; cite the paper",
            citation="Pasupa, Kittiworapanya, Hongngern, Woraratpanya: Evaluation of deep learning algorithms for "
            "semantic segmentation of car parts. Complex & Intelligent Systems 2021",
            how_to_get="git clone",
            splits="official test set; 5% of the training set by hash of the name is validation",
            source=GitSource(
                "https://github.com/dsmlr/Car-Parts-Segmentation", "e970560da9785216dafb77f5749456d70864bfeb"
            ),
            layout=("trainingset/annotations.json", "trainingset/JPEGImages/*.jpg", "testset/annotations.json"),
            images=500,
            pretraining="training set but for 5% by hash of the name (choices); test set held out",
        ),
    )
}
