"""The study: a smoke profile end to end on the small SAM, nothing run twice, and the rule for learning rates."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from samtune.common.errors import InputError
from samtune.common.paths import repository_root
from samtune.methods import METHODS
from samtune.study import execute, plan
from samtune.study.cells import EvaluationCell
from samtune.study.execute import cell_method, executor
from samtune.study.plan import (
    Plan,
    backbone_hash,
    choose_learning_rates,
    mean_iou,
    options_in_key,
    place_of,
    training_cell,
)
from samtune.study.profile import Profile
from samtune.study.records import Record, read_records
from samtune.study.runner import files_folder, run_cell
from small_sam import small_sam

DATA = "synthetic-industrial"
pytestmark = pytest.mark.usefixtures("small_backbone")


def test_cell_alone_decides_a_trainings_result(profile: Profile, tmp_path: Path) -> None:
    """Not what ran before it in the same process, so that a study that is killed and rerun ends alike."""
    cell = training_cell(profile, "lora", DATA, 3, 1e-3, backbone_hash("nano"))
    states = []
    for number in range(2):
        torch.rand(number)
        states.append(cell_method(cell).trainable_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = cell_method(replace(cell, seed=4)).trainable_state()
    assert not all(torch.equal(states[0][name], other[name]) for name in other)


def test_what_is_recorded_is_asked_for_by_the_same_key() -> None:
    """A default that enters or leaves a method's key would have all of its trainings run again."""
    trainings = [
        record for record in read_records(repository_root() / "results/cpu/records") if record.kind == "training"
    ]
    assert len(trainings) > 300
    for record in trainings:
        hyper = record.cell["hyper"]
        before = {**METHODS[record.method].options_before, **hyper}
        assert options_in_key(record.method, before) == hyper, record.key


