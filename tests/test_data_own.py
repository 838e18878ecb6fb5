"""Sets of one's own: folders of pictures and masks in the data root, opened by the folder's name."""

from pathlib import Path

import numpy as np
import pytest

from layout_trees import NOTHING, blob, photo, save
from samtune.common.errors import InputError
from samtune.data.download import check
from samtune.data.registry import DATASETS, describe, info, list_datasets, open_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the set "mine" of five pictures."""
    for number in range(5):
        photo(tmp_path / f"mine/images/{number}.png", number)
        save(tmp_path / f"mine/masks/{number}.png", blob(number, 4))
    return tmp_path


def test_a_folder_opens_by_its_name_with_one_mask_a_picture(root):
    mine = open_dataset("mine", root)
    assert [len(mine.ids(split)) for split in ("train", "val", "test")] == [3, 1, 1]
    sample = mine.load("2")
    assert sample.dataset == "mine" and (sample.masks == blob(2, 4)[None]).all()
    assert check("mine", root).ok


def test_a_folder_of_masks_has_an_object_a_file_with_its_class(root):
    (root / "mine/masks/2.png").unlink()
    save(root / "mine/masks/2/000_red_ball.png", blob(1, 1))
    save(root / "mine/masks/2/001.png", blob(12, 20))
    sample = open_dataset("mine", root).load("2")
    assert (sample.masks == np.stack([blob(1, 1), blob(12, 20)])).all()
    assert sample.object_class == ("red_ball", "")


def test_a_picture_without_mask_is_named(root):
    (root / "mine/masks/3.png").unlink()
    with pytest.raises(
        InputError, match=r"image .*mine/images/3.png has no masks: expected .*mine/masks/3.png, or a f"
    ):
        open_dataset("mine", root)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("images/valid/9.png", "images/valid: the folders in images are train, val, test"),
        ("images/train/9.png", "images/0.png: the folders"),
        ("masks/9.png", r"masks/9.png is the mask of no picture: expected one in .*images"),
        ("images/0.jpg", "two files for '0'"),
    ],
)
def test_what_would_be_overlooked_is_told(root, path, message):
    photo(root / "mine" / path)
    with pytest.raises(InputError, match=message):
        open_dataset("mine", root)


def test_masks_beside_their_folders_are_told(root):
    for part in ("images", "masks"):
        (root / "mine" / part).rename(root / "moved")
        (root / "mine" / part).mkdir()
        (root / "moved").rename(root / f"mine/{part}/train")
    assert len(open_dataset("mine", root).ids("train")) == 4
    save(root / "mine/masks/test/1.png", blob(1, 1))
    with pytest.raises(InputError, match="masks/test: the folders in images .* masks has the same"):
        open_dataset("mine", root)


def test_a_set_without_test_pictures_does_not_pass_the_check(root):
    for number in range(5):
        for part in ("images", "masks"):
            (root / f"mine/{part}/train").mkdir(exist_ok=True)
            (root / f"mine/{part}/{number}.png").rename(root / f"mine/{part}/train/{number}.png")
    save(root / "mine/masks/train/2.png", NOTHING)
    assert check("mine", root).problems == ["no test picture with an object"]
    assert check("mine", root).without_objects == 1


def test_it_is_listed_but_no_known_set_is_taken_for_one(root, monkeypatch):
    photo(root / "doors/images/a.png")  # a known set in this layout
    save(root / "doors/masks/a/0.png", blob(1, 1))
    photo(root / "half/images/a.png")
    rows = {row.name: row for row in list_datasets(root)}
    assert set(rows) == {*DATASETS, "mine"} and rows["mine"].images == {"train": 3, "val": 1, "test": 1}
    assert describe("doors", root).title.startswith("DOORS")
    assert "your own" in info("mine", root)
    with pytest.raises(
        InputError, match=r"unknown data set 'half'; known: .*mine.*; a set of your own is .*half \(let"
    ):
        open_dataset("half", root)
    monkeypatch.setenv("SAMTUNE_DATA", str(root))
    assert describe("mine").licence == "yours"
    with pytest.raises(InputError, match="unknown data set '../mine'"):
        describe("../mine")
