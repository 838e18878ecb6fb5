"""Forest plots: the paired differences that decide, one figure a paper and one for tuned against untuned."""

import textwrap
from collections.abc import Iterable, Mapping

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from samtune.common.errors import counted
from samtune.methods import METHODS
from samtune.report.contrasts import Side, above, contrasts, in_points, interval
from samtune.report.figures import INK, SOFT, STYLE, panels
from samtune.report.labels import label, metric_label
from samtune.report.readable_tables import MEAN
from samtune.report.sides import (
    FIRST_VERSION,
    SAMED_DICE,
    SAMED_TWICE,
    asam_main,
    asam_part,
    sam_sp_main,
    sam_sp_part,
    spt_main,
    spt_part,
)
from samtune.report.statistics import FEWEST_UNITS
from samtune.study import asam, sam_sp
from samtune.study.records import Record

POINT = 0.01  # a difference that is hardly seen in use
NARROW = 0.03  # half of the axis of small differences, where they fit it


# By figure: its title, then by comparison: measure, terms, what is above, and whether the set was not trained on.
FORESTS: dict[str, tuple[str, list[tuple]]] = {
    "spt_forest": (
        "SPT minus LoRA, equal training",
        [
            ("box prompt", "iou", above(spt_main("spt"), spt_main("lora")), False),
            ("ten clicks", "iou", above(spt_main("spt", "point10"), spt_main("lora", "point10")), False),
        ],
    ),
    "sam_sp_forest": (
        "SAM-SP's second pass, no prompt",
        [
            ("minus LoRA taught by the same Dice loss", "dice", above(sam_sp_main(), SAMED_DICE), False),
            (
                "minus LoRA taught by cross-entropy and Dice", "dice",
                above(sam_sp_main(), sam_sp_main("lora_samed")), False,
            ),
            (
                "minus its own first pass", "dice",
                above(sam_sp_main(output="pass1"), sam_sp_main(output="pass0")), False,
            ),
        ],
    ),
    "spt_parts_forest": (
        "SPT minus SPT without a part",
        [
            ("without relation-aware adapter, box prompt", "iou", above(spt_part(), spt_part(relation=False)), False),
            ("without draft, box prompt", "iou", above(spt_part(), spt_part(draft=False)), False),
            ("without both (LoRA), box prompt", "iou", above(spt_part(), spt_part("lora")), False),
        ],
    ),
    "sam_sp_controls_forest": (
        "SAM-SP minus its controls, no prompt",
        [
            ("minus LoRA taught by the same Dice loss", "dice", above(sam_sp_part(), SAMED_DICE), False),
            ("minus the same LoRA, tested with two passes", "dice", above(sam_sp_part(), SAMED_TWICE), False),
            *(
                (f"{words} {name}", "dice", above(sam_sp_part(**first), sam_sp_part(**first | changes)), False)
                for words, first in (("minus", {}), ("truth on both passes, minus", FIRST_VERSION))
                for name, changes in sam_sp.CONTROLS.items()
            ),
            *(
                (f"{words} its second pass in the true box", "dice",
                 above(sam_sp_part(**first), sam_sp_part(prompt="box", **first, test_self_prompt="given")), False)
                for words, first in (("minus", {}), ("truth on both passes, minus", FIRST_VERSION))
            ),
        ],
    ),
    "asam_tokens_forest": (
        "Both kinds of tokens tuned, minus other parameters tuned",
        [
            (f"{METHODS[method].title} minus {tuned}, sets not tuned on, box prompt", "iou",
             above(asam_part(method), asam_part(method, **changes)), True)
            for method in ("asam", "clean_tuning")
            for tuned, changes in asam.GROUPS["tokens"].items()
        ],
    ),
    "nano_forest": (
        "The nano SAM before tuning, minus baselines without a network",
        [
            (f"minus {label(rival)}, box prompt", "iou",
             above(Side("nano_sam", "zero_shot", "box"), Side("nano_sam", rival, "box")), False)
            for rival in ("ellipse", "grabcut")
        ],
    ),
    "asam_forest": (
        "ASAM on sets not tuned on, box prompt",
        [
            ("minus SAM as it is", "iou", above(asam_main("asam"), asam_main("zero_shot")), True),
            ("minus tuning on clean pictures", "iou", above(asam_main("asam"), asam_main("clean_tuning")), True),
        ],
    ),
    "asam_gains_forest": (
        "The five tokens tuned, minus SAM as it is",
        [
            (f"{METHODS[method].title}, sets not tuned on, box prompt", "iou",
             above(Side("asam_main", method, "box"), Side("asam_main", "zero_shot", "box")), True)
            for method in ("asam", *asam.ON_CLEAN, *(name for name in asam.ON_GENERATED if name != "asam"))
        ],
    ),
    "tuning_forest": (
        "Tuned minus not tuned",
        [
            ("LoRA, box prompt", "iou", above(spt_main("lora"), spt_main("zero_shot")), False),
            ("LoRA, ten clicks", "iou", above(spt_main("lora", "point10"), spt_main("zero_shot", "point10")), False),
            ("SPT, box prompt", "iou", above(spt_main("spt"), spt_main("zero_shot")), False),
            ("SAM-SP, no prompt", "dice", above(sam_sp_main(), sam_sp_main("zero_shot")), False),
            (
                "SAM-SP, truth on both passes, no prompt", "dice",
                above(sam_sp_main(**FIRST_VERSION), sam_sp_main("zero_shot")), False,
            ),
            ("ASAM, sets not tuned on, box prompt", "iou", above(asam_main("asam"), asam_main("zero_shot")), True),
        ],
    ),
}  # fmt: skip


