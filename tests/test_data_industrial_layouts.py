from collections import Counter

import numpy as np
import pytest

from layout_trees import HEIGHT, NOTHING, WIDTH, all_ids, blob, grey_photo, photo, save
from samtune.common.errors import InputError
from samtune.data.files import walk
from samtune.data.industrial_layouts import DATASETS


def opened(name, folder, **options):
    dataset = DATASETS[name].factory(folder, **options)
    # What a loader can read, the registry's look at the folder must let through.
    assert all(any(walk(folder, pattern)) for pattern in DATASETS[name].layout)
    return dataset


def category_tree(folder, kinds, good="good", image_suffix=".png", mask_ending="_mask.png"):
    """One category: five images with masks of each kind of defect, defect-free images in train (3) and test (1)."""
    for number in range(3):
        photo(folder / "train" / good / f"{number:03}{image_suffix}")
    photo(folder / "test" / good / f"000{image_suffix}")
    for kind in kinds:
        for number in range(5):
            photo(folder / "test" / kind / f"{number:03}{image_suffix}", seed=number)
            save(folder / "ground_truth" / kind / f"{number:03}{mask_ending}", blob(number, 2 * number))


def mvtec_tree(folder):
    category_tree(folder / "bottle", ("bent", "cut"))
    category_tree(folder / "grid", ("bent", "cut"))
    return folder


@pytest.mark.parametrize("name", ["mvtec-ad", "mpdd"])
def test_mvtec_layout_lists_anomalous_images_with_their_masks(tmp_path, name):
    mvtec_tree(tmp_path)
    (tmp_path / "bottle" / "test" / "cut" / "._000.png").write_bytes(b"left behind by a file system")
    (tmp_path / "license.txt").write_text("terms")
    dataset = opened(name, tmp_path)
    assert len(all_ids(dataset)) == 20
    assert dataset.dropped == {"defect-free": 8}
    sample = dataset.load("grid/test/cut/003")
    assert sample.image.shape == (HEIGHT, WIDTH, 3) and sample.image.dtype == np.uint8
    assert sample.masks.shape == (1, HEIGHT, WIDTH) and sample.masks.dtype == bool
    assert (sample.masks[0] == blob(3, 6)).all()
    assert sample.object_class == ("grid/cut",) and sample.dataset == name
    assert sample.split == dataset.split_of(sample.id)


def test_anomalous_images_are_split_60_20_20_within_each_defect(tmp_path):
    dataset = opened("mvtec-ad", mvtec_tree(tmp_path))
    kinds = [f"{category}/test/{kind}" for category in ("bottle", "grid") for kind in ("bent", "cut")]
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        found = Counter(id.rsplit("/", 1)[0] for id in dataset.ids(split))
        assert found == dict.fromkeys(kinds, count)
    again = opened("mvtec-ad", tmp_path)
    assert all(again.ids(split) == dataset.ids(split) for split in ("train", "val", "test"))


def test_defect_free_images_keep_the_official_parts_and_have_no_masks(tmp_path):
    dataset = opened("mvtec-ad", mvtec_tree(tmp_path), defect_free=True)
    assert dataset.ids("test") == ["bottle/test/good/000", "grid/test/good/000"]
    assert len(dataset.ids("train") + dataset.ids("val")) == 6
    assert dataset.dropped == {"anomalous": 20}
    sample = dataset.load("grid/test/good/000")
    assert sample.masks.shape == (0, HEIGHT, WIDTH) and sample.object_class == ()


def test_an_archive_may_bring_its_own_top_folder(tmp_path):
    mvtec_tree(tmp_path / "mvtec_anomaly_detection")
    save(tmp_path / "__MACOSX" / "bottle" / "test" / "x.png", NOTHING)
    assert "bottle/test/bent/000" in all_ids(opened("mvtec-ad", tmp_path))


