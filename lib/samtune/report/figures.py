"""Figures: pure functions of records and tables that give matplotlib figures; `save` writes them.

Every figure has a title that says what to look at. Colours belong to methods (`Method.colour`) and stay the same
everywhere; most are Okabe and Ito's, which colour-blind readers can tell apart.
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
from samtune.common.errors import counted
from samtune.data import registry
from samtune.report.labels import PROMPTS, colours, in_order, label, metric_label
from samtune.report.statistics import paired_bootstrap
from samtune.study.records import Record

INK, SOFT, LINE = "#1f2430", "#667085", "#d5d9e0"
STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"], "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": LINE,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eceef2",
    "grid.linewidth": 0.8, "xtick.color": SOFT, "ytick.color": SOFT, "xtick.major.size": 0, "ytick.major.size": 0,
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8, "figure.facecolor": "white",
    "svg.hashsalt": "samtune", "svg.fonttype": "none",  # text stays text: a third of the size, and can be searched
}  # fmt: skip
DPI = 144
WEBP = {"method": 6, "use_sharp_yuv": True}  # thin outlines keep their colour
QUALITIES = (92, 84, 76, 68, 60)  # of WebP: the first that keeps a figure below `LARGEST`, else the last
LARGEST = 200_000  # bytes of a figure: a phone loads many
MOST_POINTS = 120  # of a drawn curve: more are not seen at the width of a panel
DASHES = ("-", "--", "-.", ":")  # of learning curves, one after the other: they lie close together
PRIVATE = "private"  # the folder of figures that show pictures which may not be passed on


@matplotlib.rc_context(STYLE)
def learning_curves(records: Iterable[Record], title: str, y: str | Sequence[str] = "loss") -> Figure:
    """A column of trainings' curves, smoothed: the mean over seeds in bold, each seed a thin line; one panel a set.

    With several columns ("iou_draft", "iou_final") each is a line of its own; what lacks one has none.
    """
    columns = [y] if isinstance(y, str) else list(y)
    curves: dict[str, dict[str, list[pd.Series]]] = {}
    runs: dict[str, set[tuple[int, str]]] = {}
    for record in records:
        frame = pd.DataFrame(list(record.curve))
        for column in columns:
            if {"images", column} <= set(frame):
                values = frame.dropna(subset=[column]).set_index("images")[column].astype(float)
                window = max(1, min(len(values) // 15, 75))  # wider, a steep start would reach far into training
                values = values.rolling(window, min_periods=1).mean()
                name = record.method if isinstance(y, str) else f"{record.method} {column.removeprefix('iou_')}"
                place = "+".join(record.train_datasets)
                curves.setdefault(place, {}).setdefault(name, []).append(values)
                runs.setdefault(place, set()).add((record.seed, record.cell["prompt"]))
    alone = len(curves) <= 1
    figure, axes = panels(title, 1 if alone else len(curves), *((7.2, 4.4) if alone else (4.2, 3.1)))
    names = in_order(dict.fromkeys(name for lines in curves.values() for name in lines))
    for axis, (dataset, lines) in zip(axes, sorted(curves.items()), strict=False):
        for name in (name for name in names if name in lines):
            colour, seeds = colours(names)[name], lines[name]
            if len(seeds) > 1:
                for seed in map(_thinned, seeds):
                    axis.plot(seed.index, seed.to_numpy(), color=colour, linewidth=0.7, alpha=0.45)
            mean = _thinned(pd.concat(seeds, axis=1).mean(axis=1).sort_index())
            dashes = DASHES[names.index(name) % len(DASHES)]
            axis.plot(mean.index, mean.to_numpy(), color=colour, linestyle=dashes, label=label(name))
        axis.set_title(f"{dataset}\n{_runs(runs[dataset])}", fontsize=8.5)
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
    measure = metric_label(metric)
    axis.set_xlabel(f"{measure}, {label(names[0])}")
    axis.set_ylabel(f"{measure}, {label(names[1])}")
    if len(both):
        mean, bottom, top = paired_bootstrap((both[:, 1] - both[:, 0])[None], groups)
        share = np.mean(both[:, 1] > both[:, 0])
        text = f"{label(names[1])}\nhigher on {share:.0%} of {len(both)} images\n"
        text += f"mean difference {mean:+.3f} [{bottom:+.3f}, {top:+.3f}]"
        axis.set_title(text, fontweight="normal", fontsize=8.5, color=SOFT)
    return figure


@matplotlib.rc_context(STYLE)
def robustness_curve(frame: pd.DataFrame, title: str, x_label: str, metric: str = "iou", by: str = "method") -> Figure:
    """How a metric falls, or holds, along `x`: columns x, `by`, mean and, where known, low and high (a band).

    Bands would overlap: with them, each name has a panel of its own, the others' lines in grey. The title ends in the
    data set, prompt and seeds of the columns `dataset`, `prompt` and `seeds`, where they are there and the same.
    """
    names = in_order(frame[by].unique())
    bands = {"low", "high"} <= set(frame) and frame["low"].notna().any()
    shown = [[name] for name in names] if bands else [names]
    figure, axes = panels(
        f"{title}{_measured_on(frame)}", len(shown), width=5.4 if len(shown) == 1 else 3.2, height=3.3
    )
    for axis, bold in zip(axes, shown, strict=True):
        for name in names:
            rows = frame[frame[by] == name].sort_values("x")
            if name not in bold:
                axis.plot(rows["x"], rows["mean"], color=SOFT, linewidth=0.7, zorder=1)
                continue
            colour = colours(names)[name]
            axis.plot(rows["x"], rows["mean"], color=colour, marker="o", markersize=4, label=label(name))
            if bands:
                axis.fill_between(rows["x"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
        axis.sharey(axes[0])
        if frame["x"].nunique() <= 12:  # what was measured, in place of round numbers between
            axis.set_xticks(sorted(frame["x"].unique()))
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(x_label)
        if bands:
            axis.set_title(label(bold[0]))
    axes[0].set_ylabel(metric_label(metric))
    if bands:
        words = "band: 95% interval" + ("; grey: the other panels' lines" if len(shown) > 1 else "")
        figure.supxlabel(words, x=0.012, ha="left", fontsize=7.5, color=SOFT)
    else:
        _legend(figure, axes[0])
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
    (`Axes.images`) becomes `<name>.webp`, of the first of `QUALITIES` that keeps it below 200 kB; as PNG it would be
    five times as large, as SVG more. Both carry the figure's title and `Picture.alt`, for `title_alt_and_width`.
    """
    title = figure.get_suptitle().replace("\n", " ") or name
    alt = getattr(figure, "alt", "")
    shows_images = any(axis.images for axis in figure.axes)
    path = folder / f"{name}{'.webp' if shows_images else '.svg'}"
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        if shows_images:
            exif = Image.Exif()
            exif[ExifTags.Base.ImageDescription] = f"{title}\n{alt}".strip().encode()
            figure.savefig(buffer, format="png", dpi=DPI)
            picture = Image.open(buffer).convert("RGB")
            for quality in QUALITIES:
                buffer = io.BytesIO()
                picture.save(buffer, format="webp", quality=quality, exif=exif, **WEBP)
                if buffer.tell() <= LARGEST:
                    break
            content = buffer.getvalue()
        else:
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
            content = _lean(buffer.getvalue().decode(), alt).encode()
    write_atomically(path, content)
    figure.file = path.absolute()
    return path


