"""Figures: pure functions of records and tables that give matplotlib figures; `save` writes them.

Every figure has a title that says what to look at. Colours belong to methods (`Method.colour`) and stay the same
everywhere; they are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import html
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import ExifTags, Image

from samtune.common.atomic import write_atomically
from samtune.data import registry
from samtune.report.labels import colours, in_order, label
from samtune.report.readable_tables import METRIC_LABELS
from samtune.report.statistics import paired_bootstrap
from samtune.study.records import Record

INK, SOFT, LINE = "#1f2430", "#667085", "#d5d9e0"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": LINE,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eceef2",
    "grid.linewidth": 0.8, "xtick.color": SOFT, "ytick.color": SOFT, "xtick.major.size": 0, "ytick.major.size": 0,
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8, "figure.facecolor": "white",
    "svg.hashsalt": "samtune",
}  # fmt: skip
DPI = 144
WEBP = {"quality": 92, "method": 6, "use_sharp_yuv": True}  # thin outlines keep their colour
PRIVATE = "private"  # the folder of figures that show pictures which may not be passed on


@matplotlib.rc_context(STYLE)
def learning_curves(records: Iterable[Record], title: str, y: str | Sequence[str] = "loss") -> Figure:
    """A column of trainings' curves, smoothed: the mean over seeds in bold, each seed a thin line; one panel a set.

    With several columns ("iou_draft", "iou_final") each is a line of its own; what lacks one has none.
    """
    columns = [y] if isinstance(y, str) else list(y)
    curves: dict[str, dict[str, list[pd.Series]]] = {}
    for record in records:
        frame = pd.DataFrame(list(record.curve))
        for column in columns:
            if {"images", column} <= set(frame):
                values = frame.dropna(subset=[column]).set_index("images")[column].astype(float)
                window = max(1, min(len(values) // 15, 75))  # wider, a steep start would reach far into training
                values = values.rolling(window, min_periods=1).mean()
                name = record.method if isinstance(y, str) else f"{record.method} {column.removeprefix('iou_')}"
                curves.setdefault("+".join(record.train_datasets), {}).setdefault(name, []).append(values)
    figure, axes = panels(title, max(len(curves), 1), width=4.2, height=3.1)
    names = in_order(dict.fromkeys(name for lines in curves.values() for name in lines))
    for axis, (dataset, lines) in zip(axes, sorted(curves.items()), strict=False):
        for name in (name for name in names if name in lines):
            colour, seeds = colours(names)[name], lines[name]
            if len(seeds) > 1:
                for seed in seeds:
                    axis.plot(seed.index, seed.to_numpy(), color=colour, linewidth=0.7, alpha=0.45)
            mean = pd.concat(seeds, axis=1).mean(axis=1).sort_index()
            axis.plot(mean.index, mean.to_numpy(), color=colour, label=label(name))
        axis.set_title(dataset)
        axis.set_xlabel("images seen")
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes[0].set_ylabel("IoU with the batch's masks" if columns[0].startswith("iou_") else columns[0].replace("_", " "))
    _legend(figure, axes[0])
    return figure


@matplotlib.rc_context(STYLE)
def image_scatter(a: pd.Series, b: pd.Series, names: tuple[str, str], title: str, metric: str = "iou") -> Figure:
    """Each image a point: its value under A (across) and under B (up); above the diagonal B is better.

    `a`, `b`: `tables.image_values`, or several seeds' mean of them; images that one of them lacks are left out.
    """
    frame = pd.concat([a, b], axis=1, join="inner").dropna()
    both, groups = frame.to_numpy(), list(frame.index.get_level_values("group"))
    figure, (axis,) = panels(title, 1, width=4.4, height=4.3)
    low, high = (both.min(), both.max()) if both.max(initial=0) > 1.001 else (0, 1)
    margin = 0.03 * (high - low)
    limits = (low - margin, high + margin)
    axis.plot(limits, limits, color=SOFT, linewidth=1, zorder=1)
    axis.scatter(both[:, 0], both[:, 1], s=14, color=colours(list(names))[names[1]], alpha=0.55, linewidth=0, zorder=2)
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    measure = METRIC_LABELS.get(metric, metric)
    axis.set_xlabel(f"{measure}, {label(names[0])}")
    axis.set_ylabel(f"{measure}, {label(names[1])}")
    if len(both):
        mean, bottom, top = paired_bootstrap((both[:, 1] - both[:, 0])[None], groups)
        share = np.mean(both[:, 1] > both[:, 0])
        text = f"{label(names[1])} higher on {share:.0%} of {len(both)} images\n"
        text += f"mean difference {mean:+.3f} [{bottom:+.3f}, {top:+.3f}]"
        axis.set_title(text, fontweight="normal", fontsize=8.5, color=SOFT)
    return figure


@matplotlib.rc_context(STYLE)
def robustness_curve(
    frame: pd.DataFrame, title: str, x_label: str, metric: str = "iou", by: str = "method", note: str = ""
) -> Figure:
    """How a metric falls, or holds, along `x`: columns x, `by`, mean and, where known, low and high (a band)."""
    names = in_order(frame[by].unique())
    figure, (axis,) = panels(title, 1, width=5.4, height=3.3)
    for name in names:
        rows = frame[frame[by] == name].sort_values("x")
        colour = colours(names)[name]
        axis.plot(rows["x"], rows["mean"], color=colour, marker="o", markersize=4, label=label(name))
        if {"low", "high"} <= set(rows) and rows["low"].notna().any():
            axis.fill_between(rows["x"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    if frame["x"].nunique() <= 12:  # what was measured, in place of round numbers between
        axis.set_xticks(sorted(frame["x"].unique()))
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(x_label)
    axis.set_ylabel(METRIC_LABELS.get(metric, metric))
    if note:
        axis.set_title(note, fontweight="normal", fontsize=8.5, color=SOFT)
    _legend(figure, axis)
    return figure


def may_be_committed(dataset: str) -> bool:
    """May pictures of this set appear in committed figures? What the registry does not know may not."""
    description = registry.DATASETS.get(dataset)
    return description is not None and description.committed_pictures


def figure_folder(results: Path, datasets: Iterable[str] = ()) -> Path:
    """Where a figure belongs that shows pictures of `datasets` (none: curves and numbers only).

    `<results>/figures`, or `<results>/figures/private`, which git ignores, as soon as one set's licence asks for it.
    """
    folder = results / "figures"
    if all(map(may_be_committed, datasets)):
        return folder
    write_atomically(folder / PRIVATE / ".gitignore", b"*\n")
    return folder / PRIVATE


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure into `folder` as one file; returns its path. The same figure gives the same file.

    A drawing becomes `<name>.svg`: sharp at any size, and shown by browsers and git hosts. A figure that shows images
    (`Axes.images`) becomes `<name>.webp`, with a loss that is not seen even at twice its size; as PNG it would be five
    times as large, as SVG more. Both carry the figure's title, which `title_and_width` reads.
    """
    title = figure.get_suptitle().replace("\n", " ") or name
    shows_images = any(axis.images for axis in figure.axes)
    path = folder / f"{name}{'.webp' if shows_images else '.svg'}"
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        if shows_images:
            exif = Image.Exif()
            exif[ExifTags.Base.ImageDescription] = title.encode()
            figure.savefig(buffer, format="webp", dpi=DPI, pil_kwargs=WEBP | {"exif": exif})
        else:
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    write_atomically(path, buffer.getvalue())
    figure.file = path.absolute()
    return path