def test_btad_has_ok_and_ko_and_formats_that_differ_by_product(tmp_path):
    folder = tmp_path / "BTech_Dataset_transformed"
    category_tree(folder / "01", ("ko",), good="ok", image_suffix=".bmp", mask_ending=".png")
    category_tree(folder / "02", ("ko",), good="ok", image_suffix=".png", mask_ending=".png")
    category_tree(folder / "03", ("ko",), good="ok", image_suffix=".bmp", mask_ending=".bmp")
    dataset = opened("btad", tmp_path)
    assert len(all_ids(dataset)) == 15 and dataset.dropped == {"defect-free": 12}
    for product in ("01", "02", "03"):
        sample = dataset.load(f"{product}/test/ko/004")
        assert (sample.masks[0] == blob(4, 8)).all() and sample.object_class == (f"{product}/ko",)


def test_a_missing_mask_is_named_with_both_paths(tmp_path):
    mvtec_tree(tmp_path)
    mask = tmp_path / "grid" / "ground_truth" / "cut" / "002_mask.png"
    mask.unlink()
    with pytest.raises(InputError) as error:
        opened("mvtec-ad", tmp_path)
    assert str(mask) in str(error.value) and str(tmp_path / "grid" / "test" / "cut" / "002.png") in str(error.value)


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_is_refused_with_the_path_expected(tmp_path, name):
    with pytest.raises(InputError, match=str(tmp_path)):
        opened(name, tmp_path)


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    mvtec_tree(tmp_path)
    save(tmp_path / "grid" / "ground_truth" / "cut" / "000_mask.png", np.ones((10, 12), dtype=bool))
    with pytest.raises(InputError, match="32x24.*12x10"):
        opened("mvtec-ad", tmp_path).load("grid/test/cut/000")


def visa_tree(folder, test_share=1.0):
    """Two objects; masks hold small numbers, one per kind of defect; `test_share` of the anomalous are in test."""
    rows = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for number in range(2):
            image = f"{name}/Data/Images/Normal/{number:04}.JPG"
            photo(folder / image)
            rows.append(f"{name},{'train' if number == 0 else 'test'},normal,{image},")
        for number in range(10):
            image = f"{name}/Data/Images/Anomaly/{number:03}.JPG"
            mask = f"{name}/Data/Masks/Anomaly/{number:03}.png"
            photo(folder / image)
            save(folder / mask, (blob(0, number) * 1 + blob(12, number) * 4).astype(np.uint8))
            rows.append(f"{name},{'test' if number < 10 * test_share else 'train'},anomaly,{image},{mask}")
    return rows


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def test_visa_masks_coded_by_kind_of_defect_are_one_mask(tmp_path):
    write_lines(tmp_path / "split_csv" / "1cls.csv", visa_tree(tmp_path))
    dataset = opened("visa", tmp_path)
    sample = dataset.load("pcb1/Data/Images/Anomaly/007")
    assert (sample.masks == (blob(0, 7) | blob(12, 7))[None]).all()
    assert sample.object_class == ("pcb1",)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [12, 4, 4]
    assert dataset.dropped == {"defect-free": 4}
    normal = opened("visa", tmp_path, defect_free=True)
    assert normal.ids("test") == ["candle/Data/Images/Normal/0001", "pcb1/Data/Images/Normal/0001"]


def test_visa_protocols_with_anomalous_training_images_keep_their_parts(tmp_path):
    write_lines(tmp_path / "split_csv" / "2cls_highshot.csv", visa_tree(tmp_path, test_share=0.5))
    dataset = opened("visa", tmp_path, protocol="2cls_highshot")
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [8, 2, 10]
    assert all(int(id[-3:]) < 5 for id in dataset.ids("test"))
    with pytest.raises(InputError, match="2cls_fewshot"):
        opened("visa", tmp_path, protocol="3cls")
    with pytest.raises(InputError, match=r"split_csv/1cls\.csv"):
        opened("visa", tmp_path)


def test_visa_missing_mask(tmp_path):
    write_lines(tmp_path / "split_csv" / "1cls.csv", visa_tree(tmp_path))
    mask = tmp_path / "candle/Data/Masks/Anomaly/003.png"
    mask.unlink()
    with pytest.raises(InputError, match=str(mask)):
        opened("visa", tmp_path)