def _lean(svg: str, alt: str) -> str:
    """An SVG of matplotlib's with two decimals (of 1/72 inch) in its paths, and with `alt` as its description."""
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return svg.replace("</title>", f"</title>\n <desc>{html.escape(alt)}</desc>", 1) if alt else svg


def title_alt_and_width(path: Path) -> tuple[str, str, float]:
    """Of a figure that `save` wrote: its title (of any other: its file's name), what it shows in words (else its
    title), and its width in inches (0: not known)."""
    if path.suffix == ".webp":
        with Image.open(path) as image:
            words = image.getexif().get(ExifTags.Base.ImageDescription, "").encode("latin-1").decode(errors="replace")
            title, _, alt = words.partition("\n")
            width = image.width / DPI
    else:
        head = path.read_text(encoding="utf-8", errors="replace")[:8000]
        title, alt = (
            html.unescape(found[1]) if (found := re.search(f"<{tag}>(.*?)</{tag}>", head, re.DOTALL)) else ""
            for tag in ("title", "desc")
        )
        points = re.search(r'<svg[^>]* width="([\d.]+)pt"', head)
        width = float(points[1]) / 72 if points else 0.0
    title = title or path.stem.replace("_", " ")
    return title, alt or title, width


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
    lines = textwrap.wrap(title, max(30, int(figure.get_figwidth() * 10.5)))
    figure.suptitle("\n".join(lines), x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)


def _measured_on(frame: pd.DataFrame) -> str:
    """What all rows of a table share of it, to end a title: ": magnetic-tile, box prompt, 3 seeds"."""
    shared = {name: frame[name].iloc[0] for name in ("dataset", "prompt", "seeds") if name in frame}
    shared = {name: value for name, value in shared.items() if frame[name].nunique() == 1}
    if "prompt" in shared:
        words = PROMPTS.get(shared["prompt"], shared["prompt"])
        shared["prompt"] = f"{words} prompt" if shared["prompt"] == "box" else words
    if "seeds" in shared:
        shared["seeds"] = counted(int(shared["seeds"]), "seed")
    return ": " + ", ".join(shared.values()) if shared else ""


def _thinned(curve: pd.Series) -> pd.Series:
    """`MOST_POINTS` of a curve at most, with its first and last."""
    return curve.iloc[np.linspace(0, len(curve) - 1, min(len(curve), MOST_POINTS)).round().astype(int)]


def _runs(runs: set[tuple[int, str]]) -> str:
    """Seeds and prompts of trainings, in words."""
    seeds = len({seed for seed, _ in runs})
    prompts = dict.fromkeys(part for _, prompt in sorted(runs) for part in prompt.split(","))
    return f"{', '.join(PROMPTS.get(one, one) for one in prompts)}; {counted(seeds, 'seed')}"


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    for columns in range(len(labels), 0, -1) if len(labels) > 1 else ():  # as many as there is room for
        legend = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
        extent = legend.get_window_extent()
        if columns == 1 or extent.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)  # or the panels would shrink
            return
        legend.remove()
