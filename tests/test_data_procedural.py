"""Procedural sets: pure functions of a seed, honest masks, and noise that is what it says."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage, spatial

from samtune.common.errors import InputError
from samtune.data.procedural import shapes, textures
from samtune.data.procedural.gpr import b_scan, ricker
from samtune.data.procedural.industrial import DEFECTS, inspect
from samtune.data.procedural.medical import endoscopy
from samtune.data.procedural.natural import MIN_VISIBLE, draw_scene
from samtune.data.procedural.surfaces import SURFACES
from samtune.data.procedural.synthetic import COUNTS, DATASETS, KINDS, SyntheticDataset, natural_scene
from samtune.data.registry import open_dataset

CLASSES = {
    "synthetic-industrial": {"scratch", "crack", "dent", "stain"},
    "synthetic-medical": {"polyp", "lesion"},
    "synthetic-gpr": {"hyperbola", "band"},
    "synthetic-natural": {"object", "part", "region"},
}


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", list(KINDS))
def test_samples_keep_the_contract(kind: str) -> None:
    data = DATASETS[kind].factory(Path("nowhere"), counts={"train": 5, "test": 2}, size=96, seed=3)
    assert data.name == kind
    assert [len(data.ids(split)) for split in ("train", "val", "test")] == [5, 0, 2]
    assert data.ids("train") == sorted(data.ids("train"))
    for id in data.ids("train") + data.ids("test"):
        sample = data.load(id)
        assert id == f"{kind}-seed3-{sample.split}-{int(id[-6:]):06d}" and sample.id == id and sample.dataset == kind
        assert sample.image.shape == (96, 96, 3) and sample.image.dtype == np.uint8
        assert sample.masks.shape[1:] == (96, 96) and sample.masks.dtype == bool and len(sample.masks) >= 1
        areas = sample.masks.sum((1, 2))
        assert areas.min() >= MIN_VISIBLE and areas.max() < 96 * 96
        assert len(sample.object_class) == len(sample.masks) and set(sample.object_class) <= CLASSES[kind]
        assert sample.caption and sample.image.std() > 2


def test_the_registry_knows_them() -> None:
    for kind in KINDS:
        data = open_dataset(kind, "nowhere", seed=2, size=64)
        assert isinstance(data, SyntheticDataset) and (data.name, data.seed, data.size) == (kind, 2, 64)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_sample_depends_on_its_id_alone(kind: str) -> None:
    ids = SyntheticDataset(kind, {"train": 4, "val": 4}, size=96).ids("train")
    ids += SyntheticDataset(kind, {"train": 4, "val": 4}, size=96).ids("val")
    first = {id: SyntheticDataset(kind, size=96).load(id) for id in ids}
    random.Random(1).shuffle(ids)
    np.random.seed(5)  # noqa: NPY002 - the global generator must not matter
    other = SyntheticDataset(kind, {"train": 1}, size=96)  # other counts must not matter, either
    for id in ids:
        again = other.load(id)
        assert np.array_equal(again.image, first[id].image) and np.array_equal(again.masks, first[id].masks)
        assert again.object_class == first[id].object_class and again.caption == first[id].caption
    assert len({sample.image.tobytes() for sample in first.values()}) == len(ids)


@pytest.mark.parametrize("kind", list(KINDS))
def test_seeds_differ(kind: str) -> None:
    images = []
    for seed in (0, 1):
        data = SyntheticDataset(kind, size=96, seed=seed)
        images.append(data.load(data.ids("train")[0]).image)
    assert np.abs(images[0].astype(int) - images[1]).mean() > 3


def test_natural_scene_is_what_the_training_asks_for() -> None:
    for seed in range(6):
        image, masks = natural_scene(rng(seed), 128)
        again = natural_scene(rng(seed), 128)
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert masks.dtype == bool and masks.shape[1:] == (128, 128) and len(masks) >= 1
        assert masks.sum((1, 2)).min() >= MIN_VISIBLE
        assert np.array_equal(image, again[0]) and np.array_equal(masks, again[1])


def test_natural_objects_occlude_each_other() -> None:
    hidden = overlapping = 0
    for seed in range(8):
        scene = draw_scene(rng(seed), 128)
        whole = np.zeros_like(scene.masks)
        for cover, (rows, columns, patch) in zip(whole, scene.extents, strict=True):
            cover[rows, columns] = patch
        assert not np.any(scene.masks & ~whole)
        is_object = np.array([kind == "object" for kind in scene.kinds])
        visible, extent = scene.masks[is_object], whole[is_object]
        for far in range(len(visible)):
            for near in range(far + 1, len(visible)):
                assert not np.any(visible[far] & extent[near])  # what a nearer thing covers is not visible
                overlapping += bool(np.any(extent[far] & extent[near]))
        hidden += int((extent & ~visible).sum())
        anything = visible.any(0)
        for kind, mask in zip(scene.kinds, scene.masks, strict=True):
            if kind == "region":
                assert not np.any(mask & anything)
            if kind == "part":  # a part lies within the visible pixels of one object (or of one too small to count)
                inside = max((np.count_nonzero(mask & one) for one in visible), default=0)
                assert inside in (0, np.count_nonzero(mask))
                if inside == 0:
                    assert not np.any(mask & anything)
    assert overlapping > 10 and hidden > 1000


def test_natural_objects_come_in_all_sizes() -> None:
    sides = []
    for seed in range(15):
        scene = draw_scene(rng(seed), 128)
        for kind, mask in zip(scene.kinds, scene.masks, strict=True):
            if kind == "object":
                rows, columns = np.nonzero(mask)
                sides.append(max(np.ptp(rows), np.ptp(columns)) / 128)
    low, high = np.quantile(sides, [0.1, 0.9])
    assert low < 0.08 and high > 0.35


@pytest.mark.parametrize("surface", list(SURFACES))
def test_defects_change_the_picture_and_nothing_else_does(surface: str) -> None:
    for seed, kind in enumerate(DEFECTS):
        part = inspect(rng(seed), 160, surface, (kind,))
        good = inspect(rng(seed), 160, surface, ())
        assert part.surface == surface and part.kinds == (kind,) and len(part.masks) == 1
        assert np.array_equal(good.image, part.faultless) and len(good.masks) == 0
        change = np.abs(part.image.astype(int) - part.faultless).mean(2)
        inside = change[part.masks[0]]
        assert inside.mean() > 3 and np.mean(inside > 0) > 0.7
        # Relief is smoothed a little beyond the mask; farther off, not one pixel may differ.
        near = cv2.dilate(part.masks[0].astype(np.uint8), np.ones((51, 51), np.uint8)) > 0
        assert not change[~near].any()


def test_defects_range_from_subtle_to_obvious() -> None:
    changes = []
    for seed in range(25):
        part = inspect(rng(seed, 9), 96, defects=("stain",))
        changes.append(np.abs(part.image.astype(int) - part.faultless).mean(2)[part.masks[0]].mean())
    assert 3 < min(changes) < 12 and max(changes) > 30


def test_industrial_images_may_be_free_of_defects() -> None:
    ids = SyntheticDataset("synthetic-industrial", {"train": 40}, size=64).ids("train")
    data = SyntheticDataset("synthetic-industrial", size=64, defect_free=0.5)
    samples = [data.load(id) for id in ids]
    good = [sample for sample in samples if len(sample.masks) == 0]
    assert 10 <= len(good) <= 30
    assert all(sample.caption.endswith("no defect") and sample.object_class == () for sample in good)


def test_medical_masks_lie_apart_and_in_view() -> None:
    for seed in range(15):
        image, masks, kinds = endoscopy(rng(seed), 128)
        assert masks.sum(0).max() == 1 and len(kinds) == len(masks)
        for mask in masks:
            assert ndimage.label(mask)[1] == 1
            assert image[mask].mean() > 25  # lit tissue, not the black frame


def test_radar_masks_are_hyperbolas() -> None:
    for seed in range(15):
        image, masks, kinds = b_scan(rng(seed), 192)
        assert np.ptp(image.reshape(-1)) > 100
        for mask in masks[[kind == "hyperbola" for kind in kinds]]:
            columns = np.flatnonzero(mask.any(0))
            assert np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))  # one piece
            top = mask[:, columns].argmax(0).astype(float)
            assert np.all(np.diff(mask.astype(int), axis=0)[:, columns].clip(0).sum(0) <= 1)  # one band a trace
            bend = np.diff(top, 2)
            if len(columns) > 12:
                # A hyperbola's arms go down on both sides of its apex (the smallest row), never up again.
                apex = int(top.argmin())
                assert np.all(np.diff(top[: apex + 1]) <= 0) and np.all(np.diff(top[apex:]) >= 0)
                assert bend.sum() >= 0


def test_radar_bands_run_from_top_to_bottom_and_can_be_seen() -> None:
    sections = [b_scan(rng(seed), 192) for seed in range(60)]
    bands = [(image, mask) for image, masks, kinds in sections for mask in masks[[kind == "band" for kind in kinds]]]
    assert 15 < len(bands) < 35
    assert all(kinds.count("band") <= 1 for _, _, kinds in sections)
    assert any({"band", "hyperbola"} <= set(kinds) for _, _, kinds in sections)
    changes = []
    for image, mask in bands:
        assert mask.any(1).all()  # every row
        assert np.all(np.abs(np.diff(mask.astype(int), axis=1)).sum(1) <= 2)  # one piece a row
        width = mask.sum(1)
        assert width.max() > 1.15 * width.min() and 0.02 < mask.mean() < 0.5
        # Rows hang together along the survey line: their correlation from column to column drops at the band's edges.
        grey = image.mean(2)
        grey = (grey - grey.mean(0)) / (grey.std(0) + 1e-6)
        likeness = (grey[:, :-6] * grey[:, 6:]).mean(0)
        edges = np.concatenate([mask.argmax(1), 191 - mask[:, ::-1].argmax(1)]).clip(6, 185)
        across = np.array([likeness[edge - 3] for edge in edges]).mean()
        changes.append(np.median(likeness) - across)
    assert np.mean(changes) > 0.1 and np.mean(np.array(changes) > 0) > 0.85


def test_ricker_is_the_second_derivative_of_a_gaussian() -> None:
    time = np.linspace(-30, 30, 6001, dtype=np.float64)
    sigma = 10 / (np.sqrt(2) * np.pi)  # of the Gaussian whose negative second derivative has this period
    gaussian = np.exp(-(time**2) / (2 * sigma**2)) * sigma**2
    expected = -np.gradient(np.gradient(gaussian, time), time)
    assert np.allclose(ricker(time, 10), expected, atol=2e-3)
    assert abs(ricker(time, 10).sum()) < 0.1


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.8])
def test_noise_has_the_spectrum_asked_for(slope: float) -> None:
    power = sum(np.abs(np.fft.fft2(textures.fractal_noise(rng(seed), 128, 128, slope))) ** 2 for seed in range(8))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    band = (radius > 0.03) & (radius < 0.12)
    measured = -np.polyfit(np.log(radius[band]), 0.5 * np.log(power[band]), 1)[0]
    assert measured == pytest.approx(slope, abs=0.25)
    noise = textures.fractal_noise(rng(1), 128, 128, slope)
    assert noise.dtype == np.float32 and abs(noise.mean()) < 0.1 and noise.std() == pytest.approx(1, abs=0.1)


def test_stretched_noise_runs_along_its_angle() -> None:
    for angle in (0.0, np.pi / 2):
        noise = textures.fractal_noise(rng(2), 128, 128, 1.2, 20.0, angle)
        along_x, along_y = np.abs(np.diff(noise, axis=1)).mean(), np.abs(np.diff(noise, axis=0)).mean()
        assert along_y > 2.5 * along_x if angle == 0 else along_x > 2.5 * along_y


def test_voronoi_distance_is_that_to_the_nearest_seed() -> None:
    _, distance = textures.voronoi(rng(3), 60, 80, 12.0)
    seeds = np.argwhere(distance == 0)
    expected = spatial.KDTree(seeds).query(np.argwhere(np.ones((60, 80), bool)))[0].reshape(60, 80)
    assert np.abs(distance - expected).max() < 0.05 * expected.max() + 0.1  # opencv's 5x5 chamfer distance


@pytest.mark.parametrize("kind", list(shapes.SHAPES))
def test_shapes_fill_the_side_asked_for(kind: str) -> None:
    for seed in range(5):
        layers = shapes.rasterise(rng(seed), kind, 80.0, 3)
        cover = np.max(layers, 0) > 127
        rows, columns = np.nonzero(cover)
        assert 70 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 83
        assert not cover[[0, -1]].any() and not cover[:, [0, -1]].any()


def test_every_texture_stays_near_its_palette() -> None:
    palette = np.array([[0.3, 0.4, 0.5], [0.5, 0.4, 0.3], [0.35, 0.4, 0.45]], np.float32)
    for kind in textures.FIELDS:
        picture = textures.random_texture(rng(4), 50, 70, palette, kind=kind)
        assert picture.shape == (50, 70, 3) and picture.dtype == np.float32
        assert picture.min() > -0.2 and picture.max() < 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(kind="synthetic-industry"), "synthetic-industrial"),
        (dict(kind="synthetic-gpr", counts={"training": 3}), "train"),
        (dict(kind="synthetic-gpr", counts={"train": -1}), "-1"),
        (dict(kind="synthetic-gpr", size=8), "size 8"),
        (dict(kind="synthetic-gpr", defect_free=0.5), "synthetic-industrial only"),
        (dict(kind="synthetic-industrial", defect_free=1.5), "0 to 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        SyntheticDataset(**arguments)


def test_bad_ids_and_splits_are_named() -> None:
    data = SyntheticDataset("synthetic-gpr", seed=1)
    assert len(data.ids("train")) == COUNTS["train"]
    with pytest.raises(InputError, match="unknown split"):
        data.ids("training")
    for id in ("synthetic-gpr-seed0-train-000000", "synthetic-natural-seed1-val-000000", "synthetic-gpr-seed1-train-x"):
        with pytest.raises(InputError, match="no sample"):
            data.load(id)
