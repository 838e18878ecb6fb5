"""Fixtures of the studies' tests."""

from pathlib import Path

import pytest

from samtune.methods import build_method
from samtune.study import execute, plan, spt
from samtune.study.cells import EvaluationCell
from samtune.study.profile import Profile, load_profile
from small_sam import small_sam


@pytest.fixture
def small_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "nano" is the small SAM, and results go to a folder of the test's own."""
    for module in (execute, plan):
        monkeypatch.setattr(module, "load_sam", lambda backbone: small_sam())
    counted = lambda name, backbone: build_method(name, small_sam()).count_trainable()  # noqa: E731
    monkeypatch.setattr(spt, "trainable_parameters", counted)
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path / "results"))


@pytest.fixture
def profile() -> Profile:
    """The smoke profile, measuring two images."""
    smoke = load_profile("smoke")
    return smoke.model_copy(update={"evaluation": smoke.evaluation.model_copy(update={"max_images": 2})})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EvaluationCell]:
    """The cells that a study asks for; they are only noted, not run."""
    cells: list[EvaluationCell] = []
    monkeypatch.setattr(plan, "run_cells", lambda wanted, *rest: cells.extend(wanted) or [])
    return cells
