"""Generated pictures: made once, resumed where they were killed, opened as a data set, needed by what reads them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from samtune.common import provenance
from samtune.common.errors import InputError
from samtune.data.generated import read_facts
from samtune.data.pixels import read_image
from samtune.data.registry import describe, open_dataset
from samtune.diffusion.attack import AttackConfig
from samtune.diffusion.conditions import caption
from samtune.diffusion.generation import BEFORE, sampled, scene
from samtune.diffusion.pipeline import load_diffusion
from samtune.report.tables import build_tables
from samtune.sam.checkpoints import sha256
from samtune.study import generated
from samtune.study.cells import Cell, GenerationCell, TrainingCell, cell_from_plain, plain_cell
from samtune.study.estimate import disk_bytes, estimate_seconds
from samtune.study.execute import executor
from samtune.study.generated import (
    AUTHORS,
    HELD_OUT,
    LESS_BETA,
    LONGER,
    MORE,
    NO_BETA,
    TABLE,
    adversarial_cells,
    costs,
    inversion_cells,
    run_generated,
)
from samtune.study.profile import Generation, Profile, load_profile
from samtune.study.records import Record, write_record
from samtune.study.runner import files_folder, missing_cells, only_planned, run_cells
from tiny_diffusion import save_tiny_diffusion

SETS = "synthetic-natural+synthetic-industrial"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_diffusion(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder where generated sets are found."""
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))
    return tmp_path / "smoke"


def profile(model: str, pictures: int = 3, batch: int = 1) -> Profile:
    asked = Generation(sets=tuple(SETS.split("+")), pictures=pictures, ablation_pictures=2, steps=2, attack_steps=1,
                       batch=batch)  # fmt: skip
    return load_profile("smoke").model_copy(update={"diffusion": model, "controlnet": model, "generation": asked})


def cells(model: str, pictures: int = 4) -> list[GenerationCell]:
    """An inversion, and the attack from it."""
    shared = {"dataset": SETS, "pictures": pictures, "diffusion": model}
    inversion = GenerationCell("inversion", options={"recipe": "direct", "steps": 2}, **shared)
    victim = {"backbone": "nano", "prompt": "box", "options": {"steps": 1}}
    return [inversion, GenerationCell("attack", inversion=inversion, **shared, **victim)]


def quiet_run(asked: Sequence[Cell], folder: Path, model: str = "nano", batch: int = 1) -> list[Record]:
    return run_cells(asked, folder, executor(profile(model, batch=batch)), say=lambda line: None)


def test_an_attack_needs_its_inversion_and_both_open_as_data_sets(model: str, folder: Path) -> None:
    inversion, attack = cells(model)
    (record,) = quiet_run([attack], folder, batch=3)  # the inversion is run first; a batch that is not full too
    assert missing_cells([inversion, attack], folder) == []
    objects = record.objects.set_index(["output", "image"])
    assert len(objects) == 8
    assert np.allclose(
        objects.loc["final", "iou_drop"], objects.loc["before", "iou"] - objects.loc["final", "iou"], atol=2e-4
    )
    assert (objects.loc["final", "evaluations"] == (2 + 2 * 2) + 2 * 2 * 2).all()  # inversion, offsets; two renderings
    made = open_dataset(attack.name)
    assert len(made.ids("train")) == 4 and made.ids("test") == []
    for id in made.ids("train"):
        sample, (source, _, name) = made.load(id), id.partition("/")
        original = open_dataset(source).load(name)
        assert np.array_equal(sample.masks, original.masks) and sample.object_class == original.object_class
        assert sample.image.shape == original.image.shape and not np.array_equal(sample.image, original.image)
        assert (sample.dataset, sample.group, sample.split) == (attack.name, original.group, "train")
        assert sample.caption == caption(original)
    assert describe("synthetic-natural").licence in describe(attack.name).licence
    assert describe(attack.name).committed_pictures
    with pytest.raises(InputError, match="(?s)generated:0123 not found.*generation cell"):
        open_dataset("generated:0123")


