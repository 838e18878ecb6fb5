"""Figures: they show the numbers that they were given, the same figure gives the same file, licences are kept."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from fake_records import fake_cells, fake_execute
from samtune.data.registry_entry import Description
from samtune.report import figures, labels
from samtune.report.tables import image_values
from samtune.study.records import read_records
from samtune.study.runner import run_cells


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    run_cells(fake_cells(("spt_main",), methods=("lora", "spt")), folder, fake_execute, say=lambda line: None)
    return read_records(folder / "records")


def test_a_legend_of_long_names_stays_inside_the_figure(records):
    names = ["true box in training and test", "first pass twice, no distillation", 30 * "b"]
    figure = figures.robustness_curve(pd.DataFrame({"x": 0, "method": names, "mean": 0.5}), "Long names", "x")
    assert len(figure.legends) == 1 and figure.legends[0].get_window_extent().width <= figure.bbox.width
    assert len(figure.legends[0].get_texts()) == 3


def test_curves_are_means_over_seeds(records):
    figure = figures.learning_curves([r for r in records if r.kind == "training"], "They learn", y="validation_iou")
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        f"{name}\nbox; 3 seeds" for name in ("magnetic-tile", "neu-seg")
    ]
    bold = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in bold] == ["LoRA", "SPT"]
    assert len(figure.axes[0].lines) == 2 * (3 + 1)  # three seeds and their mean
    np.testing.assert_allclose(bold[0].get_ydata(), [0.5, 0.51, 0.52, 0.53, 0.54, 0.55])


def test_curves_of_several_outputs_are_lines_of_their_own(records):
    def curve(*values):
        return tuple({"images": place, **row} for place, row in enumerate(values))

    training = next(record for record in records if record.kind == "training" and record.method == "spt")
    rows = [{"iou_draft": 0.2, "iou_final": 0.3}, {"iou_draft": 0.4, "iou_final": 0.6}]
    figure = figures.learning_curves([replace(training, curve=curve(*rows))], "Draft", ("iou_draft", "iou_final"))
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines == {"SPT draft": [0.2, 0.4], "SPT": [0.3, 0.6]}


def test_a_long_curve_soon_forgets_its_start(records):
    training = next(record for record in records if record.kind == "training")
    curve = tuple({"images": place, "loss": 1.0 if place < 5 else 0.0} for place in range(3000))
    line = figures.learning_curves([replace(training, curve=curve)], "Long").axes[0].lines[0].get_ydata()
    assert len(line) == figures.MOST_POINTS
    assert line[0] == 1 and 0 < line[1] < 1 and not line[5:].any()


def test_scatter_says_who_wins_where(records):
    measured = {(r.method, r.dataset): r for r in records if r.objects is not None}
    a, b = (image_values(measured[method, "neu-seg"], "iou", "final") for method in ("lora", "spt"))
    figure = figures.image_scatter(a, b.iloc[1:], ("lora", "spt"), "SPT wins everywhere")
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, np.stack([a.iloc[1:], b.iloc[1:]], axis=1))
    assert figure.axes[0].get_title(loc="left").startswith("SPT\nhigher on 100% of 11 images\nmean difference +0.0")


def test_robustness_curve_sorts_and_bands():
    frame = pd.DataFrame({"x": [0.2, 0.0, 0.1], "method": "lora", "mean": [0.4, 0.6, 0.5], "low": 0.3, "high": 0.7})
    (axis,) = figures.robustness_curve(frame, "It holds", "jitter").axes
    assert axis.lines[0].get_ydata().tolist() == [0.6, 0.5, 0.4] and len(axis.collections) == 1


def test_bands_that_would_overlap_have_a_panel_each_and_grey_lines_of_the_others():
    frame = pd.DataFrame({"x": [0, 1, 0, 1], "method": ["lora", "lora", "spt", "spt"], "mean": [0.4, 0.5, 0.5, 0.6]})
    axes = figures.robustness_curve(frame.assign(low=0.3, high=0.7), "Two", "x").axes
    assert [axis.get_title(loc="left") for axis in axes] == ["LoRA", "SPT"]
    assert [len(axis.collections) for axis in axes] == [1, 1]
    assert [[line.get_color() == figures.SOFT for line in axis.lines] for axis in axes] == [
        [False, True],
        [True, False],
    ]
    assert len(figures.robustness_curve(frame, "No bands", "x").axes) == 1


def test_a_line_figure_names_the_set_prompt_and_seeds_that_all_rows_share():
    frame = pd.DataFrame({"x": [0, 1], "method": "lora", "mean": 0.4, "dataset": "neu-seg", "prompt": "box"})
    title = figures.robustness_curve(frame.assign(seeds=3), "Size", "x").get_suptitle()
    assert title == "Size: neu-seg, box prompt, 3 seeds"
    several = frame.assign(seeds=[1, 3], prompt=["point1", "point2"])
    assert figures.robustness_curve(several, "Clicks", "x").get_suptitle() == "Clicks: neu-seg"


def test_every_method_keeps_its_colour_and_others_get_distinct_ones():
    assert labels.colours(["spt", "lora"])["spt"] == labels.colours(["zero_shot", "spt"])["spt"]
    names = ["SDT", "VRA", "both", "neither"]
    assert len(set(labels.colours(names).values())) == 4
    assert labels.label("lora") == "LoRA" and labels.label("spt draft") == "SPT draft"


@pytest.mark.parametrize("words", ["", "A line <rises> — from 0 to 1"])
@pytest.mark.parametrize(("pictures", "file"), [(False, "figure.svg"), (True, "figure.webp")])
def test_saved_twice_the_file_is_the_same_and_carries_its_title_and_words(tmp_path, pictures, file, words):
    for name in ("a", "b"):
        figure, (axis,) = figures.panels("Look at\n<this> — 3 ± 1", 1, width=4, height=2)
        axis.plot([0, 1])
        if pictures:
            axis.imshow(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
        figure.alt = words
        path = figures.save(figure, tmp_path / name, "figure")
        assert [one.name for one in (tmp_path / name).iterdir()] == [path.name] == [file]
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    title = "Look at <this> — 3 ± 1"
    assert figures.title_alt_and_width(path) == (title, words or title, pytest.approx(4))
    picture, about = figure._repr_png_()
    assert picture.startswith(b"\x89PNG") and about == {"file": str(path)}


def test_a_saved_picture_looks_as_it_is_drawn(tmp_path):
    figure = figures.Picture(figsize=(3, 3))
    axis = figure.subplots()
    axis.imshow(np.stack(np.meshgrid(np.arange(200), np.arange(200), [128]), axis=-1)[:, :, 0].astype(np.uint8))
    axis.add_patch(Rectangle((40, 40), 120, 120, fill=False, edgecolor="red", linewidth=0.9))
    drawn = Image.open(io.BytesIO(figure._repr_png_()[0])).convert("RGB")
    saved = Image.open(figures.save(figure, tmp_path, "box")).convert("RGB")
    difference = np.abs(np.asarray(saved, float) - np.asarray(drawn, float))
    assert difference.mean() < 2


def test_figures_of_the_usual_kind_stay_below_200_kb(tmp_path, records):
    noise = np.random.default_rng(0)
    trainings = []
    for record in records:
        if record.kind == "training":
            curve = tuple({"images": place, "loss": value} for place, value in enumerate(noise.random(2000)))
            trainings += [replace(record, curve=curve, cell=record.cell | {"train_datasets": [name]}) for name in "abc"]
    drawn = figures.learning_curves(trainings, "Three sets, two methods, three seeds")
    assert figures.save(drawn, tmp_path, "curves").stat().st_size < 200_000
    figure, axes = figures.panels("Grainy photographs", 6, width=2.5, height=2.5)
    for axis in axes:
        axis.imshow(noise.normal(128, 25, (128, 128, 3)).clip(0, 255).astype(np.uint8))
    assert figures.save(figure, tmp_path, "pictures").stat().st_size < 200_000


@pytest.mark.parametrize("content", ["<svg>", '<svg xmlns="x" width="100%"></svg>'])
def test_a_figure_of_another_program_is_called_by_its_file(tmp_path, content):
    (tmp_path / "my_own.svg").write_text(content)
    assert figures.title_alt_and_width(tmp_path / "my_own.svg") == ("my own", "my own", 0)


def test_pictures_are_committed_only_where_their_licence_allows(tmp_path, monkeypatch):
    def described(name, allowed):
        words = dict.fromkeys(("title", "licence", "citation", "how_to_get", "splits"), "")
        return Description(name, lambda folder: None, domain="natural", committed_pictures=allowed, **words)

    known = {"free": described("free", True), "closed": described("closed", False)}
    monkeypatch.setattr(figures.registry, "DATASETS", known)
    assert [figures.may_be_committed(name) for name in ("free", "closed", "my own pictures")] == [True, False, False]
    assert figures.figure_folder(tmp_path) == figures.figure_folder(tmp_path, ["free"]) == tmp_path / "figures"
    assert figures.figure_folder(tmp_path, ["free", "closed"]) == tmp_path / "figures" / "private"
    assert (tmp_path / "figures" / "private" / ".gitignore").read_text() == "*\n"


def test_committed_pictures_are_those_that_design_names():
    real = {name for name in figures.registry.DATASETS if not name.startswith("synthetic-")}
    assert {name for name in real if figures.may_be_committed(name)} == {"bbbc038", "ccp", "magnetic-tile"}
