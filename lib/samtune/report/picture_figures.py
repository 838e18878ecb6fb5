"""Figures of pictures: what methods predict on an image, what SPT relates on it, many samples at once."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from samtune.data.sample import Sample
from samtune.prompts import Prompts
from samtune.report.figures import INK, SOFT, STYLE, Picture, set_title
from samtune.report.labels import OTHERS, label, metric_label

BLACK, SKY, GREEN, YELLOW, RED = "#000000", "#56B4E9", "#009E73", "#F0E442", "#D55E00"  # Okabe and Ito's
HIT, FALSE_ALARM, MISSED = GREEN, RED, SKY
LONGEST = 200  # pixels of the longer side of a picture inside a figure
THIN = 6  # of these pixels: an object that is nowhere wider is shown with its surroundings alone
LEAST = 24  # pixels of the image: what is around it at least
Window = tuple[slice, slice]  # rows and columns of a picture


@dataclass(frozen=True)
class Example:
    """One picture of a qualitative figure.

    `image` uint8 `(H, W, 3)`; `truth` bool `(H, W)`; `predictions` bool `(H, W)` and `scores` by column (a method, or
    "SPT draft"); `prompt` what every method was given, in pixels of the image; `note` "worst", "median", "best";
    `own_prompts` what a column's mask became for the method's next pass.
    """

    image: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    scores: Mapping[str, float] = field(default_factory=dict)
    prompt: Prompts | None = None
    note: str = ""
    own_prompts: Mapping[str, Prompts] = field(default_factory=dict)


@dataclass(frozen=True)
class RelationExample:
    """What SPT's relation links to one token: `image` uint8 `(H, W, 3)`, `truth` bool `(H, W)`, the token's `place`
    (x, y) in the image, and by title a row of the relation `(h, w)`."""

    image: np.ndarray
    truth: np.ndarray
    place: tuple[int, int]
    maps: Mapping[str, np.ndarray]


def pick_cases(scores: pd.Series) -> dict[str, str]:
    """Which images to show, by rule and not by hand: ids of the "worst", "median" and "best" score (ties: first id)."""
    ranked = scores.dropna().sort_index().sort_values(kind="stable")
    return {"worst": ranked.index[0], "median": ranked.index[(len(ranked) - 1) // 2], "best": ranked.index[-1]}


@matplotlib.rc_context(STYLE)
def qualitative_grid(examples: Sequence[Example], title: str, metric: str = "iou") -> Figure:
    """A row a picture: image with prompt, truth, then each method with hits, false alarms and misses in colour.

    Where a prompted object is thin, a row shows its surroundings, and at its end the whole picture, small, with the
    last method's mask. Without a prompt false alarms may be anywhere: whole pictures. `metric`: what `Example.scores`
    are.
    """
    columns = list(dict.fromkeys(name for example in examples for name in example.predictions))
    windows = [surroundings(example.truth) if _prompted(example) else None for example in examples]
    images = [
        example.image if window is None else example.image[window]
        for example, window in zip(examples, windows, strict=True)
    ]
    small = any(window is not None for window in windows)
    figure, axes = picture_grid(title, len(examples), 2 + len(columns), images, (0.6, 0.85), small)
    measure, said = metric_label(metric), []
    for row, example, window in zip(axes, examples, windows, strict=True):
        show_picture(row[0], example.image, window)
        if example.prompt is not None:
            draw_prompt(row[0], example.prompt)
        show_picture(row[1], example.image, window)
        fill(row[1], example.truth, HIT, window)
        row[0].set_ylabel(example.note, fontsize=9.5, color=INK, rotation=0, ha="right", va="center", labelpad=6)
        for axis, name in zip(row[2:], columns, strict=False):
            if name not in example.predictions:
                axis.set_axis_off()
                continue
            _mistakes(axis, example, name, window)
            if name in example.own_prompts:
                draw_prompt(axis, example.own_prompts[name])
            if name in example.scores:
                axis.set_xlabel(f"{measure} {example.scores[name]:.2f}", fontsize=8.5, labelpad=2)
        if window is not None:
            _mistakes(row[-1], example, columns[-1], None)
            rows, across = window
            corner, size = (across.start, rows.start), (across.stop - across.start, rows.stop - rows.start)
            row[-1].add_patch(Rectangle(corner, *size, fill=False, edgecolor=YELLOW, linewidth=1.2))
            row[-1].set_xlabel(f"{label(columns[-1])},\nwhole picture", fontsize=7.5, labelpad=2)
        elif small:
            row[-1].set_axis_off()
        scores = ", ".join(f"{label(name)} {score:.2f}" for name, score in example.scores.items())
        said.append(f"{example.note}: {scores}")
    names = ["image, prompt" if any(map(_prompted, examples)) else "image", "truth", *map(label, columns)]
    for axis, name in zip(axes[0], names, strict=False):
        axis.set_title(textwrap.fill(name, 18), fontsize=9, loc="center")
    figure.alt = f"{title}. {measure} of the picture: {'; '.join(said)}."
    handles = [Patch(color=colour, label=text, alpha=0.8) for colour, text in
               ((HIT, "hit"), (FALSE_ALARM, "false alarm"), (MISSED, "missed"))]  # fmt: skip
    frames = [(INK, "box that the method gives itself")] if any(one.own_prompts for one in examples) else []
    frames += [(YELLOW, "part shown at the left")] if small else []
    handles += [Patch(fill=False, edgecolor=colour, label=text) for colour, text in frames]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _prompted(example: Example) -> bool:
    """Was every method given a box or points?"""
    given = example.prompt
    return given is not None and (given.boxes is not None or given.points is not None)


@matplotlib.rc_context(STYLE)
def relation_grid(examples: Sequence[RelationExample], title: str) -> Figure:
    """A row a picture: the token on its object (cross), then how much weight each place gets, as multiples of uniform
    averaging; each map on its own scale, which stands below it."""
    columns = list(examples[0].maps)
    images = [example.image for example in examples]
    figure, axes = picture_grid(title, len(examples), 1 + len(columns), images, margins=(0.2, 0.7))
    for row, example in zip(axes, examples, strict=True):
        height, width = example.truth.shape
        show_picture(row[0], example.image)
        fill(row[0], example.truth, HIT)
        for axis, name in zip(row[1:], columns, strict=True):
            weights = example.maps[name] * example.maps[name].size
            axis.imshow(weights, cmap="viridis", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            least, most = weights[weights > 0].min(), weights.max()
            axis.set_xlabel(f"{least:.2g} to {most:.{0 if most >= 10 else 1}f} times uniform", fontsize=7.5)
        for axis in row:
            axis.scatter(*example.place, s=40, marker="x", color=RED, linewidth=1.6, zorder=3)
    for axis, name in zip(axes[0], ["token on the defect", *columns], strict=True):
        axis.set_title(textwrap.fill(name, 22), fontsize=8.5, loc="center")
    return figure


@matplotlib.rc_context(STYLE)
def contact_sheet(
    samples: Sequence[Sample], title: str, prompts: Sequence[Prompts | None] = (), columns: int = 6
) -> Figure:
    """Many samples at once: picture, every object outlined and filled in its own colour, prompts drawn in."""
    rows = -(-len(samples) // columns)
    figure, axes = picture_grid(title, rows, columns, [sample.image for sample in samples])
    for axis in axes.flat[len(samples) :]:
        axis.set_axis_off()
    for number, (axis, sample) in enumerate(zip(axes.flat, samples, strict=False)):
        show_picture(axis, sample.image)
        for mask, colour in zip(sample.masks, OTHERS * (len(sample.masks) // len(OTHERS) + 1), strict=False):
            fill(axis, mask, colour)
        if number < len(prompts) and prompts[number] is not None:
            draw_prompt(axis, prompts[number])
        name = sample.id if len(sample.id) <= 24 else f"…{sample.id[-23:]}"
        axis.set_xlabel(name, fontsize=7, color=SOFT, labelpad=2)
    return figure


def surroundings(truth: np.ndarray) -> Window | None:
    """Where a thin object is, with a third of its length around it, or so much of it that it is drawn `THIN` pixels
    wide; None: it is not thin.

    Args:
        truth: bool `(H, W)`.
    """
    depth = cv2.distanceTransform(np.pad(truth, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    most = int(2 * depth.max() * LONGEST / THIN)  # pixels of a side at which the object is drawn so wide
    if not 0 < most < max(truth.shape):
        return None
    ends = [(places.min(), places.max() + 1) for places in np.nonzero(truth)]
    margin = max(LEAST, max(last - first for first, last in ends) // 3)
    sides = []
    for (first, last), thickest, side in zip(
        ends, np.unravel_index(depth.argmax(), depth.shape), truth.shape, strict=True
    ):
        first, last = max(0, first - margin), min(side, last + margin)
        if last - first > most:
            first = int(np.clip(thickest - most // 2, first, last - most))
        sides.append(slice(int(first), int(min(last, first + most))))
    return sides[0], sides[1]


def draw_prompt(axis: Axes, prompts: Prompts) -> None:
    """Boxes and clicks (positive: filled circle, negative: cross) in pixels of the picture."""
    for x0, y0, x1, y1 in [] if prompts.boxes is None else prompts.boxes.tolist():
        for colour, width in (("white", 2.6), (INK, 1.1)):  # seen on bright and on dark pictures
            axis.add_patch(
                Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0 + 1, y1 - y0 + 1, fill=False, edgecolor=colour, linewidth=width)
            )
    if prompts.points is not None:
        points, labels = prompts.points.reshape(-1, 2).numpy(), prompts.labels.reshape(-1).numpy()
        for value, marker, colour in ((1, "o", YELLOW), (0, "X", RED)):
            chosen = points[labels == value]
            axis.scatter(
                chosen[:, 0], chosen[:, 1], s=26, marker=marker, color=colour, edgecolor=BLACK, linewidth=0.8, zorder=3
            )


def picture_grid(
    title: str,
    rows: int,
    columns: int,
    images: Sequence[np.ndarray],
    margins: tuple[float, float] = (0.1, 0.35),
    small: bool = False,
) -> tuple[Picture, np.ndarray]:
    """A figure of pictures without axes, a row of the shape of its picture, or all of the median shape where there is
    more than one picture a row; `margins` in inches, across and down, for what stands around them; `small`: one more,
    narrow column."""
    aspects = [image.shape[0] / image.shape[1] for image in images] or [1.0]
    if len(aspects) != rows:
        aspects = [float(np.median(aspects))] * rows
    width = 1.8 if columns > 4 else 2.2
    heights = [width * float(np.clip(aspect, 0.35, 1.6)) + 0.2 for aspect in aspects]
    widths = [1.0] * columns + [0.6] * small
    figure = Picture(figsize=(width * sum(widths) + margins[0], sum(heights) + margins[1]), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    axes = figure.subplots(rows, len(widths), squeeze=False, height_ratios=heights, width_ratios=widths)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    set_title(figure, title)
    return figure, axes


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """A picture or mask of no more than `LONGEST` pixels a side: figures are for reading, not for archives."""
    factor = LONGEST / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _mistakes(axis: Axes, example: Example, name: str, window: Window | None) -> None:
    """A picture with hits, false alarms and misses of the prediction `name`, where there is one."""
    show_picture(axis, example.image, window)
    mask, truth = example.predictions.get(name, example.truth), example.truth
    cuts = [_cut(part.astype(np.float32), window) for part in (mask & truth, mask & ~truth, ~mask & truth)]
    shares, extent = np.stack([share for share, _ in cuts]), cuts[0][1]
    # All three as one mask, each pixel in the colour of its largest part: a false alarm one pixel of the image wide
    # around a thick object would by itself be shown as wide as a pixel of the figure. No outlines: they would widen it.
    shown, largest = _cover(shares.sum(0)) > 0.5, shares.argmax(0)
    for number, colour in enumerate((HIT, FALSE_ALARM, MISSED)):
        if shares[number].any():
            _lay(axis, shown & (largest == number), colour, 0.7, extent)


def _cut(picture: np.ndarray, window: Window | None) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The part of a picture or mask in `window` (None: all), shrunk, and its extent in pixels of the whole one."""
    rows, columns = window or (slice(0, picture.shape[0]), slice(0, picture.shape[1]))
    extent = (columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
    return _shrunk(picture[rows, columns]), extent


def show_picture(axis: Axes, image: np.ndarray, window: Window | None = None) -> None:
    """The part of `image`, uint8 `(H, W, 3)`, in `window` (None: all of it); axes in the whole image's pixels."""
    part, extent = _cut(image, window)
    axis.imshow(part, extent=extent, interpolation="auto")
    axis.set(xlim=extent[:2], ylim=extent[2:], autoscale_on=False)  # prompts may go beyond


def fill(axis: Axes, mask: np.ndarray, colour: str, window: Window | None = None) -> None:
    """`mask`, bool `(H, W)`, over a picture: translucent, with its outline."""
    if not mask.any():
        return
    small, extent = _cut(mask.astype(np.float32), window)
    cover = _cover(small)
    _lay(axis, cover > 0.5, colour, 0.5, extent)
    left, right, bottom, top = extent
    padded = np.pad(cover, 1)  # so that an outline closes at the picture's edge
    across = left + (np.arange(-1, small.shape[1] + 1) + 0.5) * (right - left) / small.shape[1]
    down = top + (np.arange(-1, small.shape[0] + 1) + 0.5) * (bottom - top) / small.shape[0]
    axis.contour(across, down, padded, levels=[0.5], colors=[colour], linewidths=0.9)


def _cover(small: np.ndarray) -> np.ndarray:
    """How much of each pixel a shrunk mask `(h, w)` covers, as a part of the most around it; above 0.5 is drawn.

    What is thinner than a pixel covers less than half of any, and must not vanish. In and at a thick object the most
    is 1, so that it keeps its area.
    """
    most = cv2.dilate(small, np.ones((3, 3), np.uint8))
    return np.divide(small, most, out=np.zeros_like(small), where=most > 0)


def _lay(axis: Axes, shown: np.ndarray, colour: str, alpha: float, extent: tuple[float, float, float, float]) -> None:
    """The pixels `shown`, bool `(h, w)`, in a translucent colour over `extent`."""
    layer = np.zeros((*shown.shape, 4))
    layer[:] = (*to_rgb(colour), 0.0)
    layer[..., 3] = alpha * shown
    axis.imshow(layer, extent=extent, interpolation="nearest")
