"""The eleven sets of the kit's data folder: each loader on a small tree of the real layout, quirks included."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from samtune.common.errors import InputError
from samtune.data.download import sample_faults
from samtune.data.industrial import tiles
from samtune.data.medical import SLIDES, nuclei_slides
from samtune.data.natural import connected_regions
from samtune.data.registry import DATASETS, describe, info, list_datasets, open_dataset
from samtune.data.splits import hashed_validation


def noise(height: int, width: int, seed: int = 0, channels: tuple[int, ...] = (3,)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def save_mat(path: Path, **variables) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables)


def square(height: int, width: int, top: int = 2, left: int = 3, side: int = 4) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def everything(dataset) -> list[str]:
    """All ids, after opening all samples and finding no fault in them."""
    ids = [id for split in ("train", "val", "test") for id in dataset.ids(split)]
    assert [fault for id in ids for fault in sample_faults(dataset.load(id))] == []
    return ids


# --- industrial ---


@pytest.fixture
def magnetic_tile(tmp_path) -> Path:
    """Five classes, 5 tiles each under 6 lights; one empty mask; grey values about the threshold; MT_Free."""
    number = 1000
    for seed, kind in enumerate(("Blowhole", "Break", "Crack", "Fray", "Uneven")):
        for tile in range(5):
            number += 5000
            for light in range(1, 7):
                stem = tmp_path / "magnetic-tile" / f"MT_{kind}" / "Imgs" / f"exp{light}_num_{number + 20 * light}"
                mask = square(20, 30).astype(np.uint8) * 255
                mask[0, :4] = 3, 100, 127, 128
                if kind == "Uneven" and tile == 0 and light == 1:
                    mask[:] = 0
                save(stem.with_suffix(".jpg"), noise(20, 30, seed, ()))
                save(stem.with_suffix(".png"), mask)
    for light in range(5):
        stem = tmp_path / "magnetic-tile" / "MT_Free" / "Imgs" / f"exp1_num_{7 + 99 * light}"
        save(stem.with_suffix(".jpg"), noise(20, 30, 9, ()))
        save(stem.with_suffix(".png"), np.zeros((20, 30), dtype=np.uint8))
    return tmp_path


def test_magnetic_tile(magnetic_tile):
    dataset = open_dataset("magnetic-tile", magnetic_tile)
    assert len(everything(dataset)) == 149 and dataset.dropped == {"empty mask": 1}
    sample = dataset.load(dataset.ids("test")[0])
    assert sample.object_class == (sample.id.split("_")[0],)
    expected = square(20, 30)
    expected[0, 3] = True  # of the grey values 3, 100, 127 and 128 only the last exceeds 127
    assert np.array_equal(sample.masks, expected[None])


def test_a_magnetic_tile_is_on_one_side_under_every_light(magnetic_tile):
    dataset = open_dataset("magnetic-tile", magnetic_tile)
    sides = {}
    for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        ids = dataset.ids(split)
        assert abs(len(ids) / 149 - share) < 0.01
        assert {id.split("_")[0] for id in ids} == {"blowhole", "break", "crack", "fray", "uneven"}
        for id in ids:
            sides.setdefault(int(id.split("_")[-1]) // 5000, set()).add(split)
    assert len(sides) == 25 and all(len(side) == 1 for side in sides.values())


def test_tiles_of_real_numbers():
    # Two tiles, the second photographed in several runs (real names; the runs show the same crack).
    numbers = [7009, 7102, 85602, 86064, 86892, 88149]
    found = tiles([f"crack_exp1_num_{number}" for number in numbers], 1300)
    assert list(found.values()) == ["tile 7009"] * 2 + ["tile 85602"] * 4


def test_magnetic_tile_defect_free_is_an_option_that_moves_nothing(magnetic_tile):
    plain = open_dataset("magnetic-tile", magnetic_tile)
    more = open_dataset("magnetic-tile", magnetic_tile, defect_free=True)
    free = [id for id in more.ids("test") if id.startswith("free")]
    assert len(free) == 5 and more.load(free[0]).masks.shape == (0, 20, 30)
    for split in ("train", "val", "test"):
        assert set(plain.ids(split)) == {id for id in more.ids(split) if id not in free}


@pytest.fixture
def neu_seg(tmp_path) -> Path:
    """Numbers used in both parts, several classes in one picture, byte-identical pictures, one without annotation."""
    root = tmp_path / "neu-seg"
    for part, count in (("training", 60), ("test", 7)):
        for number in range(count):
            labels = np.zeros((20, 20), dtype=np.uint8)
            labels[2:5, 2:9] = number % 3 + 1
            if number % 5 == 0:
                labels[10:14, 3:6] = (number + 1) % 3 + 1
            seed = 7 if part == "training" and number in (3, 33) else 100 * len(part) + number
            save(root / "images" / part / f"{number:06d}.jpg", noise(20, 20, seed))
            save(root / "annotations" / part / f"{number:06d}.png", labels)
    (root / "annotations" / "training" / "000050.png").unlink()
    return tmp_path


def test_neu_seg(neu_seg):
    dataset = open_dataset("neu-seg", neu_seg)
    everything(dataset)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [47, 12, 7]
    assert dataset.dropped == {"image without annotation": 1}
    assert all(id.startswith("test_") for id in dataset.ids("test"))
    assert dataset.split_of("training_000003") == dataset.split_of("training_000033")
    sample = dataset.load("test_000000")
    assert sample.object_class == ("inclusion", "patches")
    assert sample.masks[0, 2:5, 2:9].all() and sample.masks[1, 10:14, 3:6].all() and sample.masks.sum() == 21 + 12


def test_neu_seg_names_an_unknown_class(neu_seg):
    save(neu_seg / "neu-seg/annotations/test/000001.png", np.full((20, 20), 4, dtype=np.uint8))
    dataset = open_dataset("neu-seg", neu_seg)
    with pytest.raises(InputError, match=r"000001.png holds values \[4\]"):
        dataset.load("test_000001")


def test_crackforest(tmp_path):
    root = tmp_path / "crackforest"
    for number in range(1, 13):
        labels = np.ones((32, 48), dtype=np.uint8)
        labels[5, :] = 2
        labels[10:12, 3:6], labels[20, 5:9] = 3, 4 if number == 1 else 3
        save(root / "image" / f"{number:03d}.jpg", noise(32, 48, number))
        if number <= 10:
            truth = {"Segmentation": labels, "Boundaries": np.zeros_like(labels)}
            save_mat(root / "groundTruth" / f"{number:03d}.mat", groundTruth=truth)
    dataset = open_dataset("crackforest", tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [6, 2, 2]
    assert len(everything(dataset)) == 10 and dataset.dropped == {"image without annotation": 2}
    first, second = dataset.load("001"), dataset.load("002")
    assert np.argwhere(first.masks[0])[:, 0].tolist() == [5] * 48  # 2 alone is crack; 3 is enclosed surface
    assert first.ignore.sum() == 4 and first.ignore[20, 5:9].all() and second.ignore is None


# --- medical ---


def nucleus_tree(root: Path, images: dict[str, np.ndarray]) -> None:
    for id, image in images.items():
        alpha = np.full((*image.shape[:2], 1), 255, dtype=np.uint8)
        save(root / "bbbc038/stage1_train" / id / "images" / f"{id}.png", np.concatenate([image, alpha], axis=2))
        for number in range(3):
            mask = square(*image.shape[:2], top=10 * number + 2).astype(np.uint8) * 255
            save(root / "bbbc038/stage1_train" / id / "masks" / f"{number:02d}.png", mask)


def test_bbbc038_keeps_crops_of_a_slide_together(tmp_path):
    smooth = [np.cumsum(np.random.default_rng(k).normal(0, 6, (80, 120)), axis=1) + 120 for k in range(6)]
    crops = {}
    for number, slide in enumerate(smooth):
        pixels = np.repeat(slide.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        for column in range(3):
            crops[f"{number}{column}abc"] = pixels[:, 40 * column : 40 * column + 40]
    nucleus_tree(tmp_path, crops)
    dataset = open_dataset("bbbc038", tmp_path)
    assert len(everything(dataset)) == 18
    for number in range(6):
        assert len({dataset.split_of(f"{number}{column}abc") for column in range(3)}) == 1
    sample = dataset.load("00abc")
    assert sample.masks.shape == (3, 80, 40) and sample.object_class == ("nucleus",) * 3
    assert sample.group == dataset.load("02abc").group
    kinds = {slide["kind"] for slide in nuclei_slides(tmp_path / "bbbc038")}
    assert kinds <= {"40x80 dark", "40x80 bright"}


def test_bbbc038_lists_known_ids_without_opening_an_image(tmp_path):
    slides = json.loads(SLIDES.read_text())["slides"]
    ids = [id for slide in slides for id in slide["ids"]]
    assert len(ids) == len(set(ids)) == 332
    group = next(slide["ids"] for slide in slides if len(slide["ids"]) > 2)
    for id in group:
        for path in (f"images/{id}.png", "masks/a.png"):
            (tmp_path / "bbbc038/stage1_train" / id / path).parent.mkdir(parents=True)
            (tmp_path / "bbbc038/stage1_train" / id / path).write_bytes(b"not a picture")
    dataset = open_dataset("bbbc038", tmp_path)
    assert len({dataset.split_of(id) for id in group}) == 1
    with pytest.raises(InputError, match=f"cannot read image .*{group[0]}.png"):
        dataset.load(group[0])


@pytest.fixture
def drive(tmp_path) -> Path:
    """All codings of its gifs (255, 251, a palette of nearly black and white), and its odd names:
    `34manual1.gif` without underscore, `NN_training_mask .gif` with a space."""
    view = np.hypot(*np.mgrid[-20:20, -18:18]) < 17
    for part, first in (("training", 21), ("test", 1)):
        place = tmp_path / "drive" / "DRIVE" / part
        for number in range(first, first + 20):
            mask = np.zeros((40, 36), dtype=np.uint8)
            mask[number % 20 + 8, 9:20] = 255 if number % 2 else 251
            manual = f"{number:02d}manual1.gif" if number == 34 else f"{number:02d}_manual1.gif"
            space = " " if part == "training" and number % 2 else ""
            save(place / "images" / f"{number:02d}_{part}.tif", noise(40, 36, number))
            save(place / "1st_manual" / manual, mask)
            save(place / "mask" / f"{number:02d}_{part}_mask{space}.gif", view.astype(np.uint8) * 255)
    return tmp_path


def test_drive(drive):
    dataset = open_dataset("drive", drive)
    everything(dataset)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [16, 4, 20] and dataset.dropped == {}
    sample = dataset.load("34")
    assert np.argwhere(sample.masks[0])[:, 0].tolist() == [34 % 20 + 8] * 11
    assert np.array_equal(~sample.ignore, np.hypot(*np.mgrid[-20:20, -18:18]) < 17)


def test_drive_withheld_test(drive):
    for path in (drive / "drive/DRIVE/test/1st_manual").iterdir():
        path.unlink()
    dataset = open_dataset("drive", drive)
    assert dataset.ids("test") == [] and dataset.dropped == {"image without vessels": 20}


def test_cvc_clinicdb_reads_minisblack_colour_and_splits_between_sequences(tmp_path):
    root = tmp_path / "cvc-clinicdb"
    for folder in ("Original", "Ground Truth"):
        (root / folder).mkdir(parents=True)
    for number in (1, 122, 363, 364, 478, 479, 612):
        image, mask = noise(24, 32, number), square(24, 32).astype(np.uint8) * 255
        tifffile.imwrite(root / "Original" / f"{number}.tif", image, photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(root / "Ground Truth" / f"{number}.tif", mask, photometric="minisblack")
    (root / "Ground Truth" / "122.tif").unlink()
    dataset = open_dataset("cvc-clinicdb", tmp_path)
    everything(dataset)
    assert [dataset.ids(split) for split in ("train", "val", "test")] == [["1", "363"], ["364", "478"], ["479", "612"]]
    assert dataset.dropped == {"image without mask": 1}
    sample = dataset.load("364")
    assert [dataset.load(id).group for id in ("1", "363", "364", "478", "479", "612")] == [
        f"sequence {number}" for number in (1, 17, 18, 23, 24, 29)
    ]
    assert np.array_equal(sample.image, noise(24, 32, 364)) and np.array_equal(sample.masks[0], square(24, 32))


LEGEND = ",,\n,,\ngends f,,\n0 - Co,,\n1 - At,,\n2 - Me,,\nP  - P,,\n"  # as in the copy at hand


def ph2_tree(folder: Path, suffixes: tuple[str, str], header: str = "Name,Clinical Diagnosis,Asymmetry") -> Path:
    """Ten pictures of each diagnosis, the sheet with its legend below the rows, and one row without pictures."""
    rows = []
    for number in range(30):
        id = f"IMD{number:03}"
        place = folder / "ph2" / "PH2Dataset" / "PH2 Dataset images" / id
        save(place / f"{id}_Dermoscopic_Image" / f"{id}.{suffixes[0]}", noise(20, 30, number))
        save(place / f"{id}_lesion" / f"{id}_lesion.{suffixes[1]}", square(20, 30, left=number % 20))
        rows.append(f"{id},{number % 3},0")
    table = folder / "ph2" / "PH2Dataset" / "PH2_dataset.csv"
    table.write_text("\n".join([header, *rows, "IMD099,2,1"]) + "\n" + LEGEND, encoding="utf-8-sig")
    return folder


@pytest.mark.parametrize("suffixes", [("bmp", "bmp"), ("jpg", "png")])
def test_ph2_in_the_formats_of_the_download_and_of_smaller_copies(tmp_path, suffixes):
    dataset = open_dataset("ph2", ph2_tree(tmp_path, suffixes))
    assert len(everything(dataset)) == 30 and dataset.dropped == {"image or mask not there": 1}
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        kinds = [dataset.load(id).object_class[0] for id in dataset.ids(split)]
        assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
            ("common naevus", "atypical naevus", "melanoma"), count
        )
    sample = dataset.load("IMD007")
    assert np.array_equal(sample.masks, square(20, 30, left=7)[None]) and sample.object_class == ("atypical naevus",)
    if suffixes[0] == "bmp":
        assert np.array_equal(sample.image, noise(20, 30, 7))


@pytest.mark.parametrize("header", ["Image,Clinical Diagnosis,Asymmetry", "Name,Diagnosis,Asymmetry"])
def test_ph2_without_a_column_that_is_needed(tmp_path, header):
    ph2_tree(tmp_path, ("bmp", "bmp"), header)
    with pytest.raises(InputError, match="PH2_dataset.csv: expected columns Name and Clinical Diagnosis") as error:
        open_dataset("ph2", tmp_path)
    assert "\n" not in str(error.value)


# --- natural ---


def segmentations(*maps: np.ndarray) -> np.ndarray:
    cell = np.empty((1, len(maps)), dtype=object)
    for number, labels in enumerate(maps):
        cell[0, number] = {"Segmentation": labels, "Boundaries": np.zeros_like(labels, dtype=np.uint8)}
    return cell


def test_bsds500(tmp_path):
    root = tmp_path / "bsds500/BSDS500/data"
    first, second = np.ones((20, 30), dtype=np.uint16), np.ones((20, 30), dtype=np.uint16)
    first[:, 10:20] = 2  # cuts 1 into two regions
    second[5:, :] = 3
    for split, ids in (("train", ("8049", "8143")), ("val", ("3096",)), ("test", ("2018",))):
        for id in ids:
            save(root / "images" / split / f"{id}.jpg", noise(20, 30))
            save_mat(root / "groundTruth" / split / f"{id}.mat", groundTruth=segmentations(first, second))
        (root / "images" / split / "Thumbs.db").write_bytes(b"\0")
    dataset = open_dataset("bsds500", tmp_path)
    assert len(everything(dataset)) == 4 and dataset.ids("train") == ["8049", "8143"] and dataset.ids("val") == ["3096"]
    sample = dataset.load("2018")
    assert sample.split == "test" and dataset.annotators("2018") == 2
    assert [mask.sum() for mask in sample.masks] == [200, 200, 200] and sample.masks.sum(axis=0).max() == 1
    other = open_dataset("bsds500", tmp_path, annotator=1).load("2018")
    assert [mask.sum() for mask in other.masks] == [150, 450]
    with pytest.raises(InputError, match="annotators 0 to 1, asked for 2"):
        open_dataset("bsds500", tmp_path, annotator=2).load("2018")


def test_connected_regions_hang_together_over_corners():
    labels = np.array([[5, 0], [0, 5]])
    assert connected_regions(labels).shape == (2, 2, 2)
    assert connected_regions(np.array([[5, 0, 5]])).shape == (3, 1, 3)


def test_coco128_seg(tmp_path):
    root = tmp_path / "coco128-seg/coco128-seg"
    for number in (9, 25, 250):
        save(root / "images/train2017" / f"{number:012d}.jpg", noise(40, 80, number))
    labels = root / "labels/train2017"
    labels.mkdir(parents=True)
    # A dog's left half; two squares of one cup, joined by a bridge of no width as Ultralytics writes them.
    bridged = "41 0.1 0.1 0.2 0.1 0.2 0.3 0.6 0.3 0.6 0.1 0.8 0.1 0.8 0.5 0.6 0.5 0.6 0.3 0.2 0.3 0.2 0.5 0.1 0.5"
    (labels / "000000000009.txt").write_text(f"16 0 0 0.5 0 0.5 1 0 1\n{bridged}\n")
    (labels / "000000000025.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75")
    (labels / "000000000656.txt").write_text("0 0 0 1 0 1 1")
    dataset = open_dataset("coco128-seg", tmp_path)
    assert dataset.ids("train") == dataset.ids("val") == [] and len(everything(dataset)) == 3
    assert dataset.dropped == {"label file without image": 1}
    sample = dataset.load("000000000009")
    assert sample.object_class == ("dog", "cup") and sample.masks.shape == (2, 40, 80)
    assert sample.masks[0, :, :40].all() and not sample.masks[0, :, 41:].any()
    assert sample.masks[1, 4:20, 8:16].all() and sample.masks[1, 4:20, 48:64].all()
    assert sample.masks[1, :, 20:46].mean() < 0.03
    assert dataset.load("000000000250").masks.shape == (0, 40, 80)
    (labels / "000000000025.txt").write_text("0 0.1 0.2 0.3\n")
    with pytest.raises(InputError, match="000000000025.txt, line 1"):
        dataset.load("000000000025")


def test_ccp(tmp_path):
    root = tmp_path / "ccp"
    names = np.array([["null", "bag", "coat", "skin"]], dtype=object)
    save_mat(root / "label_list.mat", label_list=names)
    for number in range(1, 41):
        labels = np.zeros((40, 27), dtype=np.uint8)
        labels[5:20, 8:18], labels[22:25, 3:6], labels[22:25, 20:23] = 2, 3, 3
        save(root / "photos" / f"{number:04d}.jpg", noise(40, 27, number))
        if number != 40:
            save_mat(root / "annotations/pixel-level" / f"{number:04d}.mat", groundtruth=labels)
    dataset = open_dataset("ccp", tmp_path)
    ids = everything(dataset)
    assert len(ids) == 39 and dataset.ids("test") == []
    assert dataset.dropped == {"photo without pixel-level annotation": 1}
    assert {id: dataset.split_of(id) for id in ids} == hashed_validation(ids)
    sample = dataset.load("0001")
    assert sample.object_class == ("coat", "skin") and [mask.sum() for mask in sample.masks] == [150, 18]
    whole = open_dataset("ccp", tmp_path, whole=True).load("0001")
    assert whole.object_class == ("coat", "skin", "person")
    assert np.array_equal(whole.masks[2], whole.masks[0] | whole.masks[1])


def test_ccp_names_both_sizes_when_annotation_and_photo_differ(tmp_path):
    save_mat(tmp_path / "ccp/label_list.mat", label_list=np.array([["null", "bag"]], dtype=object))
    save(tmp_path / "ccp/photos/0001.jpg", noise(40, 27))
    save_mat(tmp_path / "ccp/annotations/pixel-level/0001.mat", groundtruth=np.ones((80, 54), dtype=np.uint8))
    with pytest.raises(InputError, match="0001.jpg is 27x40 pixels but mask .*0001.mat is 54x80"):
        open_dataset("ccp", tmp_path).load("0001")


def car_part(root: Path, part: str, stem: str, count: int, first: int) -> None:
    images, annotations = [], []
    for number in range(1, count + 1):
        name = f"{stem}{number}.jpg"
        save(root / part / "JPEGImages" / name, noise(30, 40, number))
        image_id = first + number
        path = f"JPEGImages/{name}"
        images.append({"id": image_id, "path": path, "file_name": name, "width": 40, "height": 30})
        wheels = [[2, 20, 8, 20, 8, 26, 2, 26], [30, 20, 36, 20, 36, 26, 30, 26]]
        for category, polygons in ((2, [[5, 5, 25, 5, 25, 15, 5, 15]]), (19, wheels)):
            annotations.append({"image_id": image_id, "category_id": category, "segmentation": polygons})
    categories = [{"id": 1, "name": "_background_"}, {"id": 2, "name": "hood"}, {"id": 19, "name": "wheel"}]
    listing = {"images": images, "annotations": annotations, "categories": categories}
    (root / part / "annotations.json").write_text(json.dumps(listing))


def test_car_parts(tmp_path):
    car_part(tmp_path / "car-parts", "trainingset", "train", 40, 0)
    car_part(tmp_path / "car-parts", "testset", "car", 3, 400)
    (tmp_path / "car-parts/testset/JPEGImages/car3.jpg").unlink()
    dataset = open_dataset("car-parts", tmp_path)
    everything(dataset)
    assert dataset.ids("test") == ["car1", "car2"] and dataset.dropped == {"annotated image missing": 1}
    training = dataset.ids("train") + dataset.ids("val")
    assert {id: dataset.split_of(id) for id in training} == hashed_validation(f"train{k}" for k in range(1, 41))
    sample = dataset.load("car1")
    assert sample.object_class == ("hood", "wheel") and [mask.sum() for mask in sample.masks] == [200, 72]
    save(tmp_path / "car-parts/testset/JPEGImages/car2.jpg", noise(30, 41))
    with pytest.raises(InputError, match="car2.jpg is 41x30 pixels but annotations.json says 40x30"):
        dataset.load("car2")


# --- registry ---

REAL = {
    "magnetic-tile", "neu-seg", "crackforest", "bbbc038", "drive", "cvc-clinicdb", "bsds500", "coco128-seg", "ccp",
    "car-parts", "ph2",
}  # fmt: skip


def test_the_registry_knows_all_and_says_who_may_be_shown():
    assert REAL <= set(DATASETS) and all(name == description.name for name, description in DATASETS.items())
    shown = {name for name in DATASETS if describe(name).committed_pictures and describe(name).layout}
    assert shown == {"bbbc038", "ccp", "magnetic-tile"}
    usable = {name for name in REAL if not describe(name).pretraining.startswith("none")}
    assert usable == {"bsds500", "ccp", "car-parts"}


def test_unknown_names_list_the_nearest_first():
    with pytest.raises(InputError, match="unknown data set 'magnetic_tile'; known: magnetic-tile, "):
        open_dataset("magnetic_tile")


@pytest.mark.parametrize("name", sorted(REAL))
def test_a_missing_folder_says_what_to_fetch_and_where_to_put_it(tmp_path, name):
    with pytest.raises(InputError) as caught:
        open_dataset(name, tmp_path)
    message, source = str(caught.value), describe(name).source
    assert str(tmp_path / name) in message and "SAMTUNE_DATA" in message
    assert source.url in message if source else "https://" in message


def test_an_incomplete_folder_names_what_is_missing(tmp_path):
    save(tmp_path / "crackforest/image/001.jpg", noise(4, 4))
    with pytest.raises(InputError, match=r"nothing in .*crackforest matches groundTruth/\*.mat"):
        open_dataset("crackforest", tmp_path)


def test_an_unknown_option_is_named(neu_seg):
    with pytest.raises(InputError, match="neu-seg: .*unexpected keyword argument 'colour'"):
        open_dataset("neu-seg", neu_seg, colour=True)


def test_list_and_info(neu_seg):
    rows = {row.name: row for row in list_datasets(neu_seg)}
    assert set(rows) == set(DATASETS)
    assert rows["neu-seg"].present and rows["neu-seg"].images == {"train": 47, "val": 12, "test": 7}
    assert not rows["ccp"].present and rows["ccp"].images is None
    text = info("neu-seg", neu_seg)
    assert "47 train, 12 val, 7 test" in text and "left out, image without annotation: 1" in text
    assert "git clone https://github.com/bearpaw/clothing-co-parsing" in info("ccp", neu_seg)


def test_faults_of_a_sample_are_named(neu_seg):
    sample = open_dataset("neu-seg", neu_seg).load("test_000000")
    assert sample_faults(sample) == []
    assert "not uint8" in sample_faults(replace(sample, image=sample.image / 255))[0]
    assert "not bool" in sample_faults(replace(sample, masks=sample.masks[:, :-1]))[0]
    assert "1 class names for 2 masks" in sample_faults(replace(sample, object_class=("a",)))[0]
    assert "1 of 2 masks are empty" in sample_faults(replace(sample, masks=sample.masks & [[[True]], [[False]]]))[0]
    assert "ignore is" in sample_faults(replace(sample, ignore=np.zeros((2, 2))))[0]
