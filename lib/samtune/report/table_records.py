"""From a row of a table to its records: their keys, and where, when and with what they were made."""

from collections.abc import Sequence
from urllib.parse import quote

import pandas as pd

from samtune.report.readable_tables import Pivot
from samtune.study.records import Record

COLUMNS = [
    "key", "dataset", "method", "prompt", "variant", "train_dataset", "split", "backbone", "seed", "images", "date",
    "commit", "machine",
]  # fmt: skip
ROW = ("dataset", "method", "variant", "train dataset", "backbone", "split")  # labels of a pivot that records have too


def records_of(table: str, records: Sequence[Record]) -> pd.DataFrame:
    """The records that `table` shows, one row each (twice where it shows one under two variants), with `COLUMNS`.

    `commit` has "+ changes" where the working tree differed from it.
    """
    rows = []
    for record in records:
        for variant in record.variants(table):
            cell = record.cell
            commit = f"{record.commit[:9]}{' + changes' if record.dirty else ''}"
            rows.append((
                record.key, record.dataset, record.method, cell.get("prompt", ""), variant,
                "+".join(record.train_datasets), cell.get("split", ""), record.backbone, record.seed, record.images,
                record.date[:16], commit, record.hardware,
            ))  # fmt: skip
    return pd.DataFrame(sorted(rows, key=lambda row: row[1:9] + row[:1]), columns=COLUMNS)


def address(pivot: Pivot, row: Sequence[str]) -> str:
    """What a page of records is asked for to show those of one row: the cells that name it, between bars."""
    names = dict(zip(pivot.header[: pivot.labels], row, strict=False))
    return quote("|".join(names[name] for name in ROW if names.get(name)))
