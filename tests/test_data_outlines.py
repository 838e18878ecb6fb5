"""COCO's outlines, in the ways in which tools write them: read right, or named with file and annotation id."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from layout_trees import HEIGHT, WIDTH, blob, photo
from samtune.common.errors import InputError
from samtune.data.coco_json import coco2017
from samtune.data.outlines import decode, plain_id

SQUARE = blob(4, 4, 10, 10)
POLYGON = [4, 4, 14, 4, 14, 14, 4, 14]
RUNS = [4 * HEIGHT + 4, *[10, HEIGHT - 10] * 9, 10, (WIDTH - 14) * HEIGHT + HEIGHT - 14]


def coco(folder, annotations=None, images=None, file="000000000001.jpg", encoding="utf-8", **more):
    """A set of one picture with one square, changed as asked; opened."""
    photo(folder / "val2017" / file)
    usual = {"id": 8, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": [POLYGON]}
    contents = {
        "images": images or [{"id": 1, "file_name": file, "height": HEIGHT, "width": WIDTH}],
        "annotations": [usual | one for one in annotations or [{}]],
        "categories": [{"id": 7, "name": "cat"}],
    }
    listing = folder / "annotations" / "instances_val2017.json"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text(json.dumps(contents | more, ensure_ascii=False), encoding=encoding)
    return coco2017(folder)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"segmentation": POLYGON},
        {"segmentation": [[[4, 4], [14, 4], [14, 14], [4, 14]]]},
        {"segmentation": [[4, 4], [14, 4], [14, 14], [4, 14]]},
        {"segmentation": {"counts": RUNS}},
        {"segmentation": {"counts": RUNS, "size": [HEIGHT, WIDTH]}},
        {"segmentation": {"counts": RUNS, "size": [float(HEIGHT), float(WIDTH)]}},
        {"image_id": 1.0, "category_id": 7.0},
        {"image_id": "1", "category_id": "7"},
        {"iscrowd": "0"},
        {"iscrowd": False},
        {"id": None},
    ],
    ids=str,
)
def test_what_tools_write_reads_right(tmp_path, change):
    sample = (dataset := coco(tmp_path, [change])).load("val2017/000000000001")
    assert (sample.masks == SQUARE).all() and sample.object_class == ("cat",) and sample.ignore is None
    assert dataset.dropped == {}


@pytest.mark.parametrize("named", ["val2017/000000000001.jpg", "val2017\\000000000001.jpg", "000000000001.JPG"])
def test_file_names_as_tools_write_them(tmp_path, named):
    images = [{"id": "1", "file_name": named}]  # without a size
    assert (coco(tmp_path, images=images).load("val2017/000000000001").masks == SQUARE).all()


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((float(HEIGHT), str(WIDTH)), ""),
        ((HEIGHT, "wide"), "image 1 is given the size"),
        ((HEIGHT, None), "image 1 is given the size"),
        ((-HEIGHT, WIDTH), "is 32x24 pixels but mask .* is 32x-24"),
        ((10**7, 10**7), "is 32x24 pixels but mask .* is 10000000x10000000"),
    ],
)
def test_sizes_as_tools_write_them(tmp_path, size, words):
    named = "000000000001.jpg"
    dataset = coco(tmp_path, images=[{"id": 1, "file_name": named, "height": size[0], "width": size[1]}])
    if not words:
        assert (dataset.load("val2017/000000000001").masks == SQUARE).all()
        return
    with pytest.raises(InputError, match=words):
        dataset.load("val2017/000000000001")


def test_a_file_name_that_is_a_number(tmp_path):
    with pytest.raises(InputError, match="lists an image that is not there: expected .*val2017/1$"):
        coco(tmp_path, images=[{"id": 1, "file_name": 1}])


def test_marks_names_and_missing_categories(tmp_path):
    dataset = coco(tmp_path, file="ärger-写真.jpeg", encoding="utf-8-sig", categories=[])
    assert dataset.load("val2017/ärger-写真").object_class == ("class 7",)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "no outline"),
        ([], "no outline"),
        ({}, "no outline"),
        ("2d4", "outline is str"),
        (7, "outline is int"),
        ([POLYGON[:-1]], "polygon of 7 numbers"),
        ([[*POLYGON[:-1], "x"]], "could not convert"),
        ([[*POLYGON[:-1], None]], "polygon of 8 numbers"),
        ([[[4, 4], [14, 4], [14]]], "inhomogeneous"),
        ([[*POLYGON[:-1], 1e12]], "polygon of 8 numbers"),  # ended the process, in pycocotools
        ({"counts": [4.5, 20, 1570]}, "not whole numbers"),
        ({"counts": [10, 20, 1570], "size": [40, 40]}, "run lengths are of 40x40 pixels"),
        ({"counts": [10, 20, 1570]}, "sum to 1600"),
        ({"counts": [10, -20, 10 + HEIGHT * WIDTH]}, "sum to"),
        ({"counts": "0b", "size": [HEIGHT, WIDTH]}, "cut off|sum to"),
        ({"counts": "00\u00e9", "size": [HEIGHT, WIDTH]}, "hold the character"),
        ({"counts": None, "size": [HEIGHT, WIDTH]}, ""),
        ({"size": [HEIGHT, WIDTH]}, "counts"),
        ({"counts": RUNS, "size": [HEIGHT]}, ""),
        ({"counts": RUNS, "size": "large"}, ""),
    ],
    ids=str,
)
def test_damaged_outlines_are_named_with_file_and_annotation(tmp_path, segmentation, words):
    dataset = coco(tmp_path, [{"segmentation": segmentation}])
    with pytest.raises(InputError, match=f"instances_val2017.json: annotation 8 cannot be read: .*(?:{words})"):
        dataset.load("val2017/000000000001")


def test_what_belongs_to_no_image_is_counted(tmp_path):
    dataset = coco(tmp_path, [{}, {"image_id": 99}])
    assert dataset.dropped == {"annotation of an image that is not listed": 1}


def test_one_file_listed_twice_is_refused(tmp_path):
    images = [{"id": id, "file_name": "000000000001.jpg", "height": HEIGHT, "width": WIDTH} for id in (1, 2)]
    with pytest.raises(InputError, match="two images have the same id: val2017/000000000001"):
        coco(tmp_path, [{}, {"image_id": 2}], images)


def test_a_size_in_the_json_that_is_not_the_pictures(tmp_path):
    images = [{"id": 1, "file_name": "000000000001.jpg", "height": WIDTH, "width": HEIGHT}]
    with pytest.raises(InputError, match="000000000001.jpg is 32x24 pixels but mask .*json is 24x32"):
        coco(tmp_path, images=images).load("val2017/000000000001")


@pytest.mark.parametrize("missing", ["id", "file_name"])
def test_images_that_lack_what_links_them(tmp_path, missing):
    image = {"id": 1, "file_name": "000000000001.jpg", "height": HEIGHT, "width": WIDTH}
    del image[missing]
    with pytest.raises(InputError, match=f"instances_val2017.json.*{missing.replace('_', '.')}"):
        coco(tmp_path, images=[image])


def test_run_lengths_are_decoded_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = np.repeat(rng.random((37, 11)) < share, 5, axis=1)
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (packed["counts"], packed["counts"].decode()):
            assert np.array_equal(decode({"counts": counts, "size": packed["size"]}, *mask.shape), mask)


def test_ids_of_two_types_are_one():
    assert {plain_id(value) for value in (7, 7.0, "7", "007", " 7")} == {"7"}
    assert plain_id("a7") == "a7" and plain_id(7.5) == "7.5" and plain_id(float("nan")) == "nan"
