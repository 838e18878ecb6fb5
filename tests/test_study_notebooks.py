"""What is left of a profile: counted without weights, device or a training."""

from pathlib import Path

import pytest

from samtune.common.errors import InputError
from samtune.common.paths import repository_root
from samtune.study import execute, plan
from samtune.study.cells import Cell
from samtune.study.notebooks import ASKED, ask_for_cells, outlook
from samtune.study.profile import load_profile, profile_names
from samtune.study.runner import only_planned


def test_every_notebook_of_every_profile_is_known_and_is_a_file() -> None:
    for name in profile_names():
        assert set(load_profile(name).notebooks) <= set(ASKED), name
    files = {path.stem for path in (repository_root() / "notebooks").glob("*.ipynb")}
    assert files == {*ASKED, "40_your_data"}  # of no profile: a user's own pictures
    with pytest.raises(InputError, match="unknown notebook '12_spt'; known: 1"):
        ask_for_cells("12_spt", load_profile("smoke"))


def test_the_profiles_own_parameters_count_as_in_the_notebook(small_backbone: None, profile) -> None:
    def asked(**parameters: object) -> list[Cell]:
        notebook = profile.notebooks["10_spt"].model_copy(update={"parameters": parameters})
        with only_planned() as cells:
            ask_for_cells("10_spt", profile.model_copy(update={"notebooks": {"10_spt": notebook}}))
        return cells

    assert {cell.seed for cell in asked(seeds=[5], controls=[]) if "spt_main" in cell.tables} == {5}
    changed = [cell for cell in asked(controls=[], changes={"rank": 2}) if "spt_main:own: rank 2" in cell.tables]
    assert {dict(cell.training.hyper)["rank"] for cell in changed} == {2}
    with pytest.raises(InputError, match="unknown parameter 'control'; known: controls"):
        asked(control=[])


def test_nothing_is_run_and_no_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a GPU's profile, where neither the card nor the checkpoint is here."""
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path / "none"))
    for module in (execute, plan):
        monkeypatch.setattr(module, "load_sam", lambda backbone: pytest.fail(f"loads {backbone}"))
    gpu = load_profile("gpu")
    synthetic = {"10_spt": ("synthetic-industrial",), "11_spt_ablations": ("synthetic-industrial",)}
    notebooks = {name: gpu.notebooks[name].model_copy(update={"parameters": {}}) for name in synthetic}
    gpu = gpu.model_copy(update={"datasets": gpu.datasets | synthetic, "notebooks": notebooks})
    main, ablations = outlook(gpu)
    # Zero-shot and three methods, 3 seeds and 3 prompts, and the truth's 3 prompts; rates: 3 tried, 2 prompts each.
    measured = 4 * 3 * 3 + 3 + 3 * 3 * 2
    assert main.missing == measured + 3 * (3 + 2)  # and the trainings: of each method 3 rates, and 2 more seeds
    assert main.cells == measured + 3 * 3 and main.seconds is None  # those of all seeds, for the rule about the rates
    assert main.bytes > 10_000 * main.missing
    assert ablations.missing > 0 and not (tmp_path / "results").exists()


def test_what_is_recorded_is_not_left_and_a_missing_data_set_is_told(
    small_backbone: None, profile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notebooks = {"00_start_here": profile.notebooks["00_start_here"]}
    smoke = profile.model_copy(update={"notebooks": notebooks})
    (before,) = outlook(smoke)
    assert before.missing > before.cells > 0
    ask_for_cells("00_start_here", smoke)
    (after,) = outlook(smoke)
    assert (after.cells, after.missing, after.seconds, after.bytes) == (before.cells, 0, 0.0, 0)
    monkeypatch.setenv("SAMTUNE_DATA", str(tmp_path / "nothing"))
    elsewhere = smoke.model_copy(update={"datasets": {"00_start_here": ("neu-seg",)}, "images": None})
    (lacking,) = outlook(elsewhere)
    assert "data set neu-seg not found" in lacking.lacking
    (lacking,) = outlook(smoke.model_copy(update={"datasets": {}}))
    assert lacking.lacking == "profile smoke has no datasets for 00_start_here: name some"
