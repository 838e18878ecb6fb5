"""Baselines and the nano SAM's table of a smoke profile, end to end on the small SAM, nothing run twice."""

import shutil
from pathlib import Path

import pytest
import torch

from samtune.methods import build_method
from samtune.study import execute, plan
from samtune.study.baselines import run_baselines, run_nano_sam
from samtune.study.cells import EvaluationCell
from samtune.study.execute import trained_method
from samtune.study.plan import mean_iou, place_of
from samtune.study.profile import Profile
from samtune.study.records import read_records
from small_sam import small_sam

DATA = "synthetic-industrial"
pytestmark = pytest.mark.usefixtures("small_backbone")


def test_baselines_of_a_smoke_profile_run_once(profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "results" / "smoke"
    records = run_baselines(profile, [DATA], [0])
    assert [(record.method, *record.tables) for record in records] == [
        ("zero_shot", "baselines"), ("decoder_tuning", "baselines"), ("lora", "baselines"),
        ("lora", "baselines:trained on boxes"),
    ]  # fmt: skip
    for record in records:
        assert record.dataset == DATA and record.precision == "fp32"
        assert record.objects["image"].nunique() == 2 and set(record.objects["output"]) == {"final"}
        assert record.objects[["iou", "boundary_iou", "dice"]].to_numpy().min() >= 0
        assert record.extras["dropped"]["images without a mask"] == 0
    stored = {record.key: record for record in read_records(folder / "records")}
    assert sorted(record.kind for record in stored.values()) == ["evaluation"] * 4 + ["training"] * 3
    trainings = {record.method: record for record in stored.values() if record.kind == "training"}
    for method, record in trainings.items():
        assert [row["images"] for row in record.curve] == [2, 4] and record.images == 4
        assert record.extras["trainable_parameters"] == build_method(method, small_sam()).count_trainable()
        assert (folder / "checkpoints" / record.key / execute.WEIGHTS).is_file()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = run_baselines(profile, [DATA], [0])
    assert "nothing to run" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert [record.key for record in again] == [record.key for record in records]
    # What is handed back as trained predicts as it was measured.
    lora = trained_method(records[2], profile)
    fresh = build_method("lora", small_sam())
    assert any("lora_B" in name and value.any() for name, value in lora.trainable_state().items())
    assert not any("lora_B" in name and value.any() for name, value in fresh.trainable_state().items())
    # Where the record is here and the checkpoint is not, as after a clone, it is trained again.
    shutil.rmtree(folder / "checkpoints")
    again = trained_method(records[2], profile).trainable_state()
    assert all(torch.equal(value, again[name]) for name, value in lora.trainable_state().items())


def test_nano_table_compares_with_ellipse_and_grabcut(profile: Profile) -> None:
    records = run_nano_sam(profile, [DATA])
    assert [(record.method, record.cell["prompt"]) for record in records] == [
        ("zero_shot", "box"), ("zero_shot", "point_centre"), ("zero_shot", "point1"), ("ellipse", "box"),
        ("grabcut", "box"),
    ]  # fmt: skip
    assert all(set(record.objects["output"]) == {"final", "best_of_3"} for record in records[1:3])
    counts = {len(record.objects[record.objects["output"] == "final"]) for record in records}
    assert len(counts) == 1  # the same objects for all
    assert all(record.objects[["box_w", "box_h"]].to_numpy().min() >= 16 for record in records)
    assert mean_iou(records[3]) > 0.3


def test_chosen_rates_are_those_that_the_main_cells_train_with(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {place_of(DATA, "decoder_tuning"): 2e-3, place_of(DATA, "lora"): 7e-4}
    monkeypatch.setattr(plan, "choose_learning_rates", lambda *arguments, **seeds: rates)
    asked: list[EvaluationCell] = []
    monkeypatch.setattr(plan, "run_cells", lambda cells, *rest: asked.extend(cells) or [])
    run_baselines(profile, [DATA], [0, 1])
    found = {(cell.dataset, cell.method, dict(cell.training.hyper)["learning_rate"]) for cell in asked if cell.training}
    assert found == {(dataset, method, rate) for (dataset, method, _), rate in rates.items()}
    assert {(cell.split, cell.max_images) for cell in asked} == {("test", 2)}
    assert sorted((cell.method, cell.training and cell.training.prompt or "", cell.seed) for cell in asked) == [
        (method, trained_with, seed)
        for method, trained_with in (
            ("decoder_tuning", "box,point10"), ("lora", "box"), ("lora", "box,point10"), ("zero_shot", ""),
        )
        for seed in (0, 1)
    ]  # fmt: skip
