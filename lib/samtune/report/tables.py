"""Tables: pure functions of records, in long form; `samtune.report.readable_tables` makes them readable.

Every number goes objects -> image -> set -> seeds: an image's value is the mean over its objects, a seed's the mean
over images, the table's the mean over seeds. `std` is over seeds (n - 1). `low`, `high` is the 95% bootstrap interval
over images and seeds together, images of one group (tile, patient, slide) together (`statistics.paired_bootstrap`).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError
from samtune.common.paths import results_root
from samtune.data.polyps import training_set
from samtune.metrics import size_class
from samtune.report.labels import method_order
from samtune.report.statistics import FEWEST_UNITS, independent_units, paired_bootstrap
from samtune.study.bench import speed_table
from samtune.study.cells import NO_BACKBONE
from samtune.study.records import DESCRIPTIVE, SUFFIX, Record, read_records
from samtune.study.varied import option_and_value, varied

TABLES = {
    "nano_sam": "The nano SAM before tuning, object by object (16 x 16 pixels at least), against ellipse and GrabCut",
    "baselines": "What plain tuning gives, the objects of a picture as one mask: SAM as it is, decoder tuned, LoRA",
    "spt_main": "SPT against its baselines",
    "spt_ablation": "SPT: what each part contributes",
    "spt_choices": "SPT: what the paper leaves open, on validation pictures",
    "sam_sp_main": "SAM-SP against its baselines",
    "sam_sp_ablation": "SAM-SP: what each part contributes",
    "sam_sp_choices": "SAM-SP: what the paper leaves open, one change at a time, on validation pictures",
    "asam_main": "ASAM and its rivals, object by object, on sets that none was tuned on; seen sets apart",
    "asam_ablation": "ASAM: what each part contributes, and the second victim",
    "asam_choices": "ASAM: what may help it in a small model, on validation pictures",
    "asam_inversion": "ASAM: inversions and attacks, and what they cost",
    "learning_rates": "Learning rates on validation pictures: the smallest within half a point of the best is taken",
    "speed": "Pictures a second and memory, of encoding, decoding and a training step, by device",
}
# What to look at in a table.
LOOK_AT = {
    "nano_sam": "How far the nano SAM is above an ellipse drawn into the box, which needs no network.",
    "baselines": "What tuning gains over zero-shot SAM, and LoRA over tuning the decoder alone.",
    "spt_main": "SPT against LoRA: both saw equally many pictures with the same prompts.",
    "spt_ablation": "Neither, SDT, VRA and SDT + VRA are the paper's ablation. Rows of one option (rank, points, box "
    "noise) belong together. Transfer: tested on a set that it was not tuned on.",
    "spt_choices": "Each row changes one thing that the paper leaves open. More than half a point counts.",
    "sam_sp_main": "SAM-SP against LoRA (as SAMed), which has one pass and another loss. The LoRA by SAM-SP's own Dice "
    "loss, the comparison that decides, stands in the table of what each part contributes.",
    "sam_sp_ablation": "LoRA (as SAMed), Dice loss, is the comparison that decides: SAM-SP's loss, but one pass. True "
    "box: what a perfect prompt of its own would bring.",
    "sam_sp_choices": "Each row changes one thing at the starting point (alpha 1, squared Dice). More than half a "
    "point counts, between rows of as many seeds. Further rows: the kit's first version, truth on both passes.",
    "asam_main": "ASAM against zero-shot SAM, and against clean tuning, which has all but the adversarial pictures.",
    "asam_ablation": "Zero-shot SAM on adversarial and on reconstructed pictures: does what fools one fool another?",
    "asam_choices": "ASAM against clean tuning in each row: do the pictures help, or the recipe?",
    "asam_inversion": "How much IoU an attack takes, from the reconstruction (before) to the adversarial picture, and "
    "at what cost. *The pictures tuned on* are more than those of the other rows (column images of the csv). An attack "
    "may raise the PSNR, to the original, since its loss pulls towards the original.",
}
COLUMNS = [
    "method", "dataset", "prompt", "metric", "mean", "std", "low", "high", "seeds", "images", "variant", "output",
    "backbone", "train_dataset", "split", "option", "value",
]  # fmt: skip
WHOLE = ["mean_of", "best", "records"]  # further columns of tables that are not broken down
NUMBERS = ["mean", "std", "low", "high"]
MEAN = "mean of sets"
# Never marked as best: the one describes the prompt, the other rewards a missed object.
NOT_BETTER = {"box_area", "hd95_transunet"}
LOWER_IS_BETTER = {"hd95_strict", "mae", "false_alarm_area"}
METRIC_ORDER = [
    "iou_drop", "evaluations", "seconds",
    "iou", "boundary_iou", "dice", "box_iou", "hd95_transunet", "hd95_strict", "s_measure", "e_measure_max",
    "e_measure_mean", "e_measure_adaptive", "weighted_f", "mae", "psnr", "ssim",
]  # fmt: skip
PROMPT_ORDER = ["box", "box_jitter", "box+mask", "point_centre", "point1", "point2", "point5", "point10", "point20",
                "mask", "none"]  # fmt: skip
_ROW = ["method", "dataset", "prompt", "variant", "backbone", "train_dataset", "split"]
_VARIED = ["option", "value"]


def build_tables(records: Iterable[Record]) -> dict[str, pd.DataFrame]:
    """Every table of `TABLES`, and any other that a record names, with `COLUMNS` and `WHOLE`; no record: no rows.

    Where the same was measured on several sets, a row of dataset `MEAN` has their plain mean; `mean_of` names them.
    `records` are the keys of a row's records (the names of their files). `best` is "yes" where a method as it is
    stands above all others as they are by the paired interval (trained on that set, or not at all).

    For each table that has rows also `<name>_by_size` and `<name>_by_class` (where classes are known; not of choices on
    validation pictures), with one more column and without intervals. Raises `InputError` when one row would mix two
    different cells.
    """
    records = list(records)
    named = {place.partition(":")[0] for record in records for place in record.tables}
    tables, shared = {}, []
    for name in [*TABLES, *sorted(named - set(TABLES))]:
        chosen = [record for record in records if record.variants(name)]
        if name == "speed":
            tables[name] = speed_table(chosen)
            continue
        groups = _groups(name, [record for record in chosen if record.objects is not None], shared)
        tables[name] = _sorted(pd.DataFrame(_whole_rows(name, groups), columns=[*COLUMNS, *WHOLE]))
        for column in () if name == "learning_rates" or name.endswith("_choices") else ("size", "object_class"):
            broken_down = _sorted(pd.DataFrame(_rows(name, groups, column), columns=[*COLUMNS, column]))
            if len(broken_down) and set(broken_down[column]) != {""}:
                tables[f"{name}_by_{column.removeprefix('object_')}"] = broken_down
    _refuse_shared(shared)
    return tables


def image_values(record: Record, metric: str, output: str) -> pd.Series:
    """One value an image (the mean over its objects) of an evaluation record, named by group and image and sorted."""
    objects = record.objects
    if metric not in objects:
        objects = objects.assign(**{metric: np.nan})  # no image has a value: empty, its index named all the same
    chosen = _grouped(objects[objects["output"] == output])
    return chosen.groupby(["group", "image"])[metric].mean().dropna()


def seeds_by_images(series: Sequence[pd.Series]) -> tuple[np.ndarray, list[str]]:
    """One `(seeds, images)` array of several seeds' `image_values`, over the images that all have, and their groups."""
    first = series[0].index
    if all(first.equals(other.index) for other in series[1:]):  # the rule; aligning takes much longer
        return np.stack([one.to_numpy() for one in series]), list(first.get_level_values("group"))
    frame = pd.concat(series, axis=1, join="inner").sort_index()
    return frame.to_numpy().T, list(frame.index.get_level_values("group"))


