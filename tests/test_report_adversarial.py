"""ASAM's pictures in figures: chosen by rule, the change and what it does to the masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from samtune.report import adversarial
from samtune.study.cells import GenerationCell
from samtune.study.execute import executor
from samtune.study.runner import run_cells
from tiny_diffusion import save_tiny_diffusion


def test_pictures_are_shown_evenly_by_what_they_cost_the_victim(small_backbone: None, profile, tmp_path: Path) -> None:
    shared = {"dataset": "synthetic-natural", "pictures": 5, "diffusion": str(save_tiny_diffusion(tmp_path / "tiny"))}
    inversion = GenerationCell("inversion", options={"recipe": "direct", "steps": 1}, **shared)
    attack = GenerationCell("attack", inversion=inversion, **shared, backbone="nano", prompt="box",
                            options={"steps": 2, "step_size": 0.2})  # fmt: skip
    record, started = run_cells([attack, inversion], "smoke", executor(profile), say=lambda line: None)
    assert adversarial.kept_attack([started, record]) is record
    assert (
        adversarial.recipe(record)
        == f"{record.cell['pictures']} pictures, direct inversion in 1 steps, 2 updates of 0.2"
    )
    drops = record.objects.query("output == 'final'").set_index("image")["iou_drop"]
    ids = adversarial.by_drop(record, 3)
    assert drops[ids].tolist() == sorted(drops)[::2] and len(adversarial.by_drop(record, 9)) == 5
    for one in adversarial.examples_of(record, ids):
        assert one.original.shape == one.reconstruction.shape == one.adversarial.shape
        assert one.before.shape == one.after.shape == one.truth.shape
        assert not np.array_equal(one.original, one.reconstruction)
    sheet = adversarial.contact_sheet(record, ids, "Sheet", columns=2)
    found = record.objects.set_index(["output", "image"])["iou"]
    words = [f"{found['before', id]:.2f} → {found['final', id]:.2f}" for id in ids]
    assert [axis.get_xlabel() for axis in sheet.axes] == [*words, ""]
    assert len(adversarial.contact_sheet(record, ids, "Sheet").axes) == 3  # no empty places
    latent = GenerationCell("inversion", options={"recipe": "autoencoder"}, **shared)
    dat = replace(attack, inversion=latent)  # shows nothing of ASAM
    _, other = run_cells([latent, dat], "smoke", executor(profile), say=lambda line: None)
    assert adversarial.kept_attack([other, record]) is record
    (tmp_path / "results" / "smoke" / "generated" / attack.key() / "finished.json").unlink()
    assert adversarial.kept_attack([record]) is None  # a record whose pictures are not here


def test_pictures_from_noise_are_shown_with_the_outlines_alone(small_backbone: None, profile, tmp_path: Path) -> None:
    tiny = str(save_tiny_diffusion(tmp_path / "tiny"))
    sample = GenerationCell("sample", "synthetic-natural", 2, tiny, options={"steps": 1})
    (record,) = run_cells([sample], "smoke", executor(profile), say=lambda line: None)
    assert adversarial.kept_samples([record]) is record and adversarial.kept_attack([record]) is None
    sheet = adversarial.contact_sheet(record, list(record.objects["image"]), "From noise")
    assert [axis.get_xlabel() for axis in sheet.axes] == ["", ""] and all(axis.collections for axis in sheet.axes)
    (tmp_path / "results" / "smoke" / "generated" / sample.key() / "finished.json").unlink()
    assert adversarial.kept_samples([record]) is None


def test_gallery_shows_the_change_and_what_it_does_to_the_masks() -> None:
    original = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:15, 10:30] = masks[1, 25:35, 40:55] = True
    reconstruction = np.full_like(original, 100)
    attacked = reconstruction.copy()
    attacked[0, 0], attacked[0, 1] = (110, 90, 100), 200
    after = np.stack([masks[0], np.zeros_like(masks[0])])  # the second object is lost
    example = adversarial.Example(original, reconstruction, attacked, masks, masks, after)
    figure = adversarial.gallery([example], "Attacked")
    assert [axis.get_title(loc="center") for axis in figure.axes] == adversarial.COLUMNS
    difference = figure.axes[3].images[0].get_array()
    assert difference[0, 0].tolist() == [177, 77, 127] and difference[0, 1].tolist() == [255] * 3
    assert (difference[1:] == 127).all()
    assert [axis.get_xlabel() for axis in figure.axes[4:]] == ["", "IoU 1.00", "IoU 0.50"]
    assert [len(axis.images) - 1 for axis in figure.axes] == [0, 0, 0, 0, 2, 2, 1]  # a layer an object found
