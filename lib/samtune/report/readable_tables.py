"""Tables for people: one row a data set and method, "mean ± std", and the paper's number beside ours, never mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from samtune.common.atomic import write_atomically
from samtune.methods import METHODS
from samtune.report.labels import METRIC_LABELS, in_order, label, metric_label, prompt_label, rate_label, row_label
from samtune.report.paper_numbers import PaperNumbers, load_paper_numbers, paper_of, reported_in
from samtune.report.tables import LOOK_AT, MEAN, METRIC_ORDER, NUMBERS, PROMPT_ORDER, TABLES
from samtune.study import sam_sp
from samtune.study.bench import EVALUATE, PHASES
from samtune.study.cells import NO_BACKBONE
from samtune.study.plan import SCORE_TIE
from samtune.study.sam_sp import ON_BOTH

NOT_RUN, NOT_AVAILABLE = "not run", "not available"
# Rows that a table shows first, in a part of their own.
FIRST = {
    "sam_sp_ablation": (sam_sp.DICE, sam_sp.FIRST_ALONE, *sam_sp.CONTROLS, *sam_sp.BOUNDS),
}
TOGETHER = "one model for all sets"
UNSEEN = "tuned on"  # before the name of sets: on those, and not on what is measured
WIDEST = 8  # columns of a table for people
DASH = "–"  # of what could not be run
SPREAD = "Mean ± standard deviation over seeds; 95% intervals are in"
WITHOUT_SPREAD = ("speed", "learning_rates")  # tables of numbers measured once
COARSE = 0.8  # IoU of the truth with itself, drawn on SAM's low-resolution grid


@dataclass(frozen=True)
class Pivot:
    """A table as text: `header`, `rows` of as many cells, `best` the (row, column) of the best value of each data set,
    `labels` the number of leading columns that name the row, `caption` what all rows share, `title` what is measured;
    `folded`: to be shown on demand only."""

    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]
    labels: int
    caption: str
    title: str = ""
    folded: bool = False


def pivots(name: str, table: pd.DataFrame, paper: PaperNumbers | None = None) -> list[Pivot]:
    """Several tables of at most `WIDEST` columns, each of one prompt, metric and backbone: methods down, sets across.

    First the methods as they are, then, folded, drafts, controls, bounds and models of several sets. What matters most
    comes first and open: the prompt that most methods were given, and the paper's own metric. Bold: the column `best`.
    """
    if table.empty:
        return []
    if name == "speed":
        return _speed(table)
    if name == "learning_rates":
        return _learning_rates(table)
    table = _without_last_pass(table)
    methods = table.groupby("prompt")["method"].nunique()
    first = "dice" if name.startswith("sam_sp") else "iou_drop" if name == "asam_inversion" else "iou"
    measures = sorted(
        set(zip(table["prompt"], table["metric"], strict=True)),
        key=lambda one: (one[1] != first, -methods[one[0]], _measure_rank(one)),
    )
    several = len(_backbones(table)) > 1
    parts: list[Pivot] = []
    for prompt, metric in measures:
        measured = table[(table["prompt"] == prompt) & (table["metric"] == metric)]
        for backbone in _backbones(measured):
            rows = measured[measured["backbone"].isin([backbone, NO_BACKBONE])]
            reported = reported_in(name, paper)
            reported = reported[(reported["prompt"] == prompt) & (reported["metric"] == metric)]
            reported = _of_backbone(reported, backbone, or_else=not several)
            title = f"{metric_label(metric)}, {prompt_label(prompt)}"
            title += f", {backbone}" if several and backbone != NO_BACKBONE else ""
            if name.endswith("_choices"):
                open_rows = ~rows["variant"].str.startswith(ON_BOTH).to_numpy()
            else:
                open_rows = _as_it_is(rows, (table["variant"] == "").any())
            first_rows = open_rows & rows["variant"].isin(FIRST.get(name, ())).to_numpy()
            if first_rows.any():
                parts += _methods_by_sets(f"{title}: controls", rows[first_rows], reported[:0])
            if (others := open_rows & ~first_rows).any():
                words = ": one change at a time" if first_rows.any() else ""
                parts += _methods_by_sets(f"{title}{words}", rows[others], reported)
            if not open_rows.all():
                parts += _methods_by_sets(f"{title}: further rows", rows[~open_rows], reported[:0])
    return [replace(part, folded=place > 0) for place, part in enumerate(parts)]


def _backbones(table: pd.DataFrame) -> list[str]:
    """Those of a table's rows, the most frequent first; `NO_BACKBONE` alone where no row has one."""
    return [one for one in table["backbone"].value_counts().index if one != NO_BACKBONE] or [NO_BACKBONE]