def paired_differences(
    records: Iterable[Record], table: str, method: str, against: Sequence[str], metric: str = "iou", variant: str = ""
) -> pd.DataFrame:
    """`method` minus each of `against` on the same images, prompts and seeds, with the 95% paired bootstrap interval.

    One row a data set, prompt and other method: dataset, prompt, method, against, difference, low, high, images. Of
    what `table` shows under `variant`, output "final", of models that are trained on the set itself or not at all; a
    pair without common seeds and images has no row.
    """
    found: dict[tuple[str, str, str], dict[int, pd.Series]] = {}
    for record in records:
        own = record.train_datasets in ((), (record.dataset,))
        if record.objects is not None and own and variant in record.variants(table):
            place = (record.dataset, record.cell["prompt"], record.method)
            found.setdefault(place, {})[record.seed] = image_values(record, metric, "final")
    rows = []
    for (dataset, prompt, name), ours in sorted(found.items()):
        for other in against if name == method else ():
            theirs = found.get((dataset, prompt, other), {})
            seeds = sorted(ours.keys() & theirs.keys())
            pairs = [series[seed] for series in (ours, theirs) for seed in seeds]
            if not seeds:
                continue
            values, groups = seeds_by_images(pairs)
            if groups:
                difference, low, high = paired_bootstrap(values[: len(seeds)] - values[len(seeds) :], groups)
                rows.append((dataset, prompt, method, other, difference, low, high, len(groups)))
    columns = ["dataset", "prompt", "method", "against", "difference", "low", "high", "images"]
    return pd.DataFrame(rows, columns=columns)