@pytest.mark.parametrize("recipe", ["ddim", "null_text", "negative_prompt", "direct", "autoencoder"])
def test_an_attack_begins_at_the_reconstruction_of_its_inversion(model: str, folder: Path, recipe: str) -> None:
    inversion, attack = cells(model, pictures=2)
    steps = {} if recipe == "autoencoder" else {"steps": 2}
    inversion = replace(inversion, options={"recipe": recipe} | steps)
    reconstructed, attacked = quiet_run([inversion, replace(attack, inversion=inversion)], folder)
    ends, begins = (
        record.objects.query(f"output == '{output}'").set_index("image")["psnr"]
        for record, output in ((reconstructed, "final"), (attacked, "before"))
    )
    assert np.allclose(ends, begins, atol=0.02) and ends.index.equals(begins.index)  # dB


def test_noise_in_place_of_an_attack_moves_every_latent_value_by_its_bound(model: str, folder: Path) -> None:
    inversion, attack = cells(model, pictures=2)
    random = replace(attack, method="random", options={})
    quiet_run([random], folder)
    for path in files_folder(folder, random).glob("*.safetensors"):
        moved = load_file(path)["latents"] - load_file(files_folder(folder, inversion) / path.name)["latents"]
        assert torch.allclose(moved.abs(), torch.tensor(AttackConfig.eps), atol=1e-5)
        assert 0.3 < (moved > 0).float().mean() < 0.7


def test_a_sample_is_its_own_whatever_batch_and_of_its_masks_and_caption(model: str) -> None:
    diffusion = load_diffusion(model)
    dataset = open_dataset("synthetic-natural")
    samples = [dataset.load(id) for id in dataset.ids("train")[:3]]

    def made(some: list, seed: int = 0, captions: list | None = None, **options: object) -> list[np.ndarray]:
        given = scene(diffusion, some, {}, "cpu", captions)
        return [one.image for one in sampled(diffusion, given, {"steps": 2, **options}, seed)]

    together = made(samples)
    assert np.abs(together[1].astype(int) - made(samples[1:2])[0]).max() <= 1
    other_masks = replace(samples[1], masks=samples[1].masks[:, ::-1].copy())
    for changed in (
        made([other_masks]), made(samples[1:2], seed=1), made(samples[1:2], captions=["a photograph of hair"]),
        made(samples[1:2], guided_masks=True),
    ):  # fmt: skip
        assert np.abs(together[1].astype(int) - changed[0]).max() > 1


def test_pictures_that_come_out_otherwise_are_told(model: str, folder: Path) -> None:
    _, attack = cells(model, pictures=2)
    (earlier,) = quiet_run([attack], folder)
    other = earlier.objects.assign(psnr=earlier.objects["psnr"] + 1)
    for objects, told in ((other, True), (earlier.objects, False)):
        write_record(folder / "records", replace(earlier, objects=objects))
        shutil.rmtree(files_folder(folder, attack))
        change = replace(attack, method="change", options={}, inversion=attack)
        (folder / "records" / f"{change.key()}.json.gz").unlink(missing_ok=True)
        said: list[str] = []
        run_cells([change], folder, executor(profile(model)), say=said.append)  # it needs them
        wanted = (
            f"made again, the pictures of {attack.key()} are not as its record had them (mean PSNR or IoU differs by 1"
        )
        assert any(line.startswith(wanted) for line in said) == told


def test_what_rests_on_pictures_that_came_out_otherwise_is_listed_whole(model: str, folder: Path) -> None:
    inversion, attack = cells(model, pictures=2)
    records = quiet_run([inversion, attack, attack.before()], folder)
    worse = records[0].objects.assign(psnr=records[0].objects["psnr"] + 1)
    write_record(folder / "records", replace(records[0], objects=worse))
    shutil.rmtree(files_folder(folder, inversion))
    said: list[str] = []
    noise = replace(attack, method="random", options={})
    run_cells([noise], folder, executor(profile(model)), say=said.append)  # it needs the inversion's files
    (line,) = [one for one in said if one.startswith("made again")]
    keys = sorted(cell.key() for cell in (attack, attack.before()))
    for found in (re.findall(r"(?:remove them: |, )(\w{20})", line), re.findall(r"generated/(\w{20})", line)):
        assert sorted(found) == keys  # records, and folders: the pictures there would be taken for the new ones