def test_training_resumes_in_its_folder(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hyper = {"checkpoint_every": 1}
    cell = training_cell(profile, "lora", DATA, 0, 1e-3, backbone_hash("nano"), **hyper)
    expected = executor(profile)(cell, tmp_path / "whole")
    whole, part = (files_folder(tmp_path / name, cell) for name in ("whole", "part"))
    original = execute.train

    def interrupted(method, sources, config, folder, cache):
        original(method, sources, config, folder, cache)
        raise KeyboardInterrupt  # after the last step, before anything of it is recorded

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(execute, "train", interrupted)
        executor(profile)(cell, tmp_path / "part")
    assert (part / "last.pt").is_file() and not (part / execute.WEIGHTS).exists()
    found = executor(profile)(cell, tmp_path / "part")
    assert found.curve == expected.curve
    assert (part / execute.WEIGHTS).read_bytes() == (whole / execute.WEIGHTS).read_bytes()
    run_cell(cell, tmp_path / "part", executor(profile))
    assert not (part / "last.pt").exists()  # what is recorded and run again, runs from the start


def test_hyper_parameters_reach_training_and_method(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def spy(method, sources, config, folder, cache):
        seen.update(method=method, config=config, sources=sources)
        raise InputError("seen")

    monkeypatch.setattr(execute, "train", spy)
    cell = training_cell(profile, "lora", DATA, 5, 3e-3, "", images=6, rank=2, alpha=4, optimiser="adamw")
    with pytest.raises(InputError, match="seen"):
        executor(profile.model_copy(update={"workers": 3}))(cell, tmp_path)
    config, method = seen["config"], seen["method"]
    assert (config.images, config.batch_size, config.learning_rate, config.seed) == (6, 2, 3e-3, 5)
    assert (config.prompts, config.target, config.preprocess) == (("box", "point10"), "union", "stretch")
    assert (config.optimiser, config.device, config.precision, config.workers) == ("adamw", "cpu", "fp32", 3)
    assert method.sam.get_submodule("image_encoder.blocks.0.attn.v_proj").scaling["default"] == 2.0
    assert [(dataset.name, split) for dataset, split in seen["sources"]] == [(DATA, "train")]


# ---------------------------------------------------------------- learning rates


def faked_records(scores: dict[float, float], asked: list[EvaluationCell]):
    """A stand-in for `run_cells`: every image has the score of the cell's learning rate, plus its prompt's share."""

    def run(cells, results, execute, say=print):
        records = []
        for cell in cells:
            asked.append(cell)
            rate = dict(cell.training.hyper)["learning_rate"]
            if np.isnan(scores[rate]):
                raise FloatingPointError("loss is nan")
            shift = {"box": 0.1, "point10": -0.1}[cell.prompt] + (0.2 if cell.method == "lora" and rate > 5e-3 else 0)
            objects = pd.DataFrame({"image": ["a", "a", "b"], "output": "final", "iou": scores[rate] + shift})
            records.append(Record(cell.key(), "evaluation", {}, objects=objects))
        return records

    return run


def test_smallest_rate_within_half_a_point_of_the_best_on_validation_is_chosen(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {1e-5: 0.3, 1e-4: 0.496, 3e-4: 0.5, 1e-3: 0.5, 3e-3: 0.55, 1e-2: 0.45, 3e-2: 0.4, 1e-1: 0.9}
    profile = profile.model_copy(update={"learning_rates": tuple(reversed(scores)), "images": 100})
    asked: list[EvaluationCell] = []
    monkeypatch.setattr(plan, "run_cells", faked_records(scores, asked))
    frozen, lora = place_of(DATA, "decoder_tuning"), place_of(DATA, "lora")
    assert choose_learning_rates(profile, [frozen, lora], "hash") == {frozen: 1e-4, lora: 1e-2}
    tried: dict[str, set[float]] = {"decoder_tuning": set(), "lora": set()}
    for cell in asked:
        assert (cell.split, cell.seed, cell.weights_hash) == ("val", 0, "hash")
        rate = dict(cell.training.hyper)["learning_rate"]
        assert cell.training == training_cell(profile, cell.method, DATA, 0, rate, "hash")  # so it is reused
        assert cell.tables == (f"learning_rates:{rate:g}",)
        tried[cell.method].add(rate)
    # From the method's own rate on, until the chosen one has been compared with those on both its sides.
    assert tried == {"decoder_tuning": {1e-5, 1e-4, 3e-4}, "lora": {1e-3, 3e-3, 1e-2, 3e-2}}
    assert len({cell.key() for cell in asked}) == 2 * 7
    asked.clear()
    choose_learning_rates(profile, [place_of(DATA, "lora", {"rank": 2})], "hash")
    assert all(cell.tables[0].endswith(", rank 2") for cell in asked)  # other cells, so other rows


def test_a_set_without_validation_pictures_is_told_before_anything_is_trained(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = SimpleNamespace(ids=lambda split: [] if split == "val" else ["a"])
    monkeypatch.setattr(plan, "open_dataset", lambda name: empty)
    monkeypatch.setattr(plan, "run_cells", lambda *given, **more: pytest.fail("something was run"))
    two = profile.model_copy(update={"learning_rates": (1e-3, 1e-2)})
    with pytest.raises(InputError, match=f"{DATA} has no val pictures"):
        choose_learning_rates(two, [place_of(DATA, "lora")], backbone_hash("nano"))
    wrong = two.model_copy(update={"rates": {"loraa": 0.1}})
    with pytest.raises(InputError, match="unknown method in the profile's rates 'loraa'; known: lora"):
        choose_learning_rates(wrong, [place_of(DATA, "lora")], backbone_hash("nano"))


def test_a_rate_whose_loss_is_no_number_is_not_chosen(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profile.model_copy(update={"learning_rates": (1e-3, 3e-3), "images": 100})
    places = [place_of(DATA, "decoder_tuning"), place_of(DATA, "decoder_tuning", {"batch_size": 4})]
    monkeypatch.setattr(plan, "run_cells", faked_records({1e-3: 0.3, 3e-3: np.nan}, []))
    assert choose_learning_rates(profile, places, "hash") == dict.fromkeys(places, 1e-3)


def test_a_rate_at_which_another_seed_ends_with_empty_masks_is_not_chosen(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profile.model_copy(update={"learning_rates": (3e-4, 1e-3, 3e-3), "images": 100})
    asked: list[EvaluationCell] = []
    measure = faked_records({3e-4: 0.3, 1e-3: 0.5, 3e-3: 0.6}, asked)

    broken: set[int] = set()  # seeds whose loss becomes infinite

    def run(cells, results, execute, say=print):
        if broken & {cell.seed for cell in cells if dict(getattr(cell, "hyper", ())).get("learning_rate") == 1e-3}:
            raise FloatingPointError("loss is inf")
        curve_of = {(3e-3, 2): [0.4] * 18 + [0.0] * 2}  # collapses; else it rises from nothing
        trainings = [cell for cell in cells if cell.kind == "training"]
        found = [
            Record(one.key(), "training", {}, curve=tuple(
                {"iou_final": value}
                for value in curve_of.get((dict(one.hyper)["learning_rate"], one.seed), [0.0] * 10 + [0.4])
            ))
            for one in trainings
        ]  # fmt: skip
        return found + measure([cell for cell in cells if cell.kind != "training"], results, execute)

    monkeypatch.setattr(plan, "run_cells", run)
    place = place_of(DATA, "decoder_tuning")
    assert choose_learning_rates(profile, [place], "hash") == {place: 3e-3}
    assert {cell.seed for cell in asked} == {0}
    assert choose_learning_rates(profile, [place], "hash", seeds=(0, 1, 2)) == {place: 1e-3}
    shown = [cell for cell in asked if cell.seed]  # the table shows what was left out
    assert {(cell.seed, cell.training.seed, cell.split, cell.tables) for cell in shown} == {
        (2, 2, "val", ("learning_rates:0.003",))
    }
    broken.add(1)
    assert choose_learning_rates(profile, [place], "hash", seeds=(0, 1, 2)) == {place: 3e-4}


def test_the_search_goes_on_past_rates_that_are_left_out(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profile.model_copy(update={"learning_rates": (1e-4, 3e-4, 1e-3, 3e-3), "rates": {"lora": 3e-3}})
    monkeypatch.setattr(plan, "run_cells", faked_records({1e-4: 0.2, 3e-4: 0.4, 1e-3: 0.5, 3e-3: 0.6}, []))
    monkeypatch.setattr(
        plan, "_failed_with_another_seed",
        lambda profile, chosen, *rest: {one for one in chosen.items() if one[1] >= 1e-3},
    )  # fmt: skip
    place = place_of(DATA, "lora")
    assert choose_learning_rates(profile, [place], "hash") == {place: 3e-4}


def test_without_a_number_of_images_training_takes_the_papers_epochs(profile: Profile) -> None:
    paper = profile.model_copy(update={"images": None})
    epoch = len(plan.open_dataset(DATA).ids("train"))
    assert training_cell(paper, "lora", DATA, 0, 1e-3, "").images == 16 * epoch
    for method in ("decoder_tuning", "unet", "sam_sp"):  # of one table: SAM-SP's, without prompts
        assert training_cell(paper, method, DATA, 0, 1e-3, "", prompt="none").images == 160 * epoch
    assert training_cell(profile, "lora", DATA, 0, 1e-3, "").images == profile.images
    assert training_cell(paper, "lora", DATA, 0, 1e-3, "", 1).images == profile.batch_size


def test_a_profile_that_accumulates_batches_trains_so(profile: Profile) -> None:
    plain = training_cell(profile, "lora", DATA, 0, 1e-3, "")
    halved = profile.model_copy(update={"batch_size": 1, "accumulate": 2})
    changed = dict(training_cell(halved, "lora", DATA, 0, 1e-3, "").hyper)
    assert changed == dict(plain.hyper) | {"batch_size": 1, "accumulate": 2}


def test_the_u_net_sees_a_batch_that_it_can_normalise_and_as_many_images(profile: Profile) -> None:
    alone = profile.model_copy(update={"batch_size": 1, "images": 80})
    unet, lora = (training_cell(alone, method, "neu-seg", 0, 1e-3, "", prompt="none") for method in ("unet", "lora"))
    assert (dict(unet.hyper)["batch_size"], dict(lora.hyper)["batch_size"]) == (8, 1)
    assert unet.images == lora.images == 80


def test_grid_of_one_rate_is_not_run(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_to_run(*arguments: object) -> list:
        raise AssertionError("run")

    monkeypatch.setattr(plan, "run_cells", nothing_to_run)
    places = [place_of("a", "lora"), place_of("b", "decoder_tuning")]
    assert choose_learning_rates(profile, places, "") == dict.fromkeys(places, 1e-3)
    no_grid = profile.model_copy(update={"learning_rates": ()})
    chosen = choose_learning_rates(no_grid, places, "")
    assert chosen == {one: METHODS[one[1]].learning_rate for one in places}
    named = no_grid.model_copy(update={"rates": {"lora": 0.01}})
    assert choose_learning_rates(named, places, "") == chosen | {places[0]: 0.01}


def test_a_variant_has_its_own_rate_and_other_changes_take_the_methods(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(profile: Profile, places: list, *rest: object, **seeds: object) -> dict:
        return {one: 1e-4 + 1e-3 * len(one[2]) for one in places}

    monkeypatch.setattr(plan, "choose_learning_rates", rates)
    ours = Plan(profile)
    assert ours.rates == {}  # nothing is trained before it is asked for
    ours.choose_rates([DATA], ["lora"], [("lora", {"rank": 2})])
    cells = [ours.training("lora", DATA, 0, **options) for options in ({}, {"rank": 2}, {"rank": 4})]
    assert [dict(cell.hyper)["learning_rate"] for cell in cells] == [1e-4, 1.1e-3, 1e-4]


@pytest.mark.parametrize(
    ("change", "message"), [({"prompts": ("bux",)}, "prompt 'bux'"), ({"metrics": ("iuo",)}, "'iuo'")]
)
def test_unknown_prompts_and_metrics_are_told_before_anything_runs(
    profile: Profile, change: dict, message: str
) -> None:
    wrong = profile.model_copy(update={"evaluation": profile.evaluation.model_copy(update=change)})
    with pytest.raises(InputError, match=f"unknown .*{message}; known: "):
        executor(wrong)


def test_mean_iou_is_over_objects_then_over_images() -> None:
    objects = pd.DataFrame(
        {
            "image": ["a", "a", "b", "b"],
            "output": ["final", "final", "final", "draft"],
            "iou": [0.2, 0.4, 0.9, 0.0],
        }
    )
    assert mean_iou(Record("k", "evaluation", {}, objects=objects)) == pytest.approx((0.3 + 0.9) / 2)


def test_backbone_hash_is_that_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    first = backbone_hash("nano")
    assert first == backbone_hash("nano") and len(first) == 12
    monkeypatch.setattr(plan, "load_sam", lambda backbone: small_sam(1))
    assert backbone_hash("nano") != first
