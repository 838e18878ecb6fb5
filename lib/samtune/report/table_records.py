"""From a row of a table to its records: their keys, and where, when and with what they were made."""

from collections.abc import Sequence
from urllib.parse import quote

import pandas as pd

from samtune.report.labels import label, rate_label, row_label
from samtune.report.readable_tables import Pivot
from samtune.study.records import Record

COLUMNS = [
    "key", "row", "title", "dataset", "method", "prompt", "variant", "train_dataset", "split", "backbone", "seed",
    "images", "date", "commit", "machine",
]  # fmt: skip


def records_of(table: str, records: Sequence[Record]) -> pd.DataFrame:
    """The records that `table` shows, one row each (twice where it shows one under two variants), with `COLUMNS`.

    `commit` has "+ changes" where the working tree differed from it.
    """
    rows = []
    for record in records:
        for variant in record.variants(table):
            cell = record.cell
            commit = f"{record.commit[:9]}{' + changes' if record.dirty else ''}"
            words = rate_label(variant) if table == "learning_rates" else variant
            rows.append((
                record.key, row_label(record.method, words), label(record.method), record.dataset, record.method,
                cell.get("prompt", ""), variant, "+".join(record.train_datasets), cell.get("split", ""),
                record.backbone, cell.get("seed", ""), record.images,
                record.date[:16], commit, record.hardware,
            ))  # fmt: skip
    return pd.DataFrame(sorted(rows, key=lambda row: [str(value) for value in row[3:11] + row[:1]]), columns=COLUMNS)


def address(pivot: Pivot, row: Sequence[str], records: Sequence[Sequence[str]]) -> str:
    """What a page of `records` (rows of `records_of`) is asked for to show those of one row: cells, between bars.

    A row's name goes on with the output ("SPT, draft"), which its records do not have: the longest name of records that
    it begins with is taken.
    """
    names = dict(zip(pivot.header[: pivot.labels], row, strict=False))
    known = {name for record in records for name in record[1:3]}
    fits = [name for name in known if f"{names.get('method', '')}, ".startswith(f"{name}, ")]
    # A size or class after the set ("neu-seg, small") is no record's.
    places = [names[name].partition(", ")[0] for name in ("set", "dataset") if names.get(name)]
    return quote("|".join([*places, *([max(fits, key=len)] if fits else [])]))
