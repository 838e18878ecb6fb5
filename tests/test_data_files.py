"""What counts as data, and how it is found: leftovers, links, names in other forms, one damaged set among others."""

import os
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from layout_trees import blob, photo, save
from samtune.common.errors import InputError
from samtune.data.files import by_name, find, folders, is_data, pictures, readable
from samtune.data.folder import FolderDataset
from samtune.data.registry import list_datasets, open_dataset
from samtune.data.sample import CroppedMasks

LEFT = ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN")


@pytest.mark.parametrize("name", LEFT)
def test_what_systems_leave_behind_is_no_data(name):
    assert not is_data(Path("somewhere") / name)


@pytest.mark.parametrize("name", ["a.jpg", "_a.jpg", "@home.jpg", "#12.png", "a.b.png", "eaDir"])
def test_names_of_people_are_data(name):
    assert is_data(Path(name))


def leave_behind(folder: Path) -> None:
    """What macOS, Windows and a Synology put beside the files of every folder under `folder`."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for file in [path for path in place.iterdir() if path.is_file()]:
            (place / f"._{file.name}").write_bytes(b"\0\5\26\7")
            (place / "@eaDir").mkdir(exist_ok=True)
            (place / "@eaDir" / file.name).write_bytes(b"a thumbnail")
        (place / "Thumbs.db").write_bytes(b"")
        (place / "__MACOSX").mkdir(exist_ok=True)


def test_own_folders_with_leftovers(tmp_path):
    for number in range(5):
        photo(tmp_path / "images" / f"p{number}.jpg")
        save(tmp_path / "masks" / f"p{number}.png", blob(number, 3))
    before = FolderDataset(tmp_path / "images", tmp_path / "masks")
    leave_behind(tmp_path)
    after = FolderDataset(tmp_path / "images", tmp_path / "masks")
    assert [after.ids(split) for split in ("train", "val", "test")] == [
        before.ids(split) for split in ("train", "val", "test")
    ]


def known_sets(root: Path) -> dict[str, tuple[str, ...]]:
    """Small trees of sets whose loaders list files by patterns of their own; their splits."""
    for number in range(10):
        photo(root / f"crackforest/x/{number}.jpg")  # a folder that no loader knows
        name = f"{number:012}"
        photo(root / f"coco128-seg/coco128-seg/images/train2017/{name}.jpg")
        label = root / f"coco128-seg/coco128-seg/labels/train2017/{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5")
        photo(root / f"kvasir-seg/Kvasir-SEG/images/{name}.jpg", seed=number)
        save(root / f"kvasir-seg/Kvasir-SEG/masks/{name}.jpg", blob(number, 3))
        photo(root / f"bbbc038/stage1_train/n{number}/images/n{number}.png", seed=number)
        save(root / f"bbbc038/stage1_train/n{number}/masks/0.png", blob(number, 3))
        photo(root / f"neu-seg/images/training/{number}.jpg", seed=number)
        photo(root / f"neu-seg/images/test/{number}.jpg", seed=number)
        for part in ("training", "test"):
            save(root / f"neu-seg/annotations/{part}/{number}.png", blob(number, 3).astype(np.uint8))
        for kind in ("Blowhole", "Break", "Crack", "Fray", "Uneven"):
            photo(root / f"magnetic-tile/MT_{kind}/Imgs/exp1_num_{number}.jpg")
            save(root / f"magnetic-tile/MT_{kind}/Imgs/exp1_num_{number}.png", blob(number, 3))
    names = ("coco128-seg", "kvasir-seg", "bbbc038", "neu-seg", "magnetic-tile")
    return {name: splits_of(name, root) for name in names}


def splits_of(name: str, root: Path) -> tuple[str, ...]:
    dataset = open_dataset(name, root)
    return tuple(id for split in ("train", "val", "test") for id in (split, *dataset.ids(split)))


def test_known_sets_with_leftovers_and_uppercase_suffixes_keep_their_splits(tmp_path):
    before = known_sets(tmp_path)
    leave_behind(tmp_path)
    assert {name: splits_of(name, tmp_path) for name in before} == before
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        if is_data(path) and is_data(path.parent):
            path.rename(path.with_suffix(path.suffix.upper()))
    assert {name: splits_of(name, tmp_path) for name in before} == before
    for name in before:
        dataset = open_dataset(name, tmp_path)
        id = [*dataset.ids("train"), *dataset.ids("test")][0]
        assert dataset.load(id).masks.sum() > 0


def test_sets_behind_links(tmp_path):
    before = known_sets(tmp_path / "store")
    (tmp_path / "root").mkdir()
    for name in before:
        (tmp_path / "root" / name).mkdir()
        for inside in (tmp_path / "store" / name).iterdir():
            (tmp_path / "root" / name / inside.name).symlink_to(inside)
    assert {name: splits_of(name, tmp_path / "root") for name in before} == before


def test_find_ends_where_links_go_in_circles(tmp_path):
    photo(tmp_path / "a" / "b" / "x.JPG")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    found = find(tmp_path, "**/*.jpg")
    assert tmp_path / "a" / "b" / "x.JPG" in found and len(found) <= 2
    assert find(tmp_path / "nowhere", "**/*.jpg") == []
    assert find(tmp_path, "a/*/*.jpg") == [tmp_path / "a" / "b" / "x.JPG"]


@pytest.mark.parametrize("pattern", ["*", "a/*.png", "**/*.png", "**/masks/**/*.png", "*/masks", "a/**/x.png"])
def test_find_is_glob_where_there_is_nothing_special(tmp_path, pattern):
    for name in ("a/x.png", "a/masks/y.png", "a/masks/deep/z.png", "b/masks/w.png", "c.png", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find(tmp_path, pattern) == sorted(set(tmp_path.glob(pattern)))


def test_names_in_two_unicode_forms_are_one_name(tmp_path):
    name = "prüfling-é"
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    for number in range(5):
        photo(tmp_path / "images" / f"{composed}{number}.png")
        save(tmp_path / "masks" / f"{decomposed}{number}.png", blob(number, 3))
    dataset = FolderDataset(tmp_path / "images", tmp_path / "masks", split="test")
    assert dataset.ids("test") == [f"{composed}{number}" for number in range(5)]
    assert (dataset.load(f"{composed}2").masks[0] == blob(2, 3)).all()
    photo(tmp_path / "images" / f"{decomposed}0.png")
    with pytest.raises(InputError, match="two files for"):
        FolderDataset(tmp_path / "images", tmp_path / "masks")


def test_names_that_are_no_utf8_are_read_as_latin1(tmp_path):
    raw = os.fsdecode("prüf".encode("latin-1"))
    assert readable(raw) == "prüf" and readable("prüf") == "prüf"
    for number in range(5):
        photo(tmp_path / "p.png").rename(tmp_path / f"{raw}{number}.png")
    found = by_name(pictures(tmp_path))
    assert sorted(found) == [f"prüf{number}" for number in range(5)]
    "".join(found).encode()  # can be written to a table
    assert all(path.is_file() for path in found.values())


def test_missing_folders_are_named(tmp_path):
    for read in (pictures, folders):
        with pytest.raises(InputError, match="no such folder: .*absent"):
            read(tmp_path / "absent")


@pytest.mark.parametrize("damage", ["null", "{}", '{"images": 3, "annotations": []}', "[1]", '{"images": [{}]}', "{"])
def test_one_damaged_set_does_not_hide_the_others(tmp_path, damage):
    known_sets(tmp_path)
    photo(tmp_path / "coco2017" / "val2017" / "000000000001.jpg")
    listing = tmp_path / "coco2017" / "annotations" / "instances_val2017.json"
    listing.parent.mkdir()
    listing.write_text(damage)
    with pytest.raises(InputError, match="instances_val2017.json"):
        open_dataset("coco2017", tmp_path)
    rows = {row.name: row for row in list_datasets(tmp_path)}
    assert rows["coco2017"].present and rows["coco2017"].images is None
    assert rows["kvasir-seg"].images == {"train": 6, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("name", "image", "masks"),
    [("doors", "images/p.png", "masks/p"), ("bbbc038", "stage1_train/p/images/p.png", "stage1_train/p/masks")],
)
def test_many_objects_of_a_known_set_take_no_plane_each(tmp_path, monkeypatch, name, image, masks):
    labels = np.kron(np.arange(60).reshape(6, 10), np.ones((50, 50), int))  # 60 objects, 300 x 500 pixels
    save(tmp_path / name / image, np.zeros((300, 500, 3), np.uint8))
    for value in range(60):
        save(tmp_path / name / masks / f"{value}.png", labels == value)
    expected = open_dataset(name, tmp_path).load("p").masks
    assert isinstance(expected, np.ndarray)
    monkeypatch.setattr("samtune.data.sample.MOST_BYTES", 10**6)
    dataset = open_dataset(name, tmp_path)
    tracemalloc.start()
    found = dataset.load("p").masks
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 300 * 500 and isinstance(found, CroppedMasks) and np.array_equal(found, expected)