def passes_by_box(records: Iterable[Record], direct: Iterable[Record] = ()) -> pd.DataFrame:
    """Dice of SAM-SP's two passes by how good its own box is: where does the second pass help, and where does it harm?

    `records` are SAM-SP's measurements, `direct` those of the model whose only pass was taught the truth, where it was
    run. One row a data set and quarter of the box's IoU with the true box: the mean Dice of `pass0`, of `pass1` and of
    `direct`, what is gained over each (`over_pass0`, `over_direct`), and `images` (an image counts once a seed).
    """
    parts, quarters = [], ["to 0.25", "to 0.5", "to 0.75", "to 1"]
    only = {(record.dataset, record.seed): image_values(record, "dice", "final") for record in direct}
    for record in records:
        dice = {output: image_values(record, "dice", output) for output in ("pass0", "pass1")}
        not_run = pd.Series(np.nan, dice["pass1"].index)
        dice["direct"] = only.get((record.dataset, record.seed), not_run).reindex(not_run.index)
        box = pd.cut(
            image_values(record, "box_iou", "pass0"), np.linspace(0, 1, 5), labels=quarters, include_lowest=True
        )
        parts.append(pd.DataFrame(dice | {"box_iou": box}).assign(dataset=record.dataset))
    groups = pd.concat(parts).groupby(["dataset", "box_iou"], observed=True)
    means = groups[["pass0", "pass1", "direct"]].mean()
    gains = {f"over_{name}": means["pass1"] - means[name] for name in ("pass0", "direct")}
    return means.assign(**gains, images=groups.size())


