"""The user's own folders: what is read, and one clear line for each thing that can be wrong."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

import samtune.data.sample as sample_module
from samtune.common.errors import InputError
from samtune.data.download import check_dataset
from samtune.data.folder import FolderDataset, write_folders
from samtune.prompts import tight_boxes


@pytest.fixture
def folders(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"part{number}.jpg")
        mask = np.zeros((20, 30), dtype=np.uint8)
        mask[3:9, number : number + 5] = 255
        Image.fromarray(mask).save(masks / f"part{number}.png")
    (images / ".hidden.png").write_text("left by some program")
    (images / "readme.txt").write_text("no picture")
    return images, masks


def put_mask(path, values):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def test_pairs_by_name(folders):
    dataset = FolderDataset(*folders)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [6, 2, 2]
    report = check_dataset(dataset)
    assert report.ok and sum(report.objects.values()) == 10
    sample = dataset.load("part3")
    assert sample.masks.shape == (1, 20, 30) and sample.masks[0, 3:9, 3:8].all() and sample.masks.sum() == 30
    assert FolderDataset(*folders, split="test").ids("test") == [f"part{number}" for number in range(10)]


def test_image_without_mask_and_mask_without_image(folders):
    images, masks = folders
    (masks / "part4.png").unlink()
    with pytest.raises(InputError, match=r"images/part4.jpg has no mask; expected .*masks/part4.png"):
        FolderDataset(*folders)
    (images / "part7.jpg").unlink()
    dataset = FolderDataset(*folders, skip_bad=True)
    assert len(dataset.skipped) == 2 and dataset.dropped == {"bad": 2}
    assert "masks/part7.png has no image; expected" in dataset.skipped[1] and "images/part7" in dataset.skipped[1]
    assert "part4" not in sum((dataset.ids(split) for split in ("train", "val", "test")), [])


def test_mask_of_other_size_is_never_resized(folders):
    put_mask(folders[1] / "part2.png", np.full((10, 15), 255))
    with pytest.raises(InputError, match="part2.jpg is 30x20 pixels but mask .*part2.png is 15x10"):
        FolderDataset(*folders)
    assert len(FolderDataset(*folders, skip_bad=True).skipped) == 1


def test_turned_images_match_their_masks_upright(folders):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 20, 3), dtype=np.uint8)).save(folders[0] / "part0.jpg", exif=exif)
    assert FolderDataset(*folders).load("part0").image.shape == (20, 30, 3)


def test_a_set_written_as_folders_comes_back(folders, tmp_path):
    ours = FolderDataset(*folders, target="instances")
    written = write_folders(ours, ours.ids("train"), tmp_path / "out")
    again = FolderDataset(*written, split="train")
    assert again.ids("train") == sorted(ours.ids("train"))
    for id in again.ids("train"):
        before, after = ours.load(id), again.load(id)
        assert np.array_equal(before.image, after.image) and np.array_equal(before.masks, after.masks)


def test_truncated_image(folders):
    whole = (folders[0] / "part5.jpg").read_bytes()
    (folders[0] / "part5.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read image .*part5.jpg: .*(?i:truncated)"):
        FolderDataset(*folders).load("part5")
    dataset = FolderDataset(*folders, skip_bad=True)
    assert len(dataset.skipped) == 1 and "truncated" in dataset.skipped[0].lower()


def test_empty_masks_are_dropped_and_counted(folders):
    put_mask(folders[1] / "part1.png", np.zeros((20, 30)))
    assert FolderDataset(*folders).dropped == {"empty mask": 1}
    for number in range(10):
        put_mask(folders[1] / f"part{number}.png", np.zeros((20, 30)))
    with pytest.raises(InputError, match="no sample left .* 10 empty masks, 0 bad pairs"):
        FolderDataset(*folders)


def test_masks_coded_zero_one(folders):
    for number in range(10):
        mask = np.zeros((20, 30))
        mask[2:5, 3:9] = 1
        put_mask(folders[1] / f"part{number}.png", mask)
    with pytest.raises(InputError, match=r"coded 0/1.*\(values 0, 1\).*mask_coding='binary1'"):
        FolderDataset(*folders)
    assert FolderDataset(*folders, mask_coding="binary1").load("part1").masks.sum() == 18
    put_mask(folders[1] / "part1.png", np.full((20, 30), 255))
    with pytest.raises(InputError, match=r"not coded 0/1 \(values 255\)"):
        FolderDataset(*folders, mask_coding="binary1")


def test_index_maps(folders):
    for number in range(10):
        labels = np.zeros((20, 30))
        labels[2:8, 3:9], labels[10:12, 1:4], labels[19] = 1, 4, 255
        put_mask(folders[1] / f"part{number}.png", labels)
    with pytest.raises(InputError, match=r"index map.*\(values 0, 1, 4, 255\).*mask_coding='index'"):
        FolderDataset(*folders, skip_bad=False)
    sample = FolderDataset(*folders, mask_coding="index", void=255).load("part1")
    assert [mask.sum() for mask in sample.masks] == [36, 6] and sample.object_class == ("1", "4")
    assert sample.ignore.sum() == 30 and sample.ignore[19].all()
    assert len(FolderDataset(*folders, mask_coding="index").load("part1").masks) == 3


def test_one_mask_per_object_folder(folders):
    (folders[1] / "part6.png").unlink()
    for number, top in enumerate((1, 8, 15)):
        mask = np.zeros((20, 30))
        mask[top : top + 3, 4:8] = 255 if number < 2 else 0
        put_mask(folders[1] / "part6" / f"object{number}.png", mask)
    sample = FolderDataset(*folders).load("part6")
    assert [mask.sum() for mask in sample.masks] == [12, 12]  # the third is empty
    put_mask(folders[1] / "part6" / "object3.png", np.full((5, 5), 255))
    with pytest.raises(InputError, match="part6.jpg is 30x20 pixels but mask .*object3.png is 5x5"):
        FolderDataset(*folders)


def test_wrong_folders_and_options(folders, tmp_path):
    with pytest.raises(InputError, match="no such folder: .*absent"):
        FolderDataset(tmp_path / "absent", folders[1])
    with pytest.raises(InputError, match="same folder"):
        FolderDataset(folders[0], folders[0])
    with pytest.raises(InputError, match="unknown mask_coding 'binary'; known: binary1"):
        FolderDataset(*folders, mask_coding="binary")
    with pytest.raises(InputError, match="void=255 needs mask_coding='index'"):
        FolderDataset(*folders, void=255)
    with pytest.raises(InputError, match="unknown split 'tset'"):
        FolderDataset(*folders, split="tset")
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(folders[0] / "part0.png")
    with pytest.raises(InputError, match="two files for 'part0'"):
        FolderDataset(*folders)
    for name in ("no images", "no masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="no picture in .*no images"):
        FolderDataset(tmp_path / "no images", tmp_path / "no masks")


@pytest.mark.parametrize("coding", ["binary255", "index"])
def test_the_union_is_that_of_the_objects(folders, coding):
    for number in range(10):
        labels = np.zeros((20, 30))
        labels[2:5, number : number + 3], labels[7:9, 3:6], labels[18] = 1, 2, 255
        put_mask(folders[1] / f"part{number}.png", labels)
        if coding == "binary255":
            (folders[1] / f"part{number}.png").unlink()
            for value in (0, 1, 2):
                put_mask(folders[1] / f"part{number}" / f"{value}.png", (labels == value + (value == 0) * 9) * 255)
    options = {"mask_coding": coding} | ({"void": 255} if coding == "index" else {})
    objects = FolderDataset(*folders, **options).load("part4")
    union = FolderDataset(*folders, **options, target="union").load("part4")
    assert len(objects.masks) == 2 and np.array_equal(union.masks, objects.masks.any(0, keepdims=True))
    assert (union.ignore is None) == (coding == "binary255") and union.object_class == ()


def many_objects(tmp_path, coding):
    """Three pictures of 500 x 500 pixels; the first has 100 objects, 25 MB as planes."""
    height = width = 500
    labels = np.zeros((height, width), np.uint16)
    for index in range(100):
        row, column = divmod(index, 10)
        labels[50 * row : 50 * row + 20, 50 * column : 50 * column + 20] = index + 1
    for number in range(3):
        put_mask(tmp_path / "images" / f"p{number}.png", np.zeros((height, width, 3)))
        (tmp_path / "masks").mkdir(exist_ok=True)
        if coding == "index":
            Image.fromarray(labels).save(tmp_path / "masks" / f"p{number}.png")
        else:
            for value in range(1, 101) if number == 0 else [1]:
                put_mask(tmp_path / "masks" / f"p{number}" / f"{value}.png", (labels == value) * 255)
    return tmp_path / "images", tmp_path / "masks", coding


@pytest.mark.parametrize("coding", ["binary255", "index"])
@pytest.mark.parametrize("target", ["union", "instances"])
def test_many_objects_take_no_plane_each(tmp_path, coding, target, monkeypatch):
    monkeypatch.setattr(sample_module, "MOST_BYTES", 10**6)
    files = many_objects(tmp_path, coding)
    tracemalloc.start()
    dataset = FolderDataset(*files, split="test", target=target)
    assert sum(mask.sum() for mask in dataset.load("p0").masks) == 100 * 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 500 * 500


@pytest.mark.parametrize("coding", ["binary255", "index"])
def test_crops_are_read_as_the_planes_are(tmp_path, coding, monkeypatch):
    files = many_objects(tmp_path, coding)
    planes = FolderDataset(*files, split="test").load("p0").masks
    monkeypatch.setattr(sample_module, "MOST_BYTES", 10**6)
    crops = FolderDataset(*files, split="test").load("p0").masks
    assert isinstance(planes, np.ndarray) and isinstance(crops, sample_module.CroppedMasks)
    assert (crops.shape, crops.dtype, crops.ndim) == (planes.shape, planes.dtype, planes.ndim)
    assert all(np.array_equal(one, plane) for one, plane in zip(crops, planes, strict=True))
    for axis in (None, 0, 1, 2, (1, 2)):
        assert np.array_equal(crops.any(axis), planes.any(axis))
    assert np.array_equal(np.stack(list(crops.flipped())), planes[:, :, ::-1])
    assert np.array_equal(crops[:7], planes[:7]) and np.array_equal(crops[:, 3:60, 9:], planes[:, 3:60, 9:])
    assert np.array_equal(crops, planes) and isinstance(crops[:7], np.ndarray)
    picked = np.array([7, 2])
    assert np.array_equal(np.stack(list(crops[picked])), planes[picked])
    assert np.array_equal(tight_boxes(crops), tight_boxes(planes))
    some = planes.any((1, 2)) & (np.arange(100) % 2 == 0)
    assert np.array_equal(np.stack(list(crops[some])), planes[some])