def title_and_width(path: Path) -> tuple[str, float]:
    """Title of a figure that `save` wrote (of any other: its file's name), and its width in inches (0: not known)."""
    if path.suffix == ".webp":
        with Image.open(path) as image:
            title = image.getexif().get(ExifTags.Base.ImageDescription, "").encode("latin-1").decode(errors="replace")
            width = image.width / DPI
    else:
        head = path.read_text(encoding="utf-8", errors="replace")[:4000]
        found = re.search(r"<title>(.*?)</title>", head, re.DOTALL)
        points = re.search(r'<svg[^>]* width="([\d.]+)pt"', head)
        title, width = html.unescape(found[1]) if found else "", float(points[1]) / 72 if points else 0.0
    return title or path.stem.replace("_", " "), width


class Picture(Figure):
    """A figure that shows itself at the end of a notebook's cell, without pyplot's global state.

    `file`, once saved: `run_notebook` puts a link to it into the executed notebook, in place of the figure. `alt`: what
    it shows, in words; "": its title.
    """

    file: Path | None = None
    alt: str = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue(), {} if self.file is None else {"file": str(self.file)}


def panels(title: str, count: int, width: float, height: float, columns: int = 3) -> tuple[Picture, list[Axes]]:
    """A figure of `count` panels of that size in inches, `columns` a row at most."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Picture(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    set_title(figure, title)
    return figure, list(axes[:count])


def set_title(figure: Figure, title: str) -> None:
    """The figure's title, in lines that fit its width."""
    lines = textwrap.wrap(title, max(30, int(figure.get_figwidth() * 12)))
    figure.suptitle("\n".join(lines), x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    for columns in range(len(labels), 0, -1) if len(labels) > 1 else ():  # as many as there is room for
        legend = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
