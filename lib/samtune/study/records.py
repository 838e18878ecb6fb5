"""Records: what running a cell gave and under which circumstances; one small compressed file a cell."""

import gzip
import json
import math
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samtune.common.atomic import write_atomically
from samtune.study.cells import Cell, cell_from_json

FORMAT = 1
SUFFIX = ".json.gz"
DIGITS = 6  # significant digits kept of every measured number


@dataclass(frozen=True)
class Record:
    """One finished cell.

    `kind` "training" or "evaluation"; `cell` its configuration as plain data (an evaluation's holds its training
    cell's under "training"); `tables` where it is shown, each "name" or "name:variant"; `objects` one row per object
    and output (evaluation only: image, object, object_class, area, box_w, box_h, output, then one column a metric);
    `curve` one dictionary a logged step (training only); `seconds` wall time; memory in MiB; `hardware`,
    `precision`, `packages`, `commit`, `dirty` and `date` (UTC) say where it comes from; `extras` other plain facts
    (trainable parameters, images dropped for an empty mask, ...).
    """

    key: str
    kind: str
    cell: Mapping[str, Any]
    tables: tuple[str, ...] = ()
    objects: pd.DataFrame | None = field(default=None, compare=False)
    curve: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    peak_gpu_memory_mb: float | None = None
    hardware: str = ""
    precision: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    dirty: bool = False
    date: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)
    status: str = "done"

    @property
    def method(self) -> str:
        return self.cell["method"]

    @property
    def backbone(self) -> str:
        return self.cell["backbone"]

    @property
    def seed(self) -> int:
        return self.cell["seed"]

    @property
    def dataset(self) -> str:
        """The set that an evaluation measures; "" for a training."""
        return self.cell.get("dataset", "")

    @property
    def train_datasets(self) -> tuple[str, ...]:
        """The sets trained on; empty where nothing was trained."""
        training = self.cell if self.kind == "training" else self.cell.get("training") or {}
        return tuple(training.get("train_datasets", ()))

    @property
    def images(self) -> int:
        """Images seen in training, or images measured."""
        if self.kind == "training":
            return self.cell["images"]
        return 0 if self.objects is None else self.objects["image"].nunique()

    def variants(self, table: str) -> list[str]:
        """The variant names under which `table` shows this record; empty when it does not."""
        places = (place.partition(":") for place in self.tables)
        return [variant for name, _, variant in places if name == table]


def write_record(folder: Path, record: Record) -> Path:
    """Write `record` to `<folder>/<key>.json.gz`, whole or not at all; the same record gives the same bytes."""
    data = asdict(record) | {"format": FORMAT, "objects": _pack(record.objects)}
    text = json.dumps(_plain(data), separators=(",", ":"), sort_keys=True, allow_nan=False)
    path = folder / f"{record.key}{SUFFIX}"
    write_atomically(path, gzip.compress(text.encode(), compresslevel=9, mtime=0))
    return path


def read_record(path: Path) -> Record | None:
    """The record at `path`; None when there is none, or when it is damaged.

    A damaged file (truncated, not a record, another cell's) is renamed `*.corrupt` with a warning that names it, so
    that the cell is run again and nothing is lost that someone may want to look at.
    """
    try:
        data = json.loads(gzip.decompress(path.read_bytes()))
        if data.pop("format") != FORMAT or data["kind"] not in ("training", "evaluation"):
            raise ValueError("not a record of this version of the kit")
        if data["key"] + SUFFIX != path.name:
            raise ValueError("the key inside is not the file's name")
        data["objects"] = _unpack(data["objects"])
        data |= {"tables": tuple(data["tables"]), "curve": tuple(data["curve"])}
        return Record(**data)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PermissionError):
            raise
        corrupt = path.with_name(path.name + ".corrupt")
        os.replace(path, corrupt)
        warnings.warn(f"damaged record, run again: {path} ({error or type(error).__name__}); kept as {corrupt.name}",
                      stacklevel=2)  # fmt: skip
        return None


def read_records(folder: Path) -> list[Record]:
    """All valid records of `folder`, in the order of their keys; an absent folder has none."""
    records = (read_record(path) for path in sorted(folder.glob(f"*{SUFFIX}")))
    return [record for record in records if record is not None]


def cell_of(record: Record) -> Cell:
    """The cell that a record is of."""
    values = {"kind": record.kind, "cell": dict(record.cell), "tables": list(record.tables)}
    return cell_from_json(json.dumps(values))


def trainings_of(records: Iterable[Record], results: Path) -> list[Record]:
    """The training records behind evaluation records, each once."""
    keys = dict.fromkeys(cell.training.key() for cell in map(cell_of, records) if cell.training)
    known = {record.key: record for record in read_records(results / "records")}
    return [known[key] for key in keys if key in known]


def main_records(records: Iterable[Record], table: str, dataset: str, prompt: str, seed: int) -> dict[str, Record]:
    """By method, the evaluations on `dataset` that `table` shows without a variant, trained there or not at all.

    Of several backbones the first one's.
    """
    return {
        record.method: record
        for record in reversed(list(records))
        if "" in record.variants(table)
        and record.dataset == dataset
        and set(record.train_datasets) <= {dataset}
        and (record.cell["prompt"], record.seed) == (prompt, seed)
    }


def _pack(frame: pd.DataFrame | None) -> dict[str, Any] | None:
    """A table column by column: numbers as they are (not a number: null), text as indices into its values."""
    if frame is None:
        return None
    columns = {}
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column):
            columns[name] = {"values": [_plain(value) for value in column.tolist()]}
        else:
            codes, names = pd.factorize(column.fillna("").astype(str))
            columns[name] = {"codes": codes.tolist(), "names": list(names)}
    return {"rows": len(frame), "names": list(frame.columns), "columns": columns}


def _unpack(packed: Mapping[str, Any] | None) -> pd.DataFrame | None:
    if packed is None:
        return None
    columns = {}
    for name in packed["names"]:
        column = packed["columns"][name]
        if "codes" in column:
            columns[name] = np.array(column["names"] or [""], dtype=object)[np.array(column["codes"], dtype=int)]
        else:
            values = column["values"]
            whole = bool(values) and all(isinstance(value, int) for value in values)
            columns[name] = np.array(values, dtype=np.int64 if whole else np.float64)  # null becomes not a number
        if len(columns[name]) != packed["rows"]:
            raise ValueError(f"column {name} has {len(columns[name])} rows of {packed['rows']}")
    return pd.DataFrame(columns)


def _plain(value: Any) -> Any:
    """`value` as json can hold it: floats to `DIGITS` significant digits, infinite and undefined ones as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    raise TypeError(f"a record cannot hold {value!r}")