def write_tables(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Each table as `<folder>/<name>.csv`; numbers with 6 significant digits."""
    for name, table in tables.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g").encode())


def read_table(path: Path) -> pd.DataFrame:
    """A table as `write_tables` wrote it: text columns as text, empty where empty."""
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    numbers = ("mean", "std", "low", "high", "effect", "margin", "seeds", "images", "units", "sets", "peak_memory_mb")
    for column in numbers:
        if column in table:
            table[column] = pd.to_numeric(table[column], errors="coerce")  # an empty cell is not a number
    return table


def differences(committed: pd.DataFrame, rebuilt: pd.DataFrame) -> list[str]:
    """What differs between a table read from disk and one built anew, one line each; empty: they agree to 1e-5."""
    if list(committed.columns) != list(rebuilt.columns):
        return [f"columns {list(committed.columns)} instead of {list(rebuilt.columns)}"]
    if len(committed) != len(rebuilt):
        return [f"{len(committed)} rows instead of {len(rebuilt)}"]
    found = []
    for column in rebuilt.columns:
        if pd.api.types.is_numeric_dtype(rebuilt[column]) and not pd.api.types.is_bool_dtype(rebuilt[column]):
            old, new = committed[column].to_numpy(float), rebuilt[column].to_numpy(float)
            same = np.isclose(old, new, rtol=1e-5, atol=1e-6, equal_nan=True)
        else:
            old, new = committed[column].astype(str).to_numpy(), rebuilt[column].astype(str).to_numpy()
            same = old == new
        found += [f"row {row + 1}, {column}: {old[row]} instead of {new[row]}" for row in np.flatnonzero(~same)]
    return found


def check_tables(results: str | Path) -> list[str]:
    """Do the tables of a profile (or results folder) equal a rebuild from its records? What differs, one line each."""
    folder = results if isinstance(results, Path) else results_root(results)
    rebuilt = build_tables(read_records(folder / "records"))
    found = []
    for name, table in rebuilt.items():
        path = folder / "tables" / f"{name}.csv"
        if not path.is_file():
            found.append(f"{name}: missing")
            continue
        found += [f"{name}: {line}" for line in differences(read_table(path), table)]
    return found


def _groups(
    table: str, records: Sequence[Record], shared: list[tuple[str, Record, Record]]
) -> dict[tuple, list[Record]]:
    """Records by row of `table`, one a seed, seeds ascending. Where a second cell shares a row and seed, `shared` gets
    the place, the older and the newer record.
    """
    groups: dict[tuple, dict[int, Record]] = {}
    for record in records:
        for variant in record.variants(table):
            cell = record.cell
            trained_on = "+".join(record.train_datasets)
            row = (record.method, record.dataset, cell["prompt"], variant, record.backbone, trained_on, cell["split"])
            other = groups.setdefault(row, {}).setdefault(record.seed, record)
            if other.key != record.key:
                words = f"the row {', '.join(filter(None, row))}, seed {record.seed}"
                two = sorted((other, record), key=lambda one: one.date)
                shared.append((f"table {table}: two different cells share {words}", *two))
    return {row: [seeds[seed] for seed in sorted(seeds)] for row, seeds in sorted(groups.items())}


def _refuse_shared(shared: Sequence[tuple[str, Record, Record]]) -> None:
    """Raises `InputError` with the first row that two cells share, and all older records of such rows."""
    for place, older, newer in shared[:1]:
        files = ", ".join(dict.fromkeys(f"{old.key}{SUFFIX}" for _, old, _ in shared))
        raise InputError(
            f"{place} ({_what_differs(older.cell, newer.cell)}); delete what is outdated from the folder `records`, or "
            f"name one 'table:<variant>' in its `tables`. The older ones of all such rows: {files}"
        )


def _what_differs(one: dict[str, Any], other: dict[str, Any]) -> str:
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    return "; ".join(f"{name}: {one.get(name)} / {other.get(name)}" for name in names) or "nothing in the configuration"


def _measured(objects: pd.DataFrame) -> list[str]:
    return [
        name for name in objects.columns if name not in DESCRIPTIVE and pd.api.types.is_numeric_dtype(objects[name])
    ]


def _described(table: str, row: Sequence[str], record: Record) -> dict[str, str]:
    """The text columns of a row, one of whose records is `record`."""
    described = dict(zip(_ROW, row, strict=True))
    return described | dict(zip(_VARIED, option_and_value(varied(record, table, described["variant"])), strict=True))


_Seeds = dict[int, pd.Series]  # the images' values of each seed


def _whole_rows(table: str, groups: dict[tuple, list[Record]]) -> list[dict[str, Any]]:
    """The rows of `table`, not broken down, and the means of sets, with the columns `WHOLE`."""
    rows = [row | {"mean_of": "", "best": ""} for row in _rows(table, groups)]
    values: dict[int, list[_Seeds]] = {}  # by row: of each of its sets
    alike: dict[tuple, list[int]] = {}  # rows that differ in the set alone
    for number, row in enumerate(rows):
        records = groups[tuple(row[name] for name in _ROW)]
        row["records"] = " ".join(record.key for record in records)
        found = {record.seed: image_values(record, row["metric"], row["output"]) for record in records}
        values[number] = [{seed: one for seed, one in found.items() if len(one)}]
        trained = MEAN if row["train_dataset"] == row["dataset"] else row["train_dataset"]
        same = (row[name] for name in ("method", "prompt", "metric", "variant", "backbone", "split", "output"))
        alike.setdefault((*same, trained), []).append(number)
    for (*_, trained), numbers in alike.items():
        chosen = [rows[number] for number in numbers]
        seeds = [set(values[number][0]) for number in numbers]
        if len(numbers) < 2 or table == "learning_rates" or any(one != seeds[0] for one in seeds):
            continue
        values[len(rows)] = [values[number][0] for number in numbers]
        arrays = [seeds_by_images(list(values[number][0].values())) for number in numbers]
        # Models tested on sets that none of them was trained on are the same models everywhere; so is that of polyps.
        sets = [row["dataset"] for row in chosen]
        models = map(training_set, sets) if trained == MEAN else [trained or name for name in sets]
        shared = list(zip(models, sets, strict=True))
        interval = paired_bootstrap(*zip(*arrays, strict=True), shared)
        by_seed = np.mean([array.mean(axis=1) for array, _ in arrays], axis=0)
        described = {"dataset": MEAN, "train_dataset": trained, "mean_of": "+".join(row["dataset"] for row in chosen)}
        described |= {"records": " ".join(row["records"] for row in chosen), **interval._asdict()}
        described |= {"std": by_seed.std(ddof=1) if len(by_seed) > 1 else np.nan, "seeds": len(by_seed)}
        described |= {"images": sum(row["images"] for row in chosen)}
        rows.append(chosen[0] | described)
    _mark_best(rows, values)
    return rows


def _mark_best(rows: list[dict[str, Any]], values: dict[int, list[_Seeds]]) -> None:
    """Set `best` of the rows whose paired interval to every other method as it is lies on the good side of 0, if it is
    of `FEWEST_UNITS` pictures at least.

    Methods on another backbone are no rivals; one without a backbone has to be above those on all.
    """
    rivals: dict[tuple, list[int]] = {}
    for number, row in enumerate(rows):
        as_it_is = not row["variant"] and row["output"] == "final" and row["metric"] not in NOT_BETTER
        if as_it_is and row["train_dataset"] in ("", row["dataset"]):
            place = (row[name] for name in ("dataset", "prompt", "metric", "split", "mean_of"))
            rivals.setdefault(tuple(place), []).append(number)
    for (*_, metric, _, _), numbers in rivals.items():
        sign = -1 if metric in LOWER_IS_BETTER else 1
        beaten: dict[int, set[int]] = {}
        backbones = {rows[number]["backbone"] for number in numbers}
        for backbone in backbones - {NO_BACKBONE} or backbones:
            beside = [number for number in numbers if rows[number]["backbone"] in (backbone, NO_BACKBONE)]
            top = max(beside, key=lambda number: sign * rows[number]["mean"])
            others = {number for number in beside if number != top}
            if others and all(_above(values[top], values[other], sign) for other in others):
                beaten[top] = beaten.get(top, set()) | others
        for top, others in beaten.items():
            if rows[top]["backbone"] != NO_BACKBONE or len(others) == len(numbers) - 1:
                rows[top]["best"] = "yes"


def _above(one: list[_Seeds], other: list[_Seeds], sign: int) -> bool:
    differences, groups = [], []
    for ours, theirs in zip(one, other, strict=True):
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return False
        array, names = seeds_by_images([*(ours[seed] for seed in seeds), *(theirs[seed] for seed in seeds)])
        differences.append(sign * (array[: len(seeds)] - array[len(seeds) :]))
        groups.append(names)
    units = sum(int(independent_units(names).max()) + 1 for names in groups if names)
    return all(groups) and units >= FEWEST_UNITS and paired_bootstrap(differences, groups).low > 0


def _rows(table: str, groups: dict[tuple, list[Record]], column: str = "") -> list[dict[str, Any]]:
    """One row of `table` a group, output and metric; with `column` ("size" or "object_class") also one a value of it.

    Broken down, an image counts where it has such an object, and there are no intervals.
    """
    rows = []
    by = [column, "output", "group", "image"] if column else ["output", "group", "image"]
    for row, records in groups.items():
        metrics = list(dict.fromkeys(name for record in records for name in _measured(record.objects)))
        frames = [_grouped(record.objects) for record in records]
        frames = [_sized(frame) for frame in frames] if column == "size" else frames
        if any(name not in frame for frame in frames for name in by):
            continue
        means = [frame.groupby(by)[[name for name in metrics if name in frame]].mean() for frame in frames]
        kinds = list(dict.fromkeys(kind for mean in means for kind in mean.index.droplevel(["group", "image"])))
        for kind in kinds:
            parts = [mean.loc[kind] for mean in means if kind in mean.index.droplevel(["group", "image"])]
            described = _described(table, row, records[0])
            described |= dict(zip(by, kind if column else [kind], strict=False))
            for metric in metrics:
                values, units = seeds_by_images([part[metric].dropna() for part in parts if metric in part])
                if units:
                    rows.append(described | {"metric": metric} | _summary(values, None if column else units))
    return rows


def _grouped(objects: pd.DataFrame) -> pd.DataFrame:
    return objects.assign(group=objects["group"].fillna("") if "group" in objects else "")


def _sized(objects: pd.DataFrame) -> pd.DataFrame:
    return objects.assign(size=[size_class(area) for area in objects["area"]]) if "area" in objects else objects


def _summary(values: np.ndarray, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """Mean, spread over seeds and counts of `(seeds, images)` values; with the images' groups also the interval."""
    seeds = values.mean(axis=1)
    _, low, high = paired_bootstrap(values, groups) if groups else (None, np.nan, np.nan)
    std = seeds.std(ddof=1) if len(seeds) > 1 else np.nan
    return {"mean": seeds.mean(), "std": std, "low": low, "high": high, "seeds": len(seeds), "images": values.shape[1]}


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order that people expect: sets, then methods from simple to elaborate, then what is measured.

    Numbers inside names count as numbers: rank 2 before rank 16, a rate of 3e-05 before 0.0001.
    """
    orders = {"method": method_order(), "metric": METRIC_ORDER, "prompt": PROMPT_ORDER}
    keys = ["dataset", "train_dataset", "method", "variant", "backbone", "output", "split", "prompt", "metric"]
    keys += [column for column in table.columns if column not in COLUMNS]

    table = table.astype({column: float for column in NUMBERS})

    def natural(name: str) -> str:
        return re.sub(r"\d+(\.\d+)?(e-?\d+)?", lambda number: f"{float(number[0]):020.9f}", name)

    def place(row: dict[str, Any]) -> list[tuple[int, str]]:
        known = [(orders.get(column, []), str(row[column])) for column in keys]
        return [(order.index(value) if value in order else len(order), natural(value)) for order, value in known]

    rows = table.to_dict("records")
    return table.loc[sorted(table.index, key=lambda number: place(rows[number]))].reset_index(drop=True)