def _of_backbone(reported: pd.DataFrame, backbone: str, or_else: bool) -> pd.DataFrame:
    """The paper's numbers of `backbone`; `or_else`: where it has none, those of the first backbone that it names."""
    named = reported["backbone"]
    return reported[named == (named.iloc[0] if or_else and len(named) and backbone not in set(named) else backbone)]


def _as_it_is(rows: pd.DataFrame, variants: bool) -> np.ndarray:
    """Which `rows` show a method as it is, in its last pass; with `variants`, those without a variant alone."""
    own = np.array([_trained_elsewhere(row) in ("", UNSEEN) for row in rows.to_dict("records")])
    own &= (rows["output"] == "final") & ~rows["variant"].str.startswith(ON_BOTH)
    return own & (rows["variant"] == "") if variants else own


def _trained_elsewhere(row: Mapping) -> str:
    """ "" where a row's method was trained on its own set or not at all; one model for several sets, or `UNSEEN`."""
    if row["train_dataset"] in ("", row["dataset"]):
        return ""
    measured = set(str(row.get("mean_of") or row["dataset"]).split("+"))
    return TOGETHER if measured & set(row["train_dataset"].split("+")) else UNSEEN


def _methods_by_sets(title: str, table: pd.DataFrame, reported: pd.DataFrame) -> list[Pivot]:
    """Methods down and sets across, the paper's numbers beside ours; sets down where they are too many; else parts."""
    split_by = [column for column in ("size", "object_class") if column in table]
    metric = table["metric"].iloc[0]
    records = table.to_dict("records")
    trained = {row["train_dataset"] for row in records} - {""}
    alone = len(trained) == 1  # one model stands in all rows
    unseen = trained if alone and any(_trained_elsewhere(row) == UNSEEN for row in records) else set()
    ours: dict[tuple[str, str], Mapping] = {}
    for row in records:
        place = ", ".join(filter(None, [row["dataset"], *(row[column] for column in split_by)]))
        where = _trained_elsewhere(row)
        words = "" if alone else f"{UNSEEN} {row['train_dataset']}" if where == UNSEEN else where
        ours[row_label(row["method"], row["variant"], row["output"], words), place] = row
    names = in_order(dict.fromkeys(name for name, _ in ours))
    places = sorted({place for _, place in ours if place != MEAN})
    if all(set(row["mean_of"].split("+")) == set(places) for (_, place), row in ours.items() if place == MEAN):
        places += [MEAN] if any(place == MEAN for _, place in ours) else []
    theirs = {(row_label(row["method"]), f"{row['dataset']}, paper"): row for row in reported.to_dict("records")}
    theirs = {key: row for key, row in theirs.items() if key[1].removesuffix(", paper") in places}
    names += [name for name in dict.fromkeys(name for name, _ in theirs) if name not in names]
    columns = [one for place in places for one in (place, f"{place}, paper")
               if one in places or any(one == other for _, other in theirs)]  # fmt: skip

    def cell(name: str, place: str) -> str:
        row = ours.get((name, place)) or theirs.get((name, place))
        known = any(one == name for one, _ in ours)
        return _number(row, metric) if row else NOT_RUN if known and place in places and place != MEAN else DASH

    def best(name: str, place: str) -> bool:
        return ours.get((name, place), {}).get("best") == "yes"

    caption = _caption(table, whole=not split_by)
    caption += "".join(f" All are {UNSEEN} {name}, but for zero-shot SAM." for name in unseen)
    caption += (
        " Bold: above all others of this table by the paired interval." if any(best(*key) for key in ours) else ""
    )
    if theirs:
        caption += " The paper's numbers are of its own backbone and training; its part of a set may be another."
    shown = {cell(name, place) for name in names for place in columns}
    caption += f" {DASH}: not measured on all sets, or not in the paper or the kit." if DASH in shown else ""
    across, down = (names, columns) if len(columns) >= WIDEST > len(names) else (columns, names)
    turned = across is names
    parts = []
    width = -(-len(across) // -(-len(across) // (WIDEST - 1)))  # parts of about the same width
    for start in range(0, len(across), width):
        some = across[start : start + width]
        keys = [[(one, other) if turned else (other, one) for one in some] for other in down]
        bold = {(row, 1 + place) for row, line in enumerate(keys) for place, key in enumerate(line) if best(*key)}
        rows = [[other, *(cell(*key) for key in line)] for other, line in zip(down, keys, strict=True)]
        words = f"{title}, continued" if start else title
        parts.append(Pivot(["set" if turned else "method", *some], rows, bold, 1, caption, words))
    return parts


def _learning_rates(table: pd.DataFrame) -> list[Pivot]:
    """One row a method and set with the chosen rate; folded, all that were tried."""
    rows = table[(table["metric"] == "iou") & (table["output"] == "final")]
    names = rows["variant"].map(rate_label).str.partition(", ")
    options, of = names[2], rows["backbone"].where(rows["backbone"] != NO_BACKBONE)
    if of.nunique() > 1:
        options = (options + ", " + of.fillna("")).str.strip(", ")
    # A method that is trained with prompts in one study and without in another has a rate of its own in each.
    unprompted = rows["prompt"] == "none"
    both = rows["method"].isin(set(rows["method"][unprompted]) & set(rows["method"][~unprompted]))
    options = options.where(~(unprompted & both), (options + ", no prompt").str.strip(", "))
    rows = rows.assign(rate=names[0], options=options)
    scores = rows.groupby(["method", "options", "train_dataset", "rate"], sort=False)["mean"].mean()
    chosen, tried = [], []
    for (method, options, trained_on), found in scores.groupby(level=[0, 1, 2], sort=False):
        rates = {float(key[-1]): score for key, score in found.items()}
        rate = min(rate for rate in rates if rates[rate] >= max(rates.values()) - SCORE_TIE)
        end = {min(rates): " (smallest tried)", max(rates): " (largest tried)"}.get(rate, "") if len(rates) > 1 else ""
        name = [row_label(method, options), trained_on]
        chosen.append([*name, f"{rate:g}{end}", f"{rates[rate]:.3f}", str(len(rates))])
        tried += [[*name, f"{one:g}", f"{rates[one]:.3f}"] for one in sorted(rates)]
    header, caption = (
        ["method", "set", "rate", "IoU on validation"],
        "Validation pictures, mean over the prompts trained with; seed 0; "
        "other seeds only at rates where a training ended with empty masks.",
    )
    return [
        Pivot([*header, "rates tried"], chosen, set(), 2, caption, "The chosen rates"),
        Pivot(header, tried, set(), 2, caption, "All rates tried", folded=True),
    ]


def _speed(table: pd.DataFrame) -> list[Pivot]:
    """Of the bench's table (`study.bench.speed_table`): one picture at a time in fp32, the same for every method; then
    the fastest setting of each that was tried, with ASAM's inversion and attack in network evaluations a second."""
    alike = table[(table["batch"] == 1) & (table["precision"] == "fp32") & ~table["compiled"].astype(bool)]
    alike = alike[alike["phase"] != EVALUATE]
    caption = "Memory (MiB of the graphics card) is the training's."
    parts = [_speeds(alike, "Pictures a second, one at a time in fp32", caption, equal=True)] if len(alike) else []
    caption = (
        "Each number is the most of the batch sizes and precisions that were tried, so that methods do not compare; "
        "batch, precision, compilation and memory (MiB of the graphics card) are the training's. Of ASAM's inversion "
        "and attack: network evaluations a second."
    )
    fastest = _speeds(table, "Pictures a second, at the fastest setting tried", caption)
    return [*parts, replace(fastest, folded=bool(parts))]


def _speeds(table: pd.DataFrame, title: str, caption: str, equal: bool = False) -> Pivot:
    """A row a device, backbone and method: the most pictures a second of each phase, and of training the settings at
    which that was, unless they are `equal` in all rows."""
    settings = ["at batch", "precision", "compiled"]
    header = ["device", "backbone", "method", "encoding", "decoding", "training", "evaluations", *settings, "MiB"]
    rows = []
    for (device, backbone, method), found in table.groupby(["device", "backbone", "method"], sort=False):
        best = {phase: part.loc[part["images_per_second"].idxmax()] for phase, part in found.groupby("phase")}
        asked = [EVALUATE] if EVALUATE in best else PHASES
        whole = method in METHODS and not METHODS[method].needs_sam  # a network without a decoder of its own
        speeds = [
            "" if phase not in asked or whole and phase == "decode"
            else _three_digits(best[phase]["images_per_second"]) if phase in best else NOT_RUN
            for phase in (*PHASES, EVALUATE)
        ]  # fmt: skip
        trained = best.get("train", best.get(EVALUATE))
        if trained is None or not trained["images_per_second"]:
            how = ["does not fit" if trained is not None else NOT_RUN, "", "", ""]
        else:
            memory = trained["peak_memory_mb"]
            how = [f"{trained['batch']}", trained["precision"], "yes" if trained["compiled"] else "no"]
            how.append("not measured" if pd.isna(memory) else f"{memory:.0f}")
        rows.append([device, backbone, label(method), *speeds, *how])
    # Left out: what no row has, or all have alike.
    told = [place for place in range(len(header)) if {row[place] for row in rows} - {"", "not measured"}]
    told = [place for place in told if not (equal and header[place] in settings)]
    rows = [[row[place] for place in told] for row in rows]
    return Pivot([header[place] for place in told], rows, set(), 3, caption, title)


def reported_elsewhere(name: str, table: pd.DataFrame, paper: PaperNumbers | None) -> Pivot | None:
    """What the paper reports on sets that `table` has not: a row a set, a column a method; None: nothing."""
    reported = reported_in(name, paper)
    if reported.empty:
        return None
    rest = reported[~reported["dataset"].isin(table["dataset"])]
    if rest.empty:
        return None
    names = rest["backbone"] if rest["backbone"].nunique() > 1 else [""] * len(rest)
    measures = zip(rest["prompt"], rest["metric"], names, strict=True)
    rest = rest.assign(measure=[_measure_label(*measure) for measure in measures])
    methods = in_order(rest["method"].unique())
    places = rest[["dataset", "measure", "metric"]].drop_duplicates().sort_values(["measure", "dataset"])
    values = {(row["dataset"], row["measure"], row["method"]): row["mean"] for row in rest.to_dict("records")}
    rows = []
    for dataset, measure, metric in places.itertuples(index=False):
        found = [values.get((dataset, measure, method)) for method in methods]
        cells = [NOT_AVAILABLE if value is None else _number({"mean": value}, metric) for value in found]
        rows.append([dataset, measure, *cells])
    caption = (
        f"The paper's own numbers (backbone: {', '.join(sorted(rest['backbone'].unique()))}) on sets that were not run "
        "here."
    )
    return Pivot(["set", "measure", *map(label, methods)], rows, set(), 2, caption)


def markdown(shown: Pivot) -> str:
    """A pivot as a markdown table, the best of each set in bold."""
    lines = ["| " + " | ".join(shown.header) + " |"]
    lines.append("|" + "|".join(["---"] * shown.labels + ["---:"] * (len(shown.header) - shown.labels)) + "|")
    for number, row in enumerate(shown.rows):
        cells = [f"**{cell}**" if (number, place) in shown.best else cell for place, cell in enumerate(row)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def markdown_parts(parts: Sequence[Pivot], fold: bool = True) -> str:
    """`pivots` as markdown, one below the other, what is folded in a fold where `fold` says so."""
    lines = []
    for part in parts:
        folded = fold and part.folded
        head = f"<details><summary>{part.title}</summary>" if folded else f"**{part.title}**"
        lines += [head, "", part.caption, "", markdown(part), "", *(["</details>", ""] if folded else [])]
    return "\n".join(lines)


def table_page(name: str, table: pd.DataFrame, papers: Mapping[str, PaperNumbers]) -> str:
    """The readable page of one table: title, what its numbers are, the pivot, the paper's source."""
    paper = paper_of(name, papers)
    shown = pivots(name, table, paper)
    lines = [f"# {title(name)}", ""]
    if shown:
        lines += [LOOK_AT[name], ""] if name in LOOK_AT else []
        lines += [f"{SPREAD} [{name}.csv]({name}.csv).", ""] if name not in WITHOUT_SPREAD else []
        lines.append(markdown_parts(shown))
    else:
        lines += ["**Not run** in this profile: there is no record for this table.", ""]
    elsewhere = reported_elsewhere(name, table, paper)
    if elsewhere is not None:
        lines += [elsewhere.caption, "", markdown(elsewhere), ""]
    if paper is not None:
        lines += [paper.describe(), ""]
    return "\n".join(lines)


def title(name: str) -> str:
    """What a table shows, in words."""
    for suffix, words in (("_by_size", ", by object size"), ("_by_class", ", by object class")):
        if name.endswith(suffix):
            return title(name.removesuffix(suffix)) + words
    return TABLES.get(name, name.replace("_", " "))


def write_pages(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """`<folder>/<name>.md` for every table."""
    papers = load_paper_numbers()
    for name, table in tables.items():
        write_atomically(folder / f"{name}.md", table_page(name, table, papers).encode())


def _without_last_pass(table: pd.DataFrame) -> pd.DataFrame:
    """`table` without the last of the outputs pass0, pass1 ...: it is the method's final output over again."""
    passes = table[table["output"].str.startswith("pass")]
    alike = [column for column in table if column not in ("output", *NUMBERS)]
    return table.drop(passes.index[passes["output"] == passes.groupby(alike)["output"].transform("max")])


def _measure_label(prompt: str, metric: str, backbone: str = "") -> str:
    words = (metric_label(metric), prompt and prompt_label(prompt), backbone)
    return " · ".join(filter(None, words))


def _number(row: Mapping, metric: str) -> str:
    mean, std = row["mean"], row.get("std", np.nan)
    if metric in METRIC_LABELS:
        digits = 1 if metric.startswith(("hd95", "psnr")) else 3
        text, spread = f"{mean:.{digits}f}", f" ± {std:.{digits}f}"
    else:
        text, spread = _three_digits(mean), f" ± {std:.2g}"
    return text if np.isnan(std) else text + spread


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _measure_rank(measure: tuple[str, str]) -> tuple:
    prompt, metric = measure
    prompts, metrics = PROMPT_ORDER, METRIC_ORDER
    return (
        prompts.index(prompt) if prompt in prompts else len(prompts), prompt,
        metrics.index(metric) if metric in metrics else len(metrics), metric,
    )  # fmt: skip


def _caption(table: pd.DataFrame, whole: bool) -> str:
    """What all rows share, in one sentence; of `whole` tables (not broken down) also where the backbone's grid is too
    coarse for what is to be found.
    """
    columns = ["variant", "backbone", "split", "output"]
    shared = {column: [value for value in table[column].unique() if value != NO_BACKBONE] for column in columns}
    parts = [f"{column} {values[0]}" for column, values in shared.items() if len(values) == 1 and values[0]]
    seeds = sorted(set(table["seeds"].astype(int)))
    parts.append(f"{' or '.join(map(str, seeds))} seed{'s' if seeds != [1] else ''}")
    text = ", ".join(parts)
    text = f"{text[:1].upper()}{text[1:]}." if text else ""
    if not whole:
        return text
    truth = table[(table["output"] == "at_mask_size") & (table["metric"] == "iou") & (table["mean"] < COARSE)]
    return text + "".join(
        f" On {row['dataset']} the truth itself, on the grid on which SAM draws masks, has IoU {row['mean']:.3f} (row "
        "truth): objects there are thinner than its pixels."
        for row in truth.drop_duplicates("dataset").to_dict("records")  # the same whatever the prompt
    )
