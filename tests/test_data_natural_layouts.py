import hashlib
import json
import unicodedata

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from layout_trees import HEIGHT, NOTHING, WIDTH, all_ids, blob, photo, save
from samtune.common.errors import InputError
from samtune.data.files import walk
from samtune.data.natural_layouts import DATASETS


def opened(name, folder, **options):
    dataset = DATASETS[name].factory(folder, **options)
    # What a loader can read, the registry's look at the folder must let through.
    assert all(any(walk(folder, pattern)) for pattern in DATASETS[name].layout)
    return dataset


def write_json(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents))
    return path


def packed(mask):
    """A mask as COCO's packed run lengths."""
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def plain_runs(mask):
    """A mask as COCO's plain run lengths: columns first, starting with background."""
    runs, value, length = [], False, 0
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return {"size": list(mask.shape), "counts": [*runs, length]}


def rectangle(mask):
    """The polygon round a rectangular mask."""
    rows, columns = np.nonzero(mask)
    left, top, right, bottom = map(int, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return [[left, top, right, top, right, bottom, left, bottom]]


# SA-1B


def sa_1b_tree(folder, numbers=range(1, 41)):
    for number in numbers:
        photo(folder / "sa_000000" / f"sa_{number}.jpg", seed=number)
        contents = {
            "image": {"image_id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"sa_{number}.jpg"},
            "annotations": [
                {"segmentation": packed(blob(2, 3)), "predicted_iou": 0.9, "id": 1},
                {"segmentation": packed(blob(0, 0, 20, 20)), "predicted_iou": 0.9, "id": 2},
            ],
        }
        write_json(folder / "sa_000000" / f"sa_{number}.json", contents)


def test_sa_1b_decodes_run_lengths_and_splits_by_name_alone(tmp_path):
    sa_1b_tree(tmp_path)
    dataset = opened("sa-1b", tmp_path)
    sample = dataset.load("sa_7")
    assert (sample.masks == np.stack([blob(2, 3), blob(0, 0, 20, 20)])).all() and sample.object_class == ()
    validation = {f"sa_{n}" for n in range(1, 41) if int(hashlib.sha256(f"sa_{n}".encode()).hexdigest(), 16) % 20 == 0}
    assert set(dataset.ids("val")) == validation and dataset.ids("test") == []
    assert opened("sa-1b", tmp_path, part="sa_000000").ids("train") == dataset.ids("train")
    flat = opened("sa-1b", tmp_path / "sa_000000")
    assert all_ids(flat) == all_ids(dataset)


def test_sa_1b_small_subsets_lose_no_training_image(tmp_path):
    names = [n for n in range(1, 30) if int(hashlib.sha256(f"sa_{n}".encode()).hexdigest(), 16) % 20][:6]
    sa_1b_tree(tmp_path, names)
    assert len(opened("sa-1b", tmp_path).ids("train")) == 6


def test_sa_1b_missing_or_cut_json(tmp_path):
    sa_1b_tree(tmp_path, range(1, 4))
    path = tmp_path / "sa_000000" / "sa_2.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match="sa_2.json is no valid json"):
        opened("sa-1b", tmp_path).load("sa_2")
    path.unlink()
    with pytest.raises(InputError, match=f"sa_2.jpg has no masks: expected {path}"):
        opened("sa-1b", tmp_path)


# COCO and LVIS


def coco_image(number, **more):
    return {"id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"{number:012}.jpg", **more}


def annotation(image, segmentation, category=1, **more):
    return {"image_id": image, "segmentation": segmentation, "category_id": category, **more}


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 90, "name": "toothbrush"}]


def coco_tree(folder, year="val2017", first=139, count=3):
    """Image 1 has two objects and a crowd, image 2 a crowd alone, image 3 nothing, the others an object each."""
    annotations = [
        annotation(first, rectangle(blob(2, 3)), 90, iscrowd=0),
        annotation(first, rectangle(blob(12, 3)) + rectangle(blob(12, 20)) + [[1, 1, 2, 2]], 1, iscrowd=0),
        annotation(first, plain_runs(blob(4, 0, 12, 30)), 1, iscrowd=1),
        annotation(first + 1, plain_runs(blob(0, 0)), 1, iscrowd=1),
    ]
    annotations += [annotation(first + n, rectangle(blob(1, 1)), 1, iscrowd=0) for n in range(3, count)]
    images = [coco_image(first + n) for n in range(count)]
    for image in images:
        photo(folder / year / image["file_name"])
    listing = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return write_json(folder / "annotations" / f"instances_{year}.json", listing)


def test_coco_polygons_crowds_and_images_without_objects(tmp_path):
    coco_tree(tmp_path)
    dataset = opened("coco2017", tmp_path)
    assert dataset.ids("test") == ["val2017/000000000139"] == all_ids(dataset)
    assert dataset.dropped == {"without objects": 2}
    sample = dataset.load("val2017/000000000139")
    both = blob(12, 3) | blob(12, 20)
    assert (sample.masks == np.stack([blob(2, 3), both])).all()
    assert sample.object_class == ("toothbrush", "cat")
    assert (sample.ignore == blob(4, 0, 12, 30) & ~blob(2, 3) & ~both).all()


def test_coco_train_is_opened_when_asked_for_and_gives_validation(tmp_path):
    coco_tree(tmp_path)
    with pytest.raises(InputError, match="instances_train2017.json"):
        opened("coco2017", tmp_path, train=True)
    coco_tree(tmp_path, "train2017", first=1, count=12)
    dataset = opened("coco2017", tmp_path, train=True)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [8, 2, 1]


def test_coco_listed_image_that_is_not_there(tmp_path):
    coco_tree(tmp_path)
    (tmp_path / "val2017" / "000000000139.jpg").unlink()
    with pytest.raises(InputError, match="val2017/000000000139.jpg"):
        opened("coco2017", tmp_path)


def lvis_tree(folder, images_in):
    """Image 5 is one of COCO's train2017, 6 of val2017, 7 has only categories known to be absent."""
    images = []
    for number, year in ((5, "train2017"), (6, "val2017"), (7, "val2017")):
        url = f"http://images.cocodataset.org/{year}/{number:012}.jpg"
        image = coco_image(number, coco_url=url, neg_category_ids=[90], not_exhaustive_category_ids=[])
        images.append({key: value for key, value in image.items() if key != "file_name"})
        photo(images_in / year / f"{number:012}.jpg")
    annotations = [annotation(5, rectangle(blob(2, 3))), annotation(6, rectangle(blob(3, 4)), 90)]
    listing = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(folder / "lvis_v1_val.json", listing)


@pytest.mark.parametrize("place", ["lvis", "coco2017"])
def test_lvis_finds_its_images_in_both_of_cocos_folders(tmp_path, place):
    lvis_tree(tmp_path / "lvis", tmp_path / place)
    dataset = opened("lvis", tmp_path / "lvis")
    assert dataset.ids("test") == ["train2017/000000000005", "val2017/000000000006"]
    assert dataset.dropped == {"without objects": 1}
    sample = dataset.load("train2017/000000000005")
    assert (sample.masks[0] == blob(2, 3)).all() and sample.object_class == ("cat",) and sample.ignore is None
    only = opened("lvis", tmp_path / "lvis", image_folders=["val2017"])
    assert only.ids("test") == ["val2017/000000000006"]
    assert only.dropped == {"in train2017": 1, "without objects": 1}


# Index maps


def ade_tree(folder, part, name, with_json=True):
    """Wall (class 2977) below, two cars (class 401) told apart by B, the rest unlabelled."""
    first, second = blob(2, 2), blob(2, 20)
    codes = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for mask, category, instance in ((blob(16, 0, 8, 32), 2977, 12), (first, 401, 30), (second, 401, 255)):
        codes[mask] = (category // 256 * 10, category % 256, instance)
    place = folder / part / "urban" / "street"
    photo(place / f"{name}.jpg")
    save(place / f"{name}_seg.png", codes)
    save(place / f"{name}_parts_1.png", codes)
    save(place / name / f"instance_000_{name}.png", first)
    objects = [{"id": 3, "name": "car, auto", "name_ndx": 401, "parts": {"part_level": 0}}]
    if with_json:
        write_json(place / f"{name}.json", {"annotation": {"object": objects}})
    return first, second


def test_ade20k_decodes_class_and_instance_from_the_colours(tmp_path):
    folder = tmp_path / "ADE20K_2021_17_01" / "images" / "ADE"
    first, second = ade_tree(folder, "validation", "ADE_val_00000001")
    for number in range(5):
        ade_tree(folder, "training", f"ADE_train_{number:08}", with_json=False)
    dataset = opened("ade20k", tmp_path)
    assert dataset.ids("test") == ["ADE_val_00000001"]
    assert (len(dataset.ids("train")), len(dataset.ids("val"))) == (4, 1)
    sample = dataset.load("ADE_val_00000001")
    assert (sample.masks == np.stack([first, second, blob(16, 0, 8, 32)])).all()
    assert sample.object_class == ("car, auto", "car, auto", "class 2977") and sample.ignore is None
    (folder / "validation" / "urban" / "street" / "ADE_val_00000001_seg.png").unlink()
    with pytest.raises(InputError, match="ADE_val_00000001_seg.png"):
        opened("ade20k", tmp_path)


def voc_tree(folder):
    root = folder / "VOCdevkit" / "VOC2012"
    objects = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    objects[blob(1, 1, 10, 12)] = 255
    objects[blob(2, 2, 8, 10)] = 1
    objects[blob(14, 16)] = 2
    classes = np.where(objects == 1, 12, np.where(objects == 2, 15, objects)).astype(np.uint8)
    classes[2, 2:12] = 255  # the class map's void may be wider
    names = {"train": [f"2007_{number:06}" for number in range(10)], "val": ["2007_000033"]}
    for part, ids in names.items():
        listing = root / "ImageSets" / "Segmentation" / f"{part}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(ids) + "\n")
        for id in ids:
            photo(root / "JPEGImages" / f"{id}.jpg")
            save(root / "SegmentationObject" / f"{id}.png", objects, palette=True)
            save(root / "SegmentationClass" / f"{id}.png", classes, palette=True)
    photo(root / "JPEGImages" / "2008_000001.jpg")  # most of VOC's pictures have no masks
    return root, objects


def test_voc_palette_indices_void_and_classes(tmp_path):
    root, objects = voc_tree(tmp_path)
    dataset = opened("voc2012", tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [8, 2, 1]
    sample = dataset.load("2007_000033")
    assert (sample.masks == np.stack([objects == 1, objects == 2])).all()
    assert sample.object_class == ("dog", "person")
    assert (sample.ignore == (objects == 255)).all()
    (root / "SegmentationObject" / "2007_000033.png").unlink()
    with pytest.raises(InputError, match="SegmentationObject/2007_000033.png"):
        opened("voc2012", tmp_path)


def cityscapes_tree(folder):
    numbered = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)  # road
    numbered[:4] = 23  # sky
    numbered[20:] = 1  # ego vehicle
    numbered[blob(6, 2)] = 26000  # two cars
    numbered[blob(6, 20)] = 26001
    numbered[blob(14, 10, 5, 5)] = 24  # people who could not be told apart
    cities = {"train": ["aachen", "bochum", "bremen", "cologne", "jena"], "val": ["lindau"]}
    for part, names in cities.items():
        for city in names:
            for frame in range(2):
                stem = f"{city}_000000_{frame:06}"
                photo(folder / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png")
                save(folder / "gtFine" / part / city / f"{stem}_gtFine_instanceIds.png", numbered)
                save(folder / "gtFine" / part / city / f"{stem}_gtFine_labelIds.png", NOTHING)
    return numbered


def test_cityscapes_instances_void_and_whole_cities(tmp_path):
    numbered = cityscapes_tree(tmp_path)
    dataset = opened("cityscapes", tmp_path)
    assert dataset.ids("test") == ["lindau_000000_000000", "lindau_000000_000001"]
    held_out = {id.split("_")[0] for id in dataset.ids("val")}
    assert len(held_out) == 1 and held_out.isdisjoint(id.split("_")[0] for id in dataset.ids("train"))
    sample = dataset.load("lindau_000000_000001")
    assert (sample.masks == np.stack([numbered == 26000, numbered == 26001])).all()
    assert sample.object_class == ("car", "car") and sample.group == "lindau"
    assert (sample.ignore == ((numbered == 1) | (numbered == 24))).all()
    everything = opened("cityscapes", tmp_path, stuff=True).load("lindau_000000_000001")
    assert everything.object_class == ("road", "sky", "car", "car")
    assert (everything.masks[0] == (numbered == 7)).all()
    due = tmp_path / "gtFine" / "val" / "lindau" / "lindau_000000_000000_gtFine_instanceIds.png"
    due.unlink()
    with pytest.raises(InputError, match=str(due)):
        opened("cityscapes", tmp_path)


# Pairs and mask folders


@pytest.mark.parametrize(("images", "masks"), [("HRSOD_test", "HRSOD_test_mask"), ("imgs", "gts")])
def test_hrsod_in_both_layouts(tmp_path, images, masks):
    for number in range(3):
        photo(tmp_path / "HRSOD_release" / images / f"{number}_abc.jpg")
        save(tmp_path / "HRSOD_release" / masks / f"{number}_abc.png", blob(number, 2))
    dataset = opened("hrsod-te", tmp_path)
    assert dataset.ids("test") == ["0_abc", "1_abc", "2_abc"] == all_ids(dataset)
    assert (dataset.load("2_abc").masks == blob(2, 2)[None]).all()


def test_big_has_official_val_and_test(tmp_path):
    for part, stem in (("val", "aeroplane_1"), ("test", "2007_boat_2")):
        photo(tmp_path / "BIG" / part / f"{stem}_im.jpg")
        save(tmp_path / "BIG" / part / f"{stem}_gt.png", blob(4, 4))
    dataset = opened("big", tmp_path)
    assert (dataset.ids("train"), dataset.ids("val"), dataset.ids("test")) == ([], ["aeroplane_1"], ["2007_boat_2"])
    assert (dataset.load("2007_boat_2").masks[0] == blob(4, 4)).all()
    (tmp_path / "BIG" / "test" / "2007_boat_2_gt.png").unlink()
    with pytest.raises(InputError, match="2007_boat_2_gt.png"):
        opened("big", tmp_path)


@pytest.mark.parametrize("name", ["doors", "zerowaste-f", "ndispark", "egohos", "plittersdorf"])
def test_one_mask_file_an_object(tmp_path, name):
    for number in range(6):
        photo(tmp_path / "images" / f"frame {number}.jpg")
        save(tmp_path / "masks" / f"frame {number}" / "000_rigid plastic.png", blob(2, number))
        save(tmp_path / "masks" / f"frame {number}" / "001_paper.png", blob(12, number))
        save(tmp_path / "masks" / f"frame {number}" / "002_metal.png", NOTHING)
    for mask in (tmp_path / "masks" / "frame 5").iterdir():
        mask.unlink()
    dataset = opened(name, tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [3, 1, 1]
    assert dataset.name == name and dataset.dropped == {"without objects": 1}
    sample = dataset.load("frame 3")
    assert (sample.masks == np.stack([blob(2, 3), blob(12, 3)])).all()
    assert sample.object_class == ("rigid plastic", "paper")


def test_mask_files_of_different_sizes_are_refused_even_when_empty(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a" / "0.png", blob(1, 1))
    save(tmp_path / "masks" / "a" / "1.png", np.zeros((5, 6), dtype=bool))
    with pytest.raises(InputError, match="32x24.*6x5"):
        opened("egohos", tmp_path).load("a")


def test_mask_folders_with_official_parts_and_without_classes(tmp_path):
    for part, count in (("train", 5), ("test", 2)):
        for number in range(count):
            photo(tmp_path / "images" / part / f"{number}.png")  # the same numbers in both
            save(tmp_path / "masks" / part / str(number) / "0.png", blob(1, 1))
    dataset = opened("doors", tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [4, 1, 2]
    assert dataset.load("test/1").object_class == ()
    place = tmp_path / "masks" / "test" / "1"
    (place / "0.png").unlink()
    place.rmdir()
    with pytest.raises(InputError, match=str(place)):
        opened("doors", tmp_path)


def test_names_that_look_alike_are_the_same(tmp_path):
    """macOS stores "ü" as two characters."""
    photo(tmp_path / "images" / unicodedata.normalize("NFC", "tür.png"))
    save(tmp_path / "masks" / unicodedata.normalize("NFD", "tür") / "0.png", blob(1, 1))
    assert opened("doors", tmp_path).load(unicodedata.normalize("NFC", "tür")).masks.any()


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_is_refused_with_the_path_expected(tmp_path, name):
    with pytest.raises(InputError, match=str(tmp_path)):
        opened(name, tmp_path)


def test_every_description_is_filled_in():
    for name, description in DATASETS.items():
        assert description.name == name and description.layout and not description.committed_pictures
        assert description.pretraining.startswith("none") or name == "sa-1b"
