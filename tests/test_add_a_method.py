"""README's promise: a method is a file and a line. A toy method, registered, goes all the way."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from own_pictures import run, tiny_sam, write_pictures
from samtune.methods import METHODS, Method
from samtune.report.figures import robustness_curve
from samtune.report.readable_tables import table_page
from samtune.report.tables import build_tables
from samtune.study.plan import Plan
from samtune.study.profile import Profile

DATA = "synthetic-industrial"


class TokensOnly(Method):
    """Tunes the mask tokens alone."""

    name = "toy"
    title = "toy tuning"
    colour = "#123456"
    learning_rate = 1e-2

    def __init__(self, sam) -> None:
        super().__init__(sam)
        self.sam.mask_decoder.mask_tokens.requires_grad_(True)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", TokensOnly)  # the one line


@pytest.mark.usefixtures("registered", "small_backbone")
def test_it_is_trained_and_stands_in_a_table_and_its_figure_in_its_own_colour(profile: Profile) -> None:
    plan = Plan(profile).choose_rates([DATA], ["toy"])
    records = plan.run(plan.measured(plan.training("toy", DATA, 0), DATA, "toy_main"))
    table = build_tables(records)["toy_main"]
    assert set(table["method"]) == {"toy"} and np.isfinite(table["mean"]).any()
    assert "| toy tuning |" in table_page("toy_main", table, {})
    axis = robustness_curve(table[table["prompt"] == "box"].assign(x=0), "toy", "nothing").axes[0]
    assert to_hex(axis.lines[0].get_color()) == "#123456"
    assert axis.get_legend_handles_labels()[1] == ["toy tuning"]


@pytest.mark.usefixtures("registered")
def test_samtune_tune_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtune.commands.tune.load_sam", tiny_sam)
    write_pictures(tmp_path, 4)
    where = ("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--out", tmp_path / "out")
    done = run("tune", "--method", "toy", *where, "--train-images", 4, "--learning-rate", 0.01, "--batch-size", 2)
    assert done[0] == 0, done[2]
    assert (tmp_path / "out" / "tuned.safetensors").is_file()
