"""ASAM's inversion and attack timed: what is counted, what time does not reach, what is not here."""

from pathlib import Path

import pytest
import torch

from samtune.diffusion.pipeline import new_diffusion
from samtune.report.readable_tables import pivots
from samtune.report.tables import build_tables
from samtune.study import bench_generation
from samtune.study.bench_generation import run_generation_bench
from samtune.study.profile import Profile, load_profile
from small_sam import small_sam
from tiny_diffusion import save_tiny_diffusion


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(bench_generation, "new_sam", lambda backbone: small_sam())
    folder = str(save_tiny_diffusion(tmp_path / "diffusion"))
    smoke = load_profile("smoke")
    few = smoke.generation.model_copy(update={"steps": 2, "recipe": "direct", "batch": 2})
    return smoke.model_copy(update={"diffusion": folder, "controlnet": folder, "generation": few})


def test_inversion_and_attack_have_a_row_each(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    records = run_generation_bench(profile, 1.0, "cpu")
    counted = {one.cell["method"]: one.extras["images_per_second"] * one.seconds for one in records}
    # Of two pictures in 2 steps: inverted and guided once; guided in two renderings.
    assert counted == pytest.approx({"inversion": 2 * (2 + 2 * 2), "attack": 2 * 2 * 2 * 2}, rel=0.01)
    table = build_tables(records)["speed"]
    assert set(table["method"]) == {"inversion", "attack"}
    (shown,) = pivots("speed", table)
    assert shown.title
    evaluations = shown.header.index("evaluations")
    assert "encoding" not in shown.header and all(float(row[evaluations]) > 0 for row in shown.rows)
    monkeypatch.setattr(bench_generation, "_model", lambda profile: pytest.fail("what has a record is read"))
    again = run_generation_bench(profile, 1.0, "cpu")
    assert [one.key for one in again] == [one.key for one in records]


def test_what_time_does_not_reach_or_is_not_here_has_no_record(profile: Profile) -> None:
    said: list[str] = []
    assert run_generation_bench(profile, 0.0, "cpu", said.append) == []
    assert len(said) == 2 and "not timed, it would take" in said[0]
    elsewhere = profile.model_copy(update={"diffusion": "no/such-model"})
    assert run_generation_bench(elsewhere, 1.0, "cpu", said.append) == [] and "such-model is not here" in said[-1]


def test_stand_in_has_the_sizes_of_stable_diffusion() -> None:
    with torch.device("meta"):
        model = new_diffusion()
    sizes = [sum(value.numel() for value in part.parameters()) for part in (model.unet, model.vae)]
    assert sizes == [859_520_964, 83_653_863] and model.image_size == 512