def forest_rows(records: Iterable[Record], backbone: str, name: str) -> pd.DataFrame:
    """What the figure `name` shows: comparison, method, metric, dataset (and the mean of several), effect, low, high,
    seeds, images, units (independent images or groups); no row for what was not run."""
    records, rows = list(records), []
    for comparison, metric, terms, transfer in FORESTS[name][1]:
        found = contrasts(terms, records, metric, backbone, transfer)
        places = [(tested, [contrast]) for (_, tested), contrast in found.items()]
        if len(places) > 1:
            places.append((MEAN, list(found.values())))
        for dataset, ones in places:
            effect, low, high = interval(ones)
            seeds = min(one.effects.shape[0] for one in ones)
            images, units = (
                sum(counts) for counts in zip(*((len(one.groups), one.units) for one in ones), strict=True)
            )
            method = terms[0][1].method
            rows.append((comparison, method, metric, dataset, effect, low, high, seeds, images, units))
    columns = ["comparison", "method", "metric", "dataset", "effect", "low", "high", "seeds", "images", "units"]
    return pd.DataFrame(rows, columns=columns)


@matplotlib.rc_context(STYLE)
def forest(rows: pd.DataFrame, title: str) -> Figure:
    """`forest_rows` as points with their 95% intervals, a panel a comparison, all on one axis around zero.

    A grey band marks differences within one point; the colour is the method's. The mean of sets is a diamond; hollow is
    what rests on fewer than `FEWEST_UNITS` independent images or groups, whose interval means little. The axis is
    ±0.03 wide where all effects fit it, else as wide as they ask for; an interval may leave it (arrow). A key below
    says so.
    """
    shown = [one for _, one in rows.groupby("comparison", sort=False)]
    figure, axes = panels(title, max(len(shown), 1), width=6.4, height=1.0, columns=1)
    lengths = [len(one) + 1.5 for one in shown] or [1.0]
    figure.set_figheight(0.3 * sum(lengths) + 1.05)
    axes[0].get_gridspec().set_height_ratios(lengths)
    furthest = max(1.15 * rows["effect"].abs().max(), NARROW) if len(rows) else NARROW
    most = max(rows["high"].max(), 0) * 1.08 if furthest > 5 * NARROW else furthest
    least = min(rows["low"].min(), 0) * 1.08 - POINT if furthest > 5 * NARROW else -furthest
    for number, (axis, one) in enumerate(zip(axes, shown, strict=False)):
        axis.axvspan(-POINT, POINT, color="#f0f1f4", linewidth=0)
        axis.axvline(0, color=SOFT, linewidth=1)
        for place, row in enumerate(one.to_dict("records")):
            colour = METHODS[row["method"]].colour if row["method"] in METHODS else INK
            axis.plot([max(row["low"], least), min(row["high"], most)], [place, place], color=colour, linewidth=2)
            for end, beyond, marker in ((least, row["low"] < least, "<"), (most, row["high"] > most, ">")):
                if beyond:
                    axis.plot(end, place, marker=marker, color=colour, markersize=6, clip_on=False)
            few = row["units"] < FEWEST_UNITS
            shape = {"marker": "D" if row["dataset"] == MEAN else "o", "markersize": 6.5}
            axis.plot(row["effect"], place, color=colour, markerfacecolor="white" if few else colour, **shape)
            text = f"{in_points(row['effect'], row['low'], row['high'])}  n = {row['images']}"
            style = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8, "color": INK}
            axis.annotate(text, (1.02, place), annotation_clip=False, **style)
        axis.set(xlim=(least, most), ylim=(len(one) - 0.4, -0.6))
        axis.set_yticks(range(len(one)), one["dataset"], color=INK)
        axis.tick_params(axis="y", pad=7)  # or an arrow would run into the name
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}" if abs(value) > 1e-9 else "0")
        seeds = sorted(set(one["seeds"]))
        seeds = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        axis.set_title(f"{one['comparison'].iloc[0]}, {seeds}")
        metric = one["metric"].iloc[0]
        if one is shown[-1] or metric != shown[number + 1]["metric"].iloc[0]:
            axis.set_xlabel(f"points of {metric_label(metric)}")
    key = {
        "line: 95% interval; grey band: within one point": len(rows),
        "diamond: mean of sets": (rows["dataset"] == MEAN).any(),
        f"hollow: fewer than {FEWEST_UNITS} independent pictures": (rows["units"] < FEWEST_UNITS).any(),
        "arrow: the interval goes on": (rows["low"] < least).any() or (rows["high"] > most).any(),
    }
    words = textwrap.wrap("; ".join(name for name, drawn in key.items() if drawn), 90)
    figure.supxlabel("\n".join(words), x=0.012, ha="left", fontsize=7.5, color=SOFT)
    if not shown:
        axes[0].set_axis_off()
        axes[0].text(0, 0.5, "not run", color=SOFT)
    return figure


def paper_forest(records: Iterable[Record], backbone: str, name: str) -> Figure:
    """The forest plot `name`, one of `FORESTS`, of these records; its alt text is in `Picture.alt`."""
    rows = forest_rows(records, backbone, name)
    title = FORESTS[name][0]
    figure = forest(rows, title)
    figure.alt = forest_words(rows, title)
    return figure


def forest_words(rows: pd.DataFrame, title: str) -> str:
    """What a forest plot shows, for who cannot see it: each comparison's mean of sets, or only set, in points."""
    said = []
    for comparison, one in rows.groupby("comparison", sort=False):
        last: Mapping = one.iloc[-1]
        sets = f"mean of {len(one) - 1} sets" if last["dataset"] == MEAN else last["dataset"]
        effect, bounds = in_points(last["effect"], last["low"], last["high"]).split(" ", 1)
        said.append(f"{comparison}, {sets}: {effect} points of {metric_label(last['metric'])} {bounds}")
    return f"{title}. " + ("; ".join(said) or "Not run") + "."