def kolektor_tree(folder):
    for part, count in (("train", 10), ("test", 4)):
        for number in range(count):
            photo(folder / part / f"{10000 + number}.png")
            save(folder / part / f"{10000 + number}_GT.png", blob(3, number) if number % 2 else NOTHING)


def test_kolektorsdd2_drops_images_whose_mask_is_empty_and_the_stray_copies(tmp_path):
    kolektor_tree(tmp_path)
    photo(tmp_path / "train" / "10001 (copy).png")
    save(tmp_path / "train" / "10001_GT (copy).png", blob(0, 0))
    dataset = opened("kolektorsdd2", tmp_path)
    assert dataset.ids("test") == ["test/10001", "test/10003"]
    assert (len(dataset.ids("train")), len(dataset.ids("val"))) == (4, 1)
    assert dataset.dropped == {"defect-free": 7, "stray copy": 1}
    assert (dataset.load("test/10003").masks[0] == blob(3, 3)).all()
    free = opened("kolektorsdd2", tmp_path, defect_free=True)
    assert free.ids("test") == ["test/10000", "test/10002"]
    (tmp_path / "test" / "10002_GT.png").unlink()
    with pytest.raises(InputError, match="10002_GT.png"):
        opened("kolektorsdd2", tmp_path)


def test_dagm_labels_exist_for_defective_images_only(tmp_path):
    for category in ("Class1", "Class10"):
        for part in ("Train", "Test"):
            for number in range(10):
                grey_photo(tmp_path / category / part / f"{number:04}.PNG")
            for number in range(5):
                save(tmp_path / category / part / "Label" / f"{number:04}_label.PNG", blob(number, 1))
            (tmp_path / category / part / "Label" / "Labels.txt").write_text("1\n")
            (tmp_path / category / part / "Label" / "Thumbs.db").write_bytes(b"")
    dataset = opened("dagm2007", tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [8, 2, 10]
    assert dataset.dropped == {"defect-free": 20}
    sample = dataset.load("Class10/Test/0004")
    assert (sample.masks[0] == blob(4, 1)).all() and sample.object_class == ("Class10",)
    assert (sample.image[..., 0] == sample.image[..., 2]).all()
    (tmp_path / "Class1" / "Test" / "0003.PNG").unlink()
    with pytest.raises(InputError, match="Class1/Test/0003.PNG"):
        opened("dagm2007", tmp_path)


def test_spt_folder_pairs_jpg_with_png_of_one_set_or_of_all(tmp_path):
    for name in ("mtd", "visa"):
        for number in range(4):
            photo(tmp_path / name / "test" / f"crack.{number}.jpg")
            save(tmp_path / name / "test" / f"crack.{number}.png", blob(2, number) if number else NOTHING)
    one = opened("spt-folder", tmp_path, set="mtd")
    assert one.ids("test") == [f"mtd/test/crack.{number}" for number in (1, 2, 3)] and one.ids("train") == []
    assert one.dropped == {"defect-free": 1}
    assert (one.load("mtd/test/crack.2").masks[0] == blob(2, 2)).all()
    both = opened("spt-folder", tmp_path)
    assert len(both.ids("test")) == 6 and both.load("visa/test/crack.1").object_class == ("visa",)
    with pytest.raises(InputError, match="known: mtd, visa"):
        opened("spt-folder", tmp_path, set="mdt")
    (tmp_path / "visa" / "test" / "crack.3.png").unlink()
    with pytest.raises(InputError, match="crack.3.png"):
        opened("spt-folder", tmp_path)


def test_every_description_is_filled_in():
    for name, description in DATASETS.items():
        assert description.name == name and description.layout
        assert not description.committed_pictures and description.pretraining.startswith("none")
        for text in (description.licence, description.citation, description.how_to_get, description.splits):
            assert len(text) > 5