def test_a_picture_that_cannot_be_attacked_is_named(model: str, folder: Path, monkeypatch) -> None:
    def fails(*given: object) -> None:
        raise FloatingPointError("the attack's loss is [nan]")

    monkeypatch.setattr("samtune.diffusion.generation.attack", fails)
    with pytest.raises(InputError, match=r"loss is \[nan\] \(synthetic.*\): leave it out"):
        quiet_run(cells(model, 2), folder)


def test_settings_of_a_diffusion_model_are_in_its_keys(model: str, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    scheduler = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    usual = adversarial_cells(profile(str(other)))
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler | {"beta_end": 0.02}))
    generated._models.cache_clear()
    changed = adversarial_cells(profile(str(other)))
    assert all(usual[name].diffusion_hash != changed[name].diffusion_hash for name in ("asam", "generated"))
    assert usual["dat"] == changed["dat"]  # by the autoencoder alone


def test_the_pipelines_own_controlnet_may_be_the_attacks(model: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(Path(model) / "controlnet", tmp_path / "inversion_controlnet")
    mixed = {"controlnet": str(tmp_path / "inversion_controlnet"), "attack_controlnet": model}
    made = adversarial_cells(profile(model).model_copy(update=mixed))
    assert (made["asam"].controlnet, made["asam"].inversion.controlnet) == ("", mixed["controlnet"])


def test_a_killed_generation_goes_on_at_the_same_picture(model: str, folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).parent / "killed_generation.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, folder, model, str(np.random.default_rng().integers(2**31))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    killed, kept = map(int, done.stdout.split())
    assert killed >= 1 and kept >= 1  # a kill found a finished picture; the script checks that it is not made again
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the script: sums in another order differ in their last bits
    try:
        quiet_run(cells(model), tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    for cell in cells(model):
        ours, theirs = (files_folder(place, cell) for place in (folder, tmp_path / "whole"))
        names = sorted(path.name for path in theirs.glob("*") if path.suffix in (".png", ".safetensors"))
        assert len(names) == (12 if cell.method == "attack" else 8)  # and what the attack starts from
        for name in names:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()
        assert [one["id"] for one in read_facts(ours)] == [one["id"] for one in read_facts(theirs)]


def test_a_generation_that_goes_on_knows_the_time_of_its_first_part(model: str, folder: Path) -> None:
    _, attack = quiet_run(cells(model, 2), folder)
    (folder / "records" / f"{attack.key}.json.gz").unlink()
    _, again = quiet_run(cells(model, 2), folder)  # its pictures are all there
    assert again.seconds == pytest.approx(attack.seconds)
    assert 0 < attack.seconds < attack.extras["seconds_with_inversion"]


def test_out_of_memory_says_what_to_set(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("samtune.diffusion.generation.attack", full)
    with pytest.raises(
        InputError, match=r"out of memory in attack .* at generation.batch 2, \d+ objects: set .*batch 1"
    ):
        quiet_run(cells(model, 2), folder, batch=2)


def test_without_a_controlnet_nothing_is_made_and_it_says_so(tmp_path: Path, capsys) -> None:
    place = save_tiny_diffusion(tmp_path / "tiny")
    shutil.rmtree(place / "controlnet")
    assert run_generated(profile(str(place))) == []
    assert f"{place} has no mask ControlNet: name one" in capsys.readouterr().out


def test_time_is_estimated_by_network_evaluations(model: str) -> None:
    """Of a recipe that was never run, from one that was."""
    direct = GenerationCell("inversion", SETS, 2, model, options={"recipe": "direct", "steps": 10})
    known = Record(direct.key(), "generation", plain_cell(direct), seconds=100.0, hardware=provenance.hardware())
    for options, pictures, expected in (
        ({"recipe": "direct", "steps": 20}, 2, 200), ({"recipe": "direct", "steps": 10}, 4, 200),
        ({"recipe": "negative_prompt", "steps": 10}, 2, 40), ({"recipe": "null_text", "steps": 10}, 2, 300),
        ({"recipe": "negative_prompt", "steps": 10, "rounds": 3}, 2, 100),
    ):  # fmt: skip
        asked = replace(direct, pictures=pictures, options=options)
        assert estimate_seconds([asked], [known]) == pytest.approx(expected)
    assert estimate_seconds([replace(direct, options={"recipe": "autoencoder"})], [known]) is None


def test_the_disk_that_an_inversion_wants(model: str) -> None:
    inversion = GenerationCell("inversion", SETS, 1000, diffusion="sd", options={"recipe": "null_text", "steps": 50})
    attack = GenerationCell("attack", SETS, 1000, diffusion="sd", inversion=inversion, backbone="nano")
    assert 12e9 < disk_bytes([inversion]) < 13e9  # 50 embeddings of 77 x 768 numbers
    assert 1e9 < disk_bytes([attack]) < 1.1e9  # before and after
    assert disk_bytes([replace(inversion, diffusion="nano")]) < 2e9


def test_a_training_on_generated_pictures_needs_them(model: str, folder: Path) -> None:
    inversion, attack = cells(model, pictures=2)
    training = TrainingCell("asam", (attack.name,), "nano", images=2, prompt="box", target="instances",
                            hyper={"batch_size": 2, "learning_rate": 1e-3}, generated=attack)  # fmt: skip
    measured = training.evaluation("synthetic-industrial", max_images=1)
    queue = missing_cells([measured], folder)
    assert [cell.key() for cell in queue] == [cell.key() for cell in (inversion, attack, training, measured)]
    (record,) = quiet_run([measured], folder)
    assert record.objects is not None and cell_from_plain("evaluation", record.cell).key() == measured.key()
    assert cell_from_plain("training", plain_cell(training)) == training
    with pytest.raises(ValueError, match="none is made"):
        TrainingCell("asam", (attack.name,), "nano")


def test_the_change_that_an_attack_made_is_added_to_the_originals(model: str, folder: Path) -> None:
    inversion, attack = cells(model, pictures=2)
    quiet_run([attack], folder)
    for path in files_folder(folder, attack).glob("*.png"):  # a change of 10 everywhere
        grey = 100 if path.name.endswith(BEFORE) else 110
        Image.fromarray(np.full((32, 32, 3), grey, np.uint8)).save(path)
    change = replace(attack, method="change", options={}, inversion=attack)
    (record,) = quiet_run([change], folder)
    opened = open_dataset(change.name)
    for id in opened.ids("train"):
        source, _, name = id.partition("/")
        original = open_dataset(source).load(name).image
        assert np.array_equal(opened.load(id).image, np.minimum(original.astype(int) + 10, 255))
    objects = record.objects.set_index(["output", "image"])
    assert (objects.loc["final", "psnr"] > 28).all()  # 28.1 dB
    assert (objects.loc["final", "evaluations"] == (2 + 2 * 2) + 2 * 2 * 2).all()  # the attack's


def test_an_attack_may_have_a_controlnet_of_its_own(model: str, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = ControlNetModel.from_pretrained(model, subfolder="controlnet")
    for parameter in other.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    other.save_pretrained(tmp_path / "attack_controlnet")
    small = profile(model).model_copy(update={"attack_controlnet": str(tmp_path / "attack_controlnet")})
    usual, asked = adversarial_cells(profile(model)), adversarial_cells(small)
    assert asked["asam"].inversion == usual["asam"].inversion and asked["dat"] == usual["dat"]
    assert {asked[name].controlnet for name in ("asam", "reconstructed", "generated")} == {small.attack_controlnet}
    assert asked["asam"].diffusion_hash != usual["asam"].diffusion_hash == asked["asam"].inversion.diffusion_hash
    records = quiet_run([asked["asam"].inversion, usual["reconstructed"], asked["reconstructed"]], folder, model)
    inverted, same, other = (record.objects.query("output == 'final'")["psnr"].to_numpy() for record in records)
    assert np.allclose(inverted, same) and not np.allclose(inverted, other)  # by the attack's own ControlNet
    pictures = [open_dataset(cell.name) for cell in (asked["asam"].inversion, usual["reconstructed"])]
    for id in pictures[0].ids("train"):
        first, again = (opened.load(id).image.astype(int) for opened in pictures)
        assert np.abs(first - again).max() <= 1
    with pytest.raises(ValueError, match="diffusion_hash is 'x' here and not in the inversion"):
        replace(usual["asam"], diffusion_hash="x")


def test_the_profiles_cells_fill_the_table_of_inversions(model: str, folder: Path) -> None:
    small = profile(model, pictures=2)
    asked = [*adversarial_cells(small).values(), *inversion_cells(small)]
    records = quiet_run(asked, folder)
    table = build_tables(records)[TABLE]
    assert set(table["variant"]) > {AUTHORS, "direct", "lean", LONGER, MORE, LESS_BETA, NO_BETA}
    psnr = table[(table["metric"] == "psnr") & (table["method"] == "inversion")].set_index(["variant", "output"])[
        "mean"
    ]
    assert psnr["direct", "final"] == pytest.approx(psnr["direct", "autoencoder"], abs=0.05)  # exact by construction
    assert psnr["without diffusion", "final"] == pytest.approx(psnr["direct", "autoencoder"], abs=1e-6)
    held_out = table[table["variant"].str.endswith(HELD_OUT)]
    assert set(held_out["variant"]) == {f"{name}, {HELD_OUT}" for name in ("DDIM", AUTHORS, "direct")}
    assert set(held_out["split"]) == {"val"} and set(table[~table.index.isin(held_out.index)]["split"]) == {"train"}
    random = table[table["method"] == "random"]
    assert set(random["metric"]) >= {"iou", "iou_drop", "evaluations"}
    cost = costs(table)
    # Guidance 7.5 in 2 steps: 2 + 2 (1 + 10 + 1) for null-text at most, and 2 renderings of 4; lean: 1 step, 1 + 2.
    assert cost.loc["lean", "evaluations"] == cost.loc[LONGER, "evaluations"] == 3 < cost.loc[MORE, "evaluations"]
    assert cost.loc[LESS_BETA, "evaluations"] == cost.loc[MORE, "evaluations"]
    assert cost.loc[AUTHORS, "evaluations"] <= 2 + 2 * 12 + 8
    assert cost.loc[AUTHORS, "times fewer evaluations"] == 1 and cost.loc["lean", "times fewer seconds"] > 0
    made = read_image(next(folder.glob("generated/*/*.png")))
    assert made.shape == (32, 32, 3)


def test_the_table_of_inversions_may_have_steps_of_its_own(model: str) -> None:
    small = profile(model)
    small = small.model_copy(update={"generation": small.generation.model_copy(update={"compared_steps": 10})})
    steps = {dict(cell.options)["steps"] for cell in inversion_cells(small) if cell.method == "inversion"
             and dict(cell.options)["recipe"] != "autoencoder"}  # fmt: skip
    assert steps == {10, 4}  # lean: two fifths
    assert dict(adversarial_cells(small)["asam"].inversion.options)["steps"] == 2


def test_captions_are_those_of_the_profile_and_other_words_are_other_pictures(model: str, tmp_path: Path) -> None:
    usual, file = profile(model), tmp_path / "words.csv"
    other = usual.model_copy(update={"generation": usual.generation.model_copy(update={"captions": str(file)})})
    with pytest.raises(InputError, match=f"no file of captions at {file}"):
        adversarial_cells(other)
    keys = {adversarial_cells(usual)["asam"].inversion.key()}
    for words in ("id,caption\na,a street", "id,caption\na,a road"):
        file.write_text(words)
        before, after = (adversarial_cells(one) for one in (usual, other))
        changed = {"captions": str(file), "captions_hash": sha256(file)[:12]}
        for name in ("generated", "asam"):
            usual_words, other_words = (made[name].inversion or made[name] for made in (before, after))
            assert dict(other_words.options) == dict(usual_words.options) | changed
        keys.add(after["asam"].inversion.key())
    assert len(keys) == 3


def test_planning_downloads_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAMTUNE_OFFLINE", raising=False)
    asked = []

    def look(place: str, **options: object) -> None:
        asked.append(options["local_files_only"])
        raise OSError("not here")

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", look)
    hub = load_profile("smoke").model_copy(update={"diffusion": "someone/model", "controlnet": "someone/model"})
    with only_planned():
        run_generated(hub)
    run_generated(hub)
    assert asked == [True, False]
