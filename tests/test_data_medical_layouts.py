import shutil

import numpy as np
import pytest
from PIL import Image

from layout_trees import HEIGHT, NOTHING, WIDTH, all_ids, blob, photo, save
from samtune.common.errors import InputError
from samtune.data.files import walk
from samtune.data.medical_layouts import DATASETS
from samtune.data.polyps import DATASETS as POLYPS
from samtune.data.registry import open_dataset


def opened(name, folder):
    dataset = DATASETS[name].factory(folder)
    # What a loader can read, the registry's look at the folder must let through.
    assert all(any(walk(folder, pattern)) for pattern in DATASETS[name].layout)
    return dataset


def test_kvasir_masks_are_noisy_jpeg(tmp_path):
    folder = tmp_path / "Kvasir-SEG"
    expected = np.zeros((48, 64), dtype=bool)
    expected[16:32, 16:48] = True
    rng = np.random.default_rng(0)
    for number in range(10):
        save(folder / "images" / f"cju{number}.jpg", rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        (folder / "masks").mkdir(exist_ok=True)
        noisy = expected[..., None] * 255.0 + rng.normal(0, 6, (48, 64, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "masks" / f"cju{number}.jpg", quality=60)
    (folder / "kavsir_bboxes.json").write_text("{}")
    dataset = opened("kvasir-seg", tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [6, 2, 2]
    sample = dataset.load("cju4")
    assert (sample.masks == expected[None]).all() and sample.object_class == ("polyp",)
    assert len(np.unique(np.asarray(Image.open(folder / "masks" / "cju4.jpg")))) > 10
    (folder / "masks" / "cju7.jpg").unlink()
    with pytest.raises(InputError, match="masks/cju7"):
        opened("kvasir-seg", tmp_path)


def polyp_tree(folder, training=("image", "mask")):
    """PraNet's archives: both ends of five sequences of CVC-ClinicDB, ten pictures of Kvasir, and five test sets."""
    frames = [1, 25, 26, 50, 51, 67, 68, 78, 79, 103]
    for number, stem in enumerate([*map(str, frames), *(f"cju{number}" for number in range(10))]):
        photo(folder / "TrainDataset" / training[0] / f"{stem}.png")
        save(folder / "TrainDataset" / training[1] / f"{stem}.png", blob(number % 10, 3))
    for number, place in enumerate(("CVC-300", "CVC-ClinicDB", "Kvasir", "CVC-ColonDB", "ETIS-LaribPolypDB")):
        for stem in range(100, 102 + number):
            photo(folder / "TestDataset" / place / "images" / f"{stem}.png", seed=stem)
            save(folder / "TestDataset" / place / "masks" / f"{stem}.png", blob(number, stem - 100))


@pytest.mark.parametrize("training", [("image", "mask"), ("images", "masks")])
def test_polyps_train_one_model_for_five_test_sets(tmp_path, training):
    polyp_tree(tmp_path / "polyps", training)
    whole = open_dataset("polyps", tmp_path)
    assert [len(whole.ids(split)) for split in ("train", "val", "test")] == [16, 4, 2 + 3 + 4 + 5 + 6]
    frames = {int(id.partition("/")[2]) for id in whole.ids("val") if id.startswith("CVC-ClinicDB/")}
    assert frames in ({1, 25}, {26, 50}, {51, 67}, {68, 78}, {79, 103})  # a sequence is on one side
    counts = {}
    for name in [name for name in POLYPS if name != "polyps"]:
        alone = open_dataset(name, tmp_path)
        assert alone.ids("train") == alone.ids("val") == [] and set(alone.ids("test")) <= set(whole.ids("test"))
        for id in alone.ids("test"):
            assert (alone.load(id).masks == whole.load(id).masks).all()
        counts[name] = len(alone.ids("test"))
    assert counts == {
        "polyps-cvc-300": 2,
        "polyps-cvc-clinicdb": 3,
        "polyps-kvasir": 4,
        "polyps-cvc-colondb": 5,
        "polyps-etis": 6,
    }
    sample = open_dataset("polyps-cvc-colondb", tmp_path).load("CVC-ColonDB/102")
    assert (sample.masks == blob(3, 2)).all() and sample.object_class == ("polyp",) and sample.split == "test"


def test_polyp_test_sets_open_without_the_training_part(tmp_path):
    polyp_tree(tmp_path / "polyps")
    shutil.rmtree(tmp_path / "polyps" / "TrainDataset")
    assert len(open_dataset("polyps-etis", tmp_path).ids("test")) == 6
    with pytest.raises(InputError, match="polyps.*TrainDataset"):
        open_dataset("polyps", tmp_path)


def test_the_counts_of_the_protocol_are_those_of_the_paper():
    tests = {name: about.images for name, about in POLYPS.items() if name != "polyps"}
    assert sum(tests.values()) == 798 and POLYPS["polyps"].images == 900 + 550 + 798
    assert all(POLYPS[name].folder == "polyps" for name in tests)


def isic_part(folder, part, numbers):
    for number in numbers:
        place = folder / f"ISIC2018_Task1-2_{part}_Input"
        photo(place / f"ISIC_{number:07}.jpg", seed=number)
        truth = folder / f"ISIC2018_Task1_{part}_GroundTruth"
        save(truth / f"ISIC_{number:07}_segmentation.png", blob(number % 10, 3))
    (place / "ATTRIBUTION.txt").write_text("CC BY-NC")
    photo(place / "._ISIC_0000000.jpg")


def test_isic_keeps_the_official_parts_where_all_three_are_there(tmp_path):
    isic_part(tmp_path, "Training", range(10))
    only_training = opened("isic2018", tmp_path)
    assert [len(only_training.ids(split)) for split in ("train", "val", "test")] == [6, 2, 2]
    isic_part(tmp_path, "Validation", [20])
    isic_part(tmp_path, "Test", [30, 31])
    dataset = opened("isic2018", tmp_path)
    assert dataset.ids("val") == ["ISIC_0000020"] and dataset.ids("test") == ["ISIC_0000030", "ISIC_0000031"]
    assert len(dataset.ids("train")) == 10
    sample = dataset.load("ISIC_0000031")
    assert (sample.masks[0] == blob(1, 3)).all() and sample.object_class == ("lesion",) and sample.split == "test"
    (tmp_path / "ISIC2018_Task1_Training_GroundTruth" / "ISIC_0000004_segmentation.png").unlink()
    with pytest.raises(InputError, match="ISIC_0000004_segmentation.png"):
        opened("isic2018", tmp_path)


def cod_names(count, first=0):
    animals = ("1-BatFish", "2-Crab")
    return [f"COD10K-CAM-1-Aquatic-{animals[number % 2]}-{number}" for number in range(first, first + count)]


def test_cod10k_v3_leaves_out_what_is_not_camouflaged(tmp_path):
    folder = tmp_path / "COD10K-v3"
    for part, count, first in (("Train", 10, 0), ("Test", 3, 10)):
        for number, name in enumerate(cod_names(count, first)):
            photo(folder / part / "Image" / f"{name}.jpg")
            save(folder / part / "GT_Object" / f"{name}.png", blob(number, 4))
        plain = f"COD10K-NonCAM-5-NonCamouflaged-1-Bird-{first}"
        photo(folder / part / "Image" / f"{plain}.jpg")
        save(folder / part / "GT_Object" / f"{plain}.png", NOTHING)
    dataset = opened("cod10k", tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [8, 2, 3]
    assert dataset.dropped == {"not camouflaged": 2}
    sample = dataset.load(cod_names(3, 10)[1])
    assert sample.object_class == ("Crab",) and (sample.masks[0] == blob(1, 4)).all()


def shared_tree(folder, with_train=True):
    """The layout that papers on camouflage pass around: three test folders, one training folder for two sets."""
    for name, stems in (
        ("CAMO", ["camourflage_00012", "camourflage_00013"]),
        ("CHAMELEON", ["animal-1", "animal-2"]),
        ("COD10K", cod_names(2)),
    ):
        for number, stem in enumerate(stems):
            photo(folder / "TestDataset" / name / "Imgs" / f"{stem}.jpg")
            soft = np.where(blob(4, 4 + number), 255, 0).astype(np.uint8)
            soft[4, 4 + number : 12 + number] = 140  # a smoothed rim counts from 128 on
            save(folder / "TestDataset" / name / "GT" / f"{stem}.png", soft)
    if with_train:
        for stem in [f"camourflage_{number:05}" for number in range(100, 105)] + cod_names(10, 50):
            photo(folder / "TrainDataset" / "Imgs" / f"{stem}.jpg")
            save(folder / "TrainDataset" / "GT" / f"{stem}.png", blob(1, 1))


@pytest.mark.parametrize(("name", "counts"), [("camo", [4, 1, 2]), ("cod10k", [8, 2, 2]), ("chameleon", [0, 0, 2])])
def test_the_shared_layout_gives_each_set_its_own(tmp_path, name, counts):
    shared_tree(tmp_path)
    dataset = opened(name, tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == counts
    sample = dataset.load(dataset.ids("test")[1])
    assert sample.masks.shape == (1, HEIGHT, WIDTH) and (sample.masks[0] == blob(4, 5)).all()
    assert dataset.dropped == {}


@pytest.mark.parametrize("name", ["camo", "cod10k"])
def test_without_training_folder_there_is_a_test_part_alone(tmp_path, name):
    shared_tree(tmp_path, with_train=False)
    dataset = opened(name, tmp_path)
    assert len(dataset.ids("test")) == 2 == len(all_ids(dataset))


def test_camo_in_its_own_release(tmp_path):
    folder = tmp_path / "CAMO-V.1.0-CVIU2019"
    for part, numbers in (("Train", range(10)), ("Test", range(20, 23))):
        for number in numbers:
            photo(folder / "Images" / part / f"camourflage_{number:05}.jpg")
            save(folder / "GT" / f"camourflage_{number:05}.png", blob(number % 10, 5))
    dataset = opened("camo", tmp_path)
    assert [len(dataset.ids(split)) for split in ("train", "val", "test")] == [8, 2, 3]
    sample = dataset.load("camourflage_00022")
    assert (sample.masks[0] == blob(2, 5)).all() and sample.object_class == ()


def test_an_empty_mask_gives_a_sample_without_objects(tmp_path):
    shared_tree(tmp_path)
    save(tmp_path / "TestDataset" / "CAMO" / "GT" / "camourflage_00012.png", NOTHING)
    sample = opened("camo", tmp_path).load("camourflage_00012")
    assert sample.masks.shape == (0, HEIGHT, WIDTH) and sample.masks.dtype == bool


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_is_refused_with_the_path_expected(tmp_path, name):
    with pytest.raises(InputError, match=str(tmp_path)):
        opened(name, tmp_path)


def test_every_description_is_filled_in():
    for name, description in DATASETS.items():
        assert description.name == name and description.layout and description.images
        assert not description.committed_pictures and description.pretraining.startswith("none")
        assert description.domain == ("medical" if name in ("kvasir-seg", "isic2018") else "camouflage")
