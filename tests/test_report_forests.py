"""Forest plots show the paired differences of the records, on an axis that fits them."""

import numpy as np
import pandas as pd
import pytest

from fake_records import fake_cells, fake_execute
from samtune.methods import METHODS
from samtune.report import forests
from samtune.report.contrasts import in_points, interval_text
from samtune.report.tables import paired_differences
from samtune.study.records import read_records
from samtune.study.runner import run_cells


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    run_cells(fake_cells(("spt_main",), methods=("lora", "spt")), folder, fake_execute, say=lambda line: None)
    return read_records(folder / "records")


def row(**changes):
    usual = {"comparison": "box", "method": "spt", "metric": "iou", "dataset": "a", "effect": 0.004, "low": -0.003}
    return usual | {"high": 0.01, "seeds": 3, "images": 78, "units": 78} | changes


def test_rows_are_the_paired_differences_and_their_mean(records):
    rows = forests.forest_rows(records, "nano", "spt_forest")
    box = rows[rows["comparison"] == "box prompt"].set_index("dataset")
    paired = paired_differences(records, "spt_main", "spt", ["lora"]).query("prompt == 'box'").set_index("dataset")
    assert list(box.index) == [*paired.index, "mean of sets"]
    np.testing.assert_allclose(box.loc[paired.index, "effect"], paired["difference"])
    assert box["effect"].iloc[-1] == pytest.approx(paired["difference"].mean())
    assert box["images"].iloc[-1] == paired["images"].sum() and set(box["seeds"]) == {3}


def test_small_differences_have_the_narrow_axis_and_what_leaves_it_an_arrow():
    figure = forests.forest(pd.DataFrame([row(), row(dataset="b", low=-0.5, units=4)]), "Small")
    (axis,) = figure.axes
    assert axis.get_xlim() == (-0.03, 0.03)
    assert [line.get_marker() for line in axis.lines].count("<") == 1
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [point.get_markerfacecolor() for point in points] == [METHODS["spt"].colour, "white"]
    assert axis.texts[0].get_text() == "+0.4 [-0.3, +1.0]  n = 78"


def test_large_differences_have_an_axis_of_their_own():
    (axis,) = forests.forest(pd.DataFrame([row(effect=0.4, low=0.3, high=0.5)]), "Large").axes
    low, high = axis.get_xlim()
    assert low < 0 and high > 0.5
    assert not [line for line in axis.lines if line.get_marker() in "<>"]


def test_ticks_say_where_they_are():
    (axis,) = forests.forest(pd.DataFrame([row(effect=-0.097, low=-0.118, high=-0.02)]), "Half points").axes
    shown = [float(axis.xaxis.get_major_formatter()(place)) for place in axis.get_xticks()]
    assert shown == pytest.approx([100 * place for place in axis.get_xticks()])


def test_the_sign_of_a_bound_can_be_seen():
    assert in_points(0.0123, -0.0041, 0.02) == "+1.2 [-0.4, +2.0]"
    assert in_points(0.0123, -0.0004, 0.02) == "+1.23 [-0.04, +2.00]"
    assert interval_text(0.0123, 0.00004, 0.02) == "+0.01230 [+0.00004, +0.02000]"
    assert interval_text(0.0, 0.0, 0.0) == "+0.000 [+0.000, +0.000]"


def test_words_name_the_comparison_and_its_mean(records):
    figure = forests.paper_forest(records, "nano", "spt_forest")
    assert figure.alt.startswith("SPT minus LoRA, equal training. box prompt, mean of 2 sets: +")
    assert forests.paper_forest([], "nano", "asam_forest").alt.endswith("Not run.")


def test_the_last_panel_of_each_measure_names_it():
    rows = [row(comparison=name, metric=metric) for name, metric in (("a", "iou"), ("b", "iou"), ("c", "dice"))]
    axes = forests.forest(pd.DataFrame(rows), "Two measures").axes
    assert [axis.get_xlabel() for axis in axes] == ["", "points of IoU", "points of Dice"]


@pytest.mark.parametrize("name", forests.FORESTS)
def test_each_comparison_of_a_figure_has_its_own_name_and_its_controls_differ(name):
    comparisons = forests.FORESTS[name][1]
    assert len({words for words, *_ in comparisons}) == len(comparisons)
    assert all(terms[0][1] != terms[1][1] for _, _, terms, _ in comparisons)
