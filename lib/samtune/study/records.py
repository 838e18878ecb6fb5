"""Records: what running a cell gave, and how it was run; one small compressed file for each cell.

Which objects were measured, and how large they are, is the same in all records of a data set's split. It is stored
once, in a file in the folder `objects` beside the records, which they name.
"""

import gzip
import hashlib
import json
import math
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samtune import __version__
from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError
from samtune.data.polyps import POLYPS, TEST_SETS
from samtune.study.cells import KINDS, Cell, cell_from_plain

# Of what is written. All are read: in 1 Dice stood beside the IoU, in 1 and 2 the objects in every record.
FORMAT = 3
SUFFIX = ".json.gz"
OBJECTS = "objects"  # the folder
DESCRIPTIVE = ("image", "group", "object", "object_class", "area", "box_w", "box_h", "output")  # the rest are metrics
DIGITS = 4  # significant digits kept of every measured number: a profile's records together stay under 20 MB


@dataclass(frozen=True)
class Record:
    """One finished cell.

    Fields:
        key: the cell's.
        kind: "training", "evaluation" ...: one of `cells.KINDS`.
        cell: its configuration as plain data; an evaluation's has its training's under "training".
        tables: that show it, each "name" or "name:variant".
        objects: evaluations only: one row for each object and output (columns `DESCRIPTIVE`, then one for each metric).
        curve: trainings only: one dictionary for each logged step.
        seconds: wall time.
        peak_memory_mb: in MiB.
        peak_gpu_memory_mb: in MiB; None without a graphics card.
        hardware: processor, memory, graphics card.
        precision: "fp32" or "bf16".
        packages: versions by name.
        commit: of the code.
        dirty: the code differed from the commit.
        date: UTC, ISO format.
        extras: other plain facts (trainable parameters, images left out ...).
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
        """The set that was measured; of generated pictures, those that they are made from; "" for a training."""
        made = self.cell.get("generated") if self.kind == "evaluation" else None
        return made["dataset"] if made else self.cell.get("dataset", "")

    @property
    def train_datasets(self) -> tuple[str, ...]:
        """The sets that were trained on, or that the pictures trained on were made from; () where nothing was.

        Each of PraNet's five test sets of polyps counts as that of its training set, and stands in its place.
        """
        training = self.cell if self.kind == "training" else self.cell.get("training") or {}
        made = training.get("generated")
        names = tuple(made["dataset"].split("+") if made else training.get("train_datasets", ()))
        return (self.dataset,) if names == (POLYPS,) and self.dataset in TEST_SETS else names

    @property
    def images(self) -> int:
        """Number of images seen in training, or measured."""
        if self.kind == "training":
            return self.cell["images"]
        return 0 if self.objects is None else self.objects["image"].nunique()

    def variants(self, table: str) -> list[str]:
        """The variants under which `table` shows this record; empty if it does not."""
        places = (place.partition(":") for place in self.tables)
        return [variant for name, _, variant in places if name == table]


def write_record(folder: Path, record: Record) -> Path:
    """Write `record` to `<folder>/<key>.json.gz`, whole or not at all. The same record always gives the same bytes.

    What describes its objects is written to `<folder>/objects` first, unless it is there.
    """
    data = _plain(asdict(record) | {"format": FORMAT, "objects": _pack(record.objects)})
    data["cell"] = _plain(record.cell, digits=17)  # exact: the key is its hash
    if data["objects"]:
        columns = data["objects"]["columns"]
        described = _json({name: columns.pop(name) for name in DESCRIPTIVE if name in columns})
        data["objects"]["described"] = name = hashlib.sha256(described).hexdigest()[:20]
        path = folder / OBJECTS / f"{name}{SUFFIX}"
        if not path.is_file():
            write_atomically(path, _compressed(described))
    path = folder / f"{record.key}{SUFFIX}"
    write_atomically(path, _compressed(_json(data)))
    return path


def read_record(path: Path) -> Record | None:
    """The record at `path`; None when there is none, or the file is damaged (no gzip, or no JSON inside).

    A damaged file is renamed `*.corrupt` with a warning, so that the cell is run again and nothing is lost. An intact
    file that this version cannot read is left as it is: raises `InputError` with both versions, or with what is wrong.
    So is a record whose file in the folder `objects` is missing or damaged.
    """
    try:
        data = json.loads(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (EOFError, zlib.error, ValueError, gzip.BadGzipFile) as error:
        corrupt = path.with_name(path.name + ".corrupt")
        os.replace(path, corrupt)
        warnings.warn(f"damaged record, run again: {path} ({error or type(error).__name__}); kept as {corrupt.name}",
                      stacklevel=2)  # fmt: skip
        return None
    return _record(data, path)


def _record(data: Any, path: Path) -> Record:
    """The record in a file's JSON; raises `InputError` where this version cannot read it."""
    if not isinstance(data, dict) or not {"format", "key", "kind", "cell"} <= data.keys():
        raise InputError(f"{path} is no record of SAMtune: move it out of the folder")
    data.pop("status", None)  # of the first records, always "done"
    form = data.pop("format")
    strange = [f"format {form}"] if form not in range(1, FORMAT + 1) else []
    strange += [f"field {name!r}" for name in sorted(data.keys() - {one.name for one in fields(Record)})]
    strange += [f"kind {data['kind']!r}"] if data["kind"] not in KINDS else []
    if strange:
        written = data.get("packages", {}).get("samtune", "of an unknown version")
        raise InputError(
            f"{path} was written by SAMtune {written}; this is SAMtune {__version__}, which reads formats to {FORMAT} "
            f"and does not know its {', '.join(strange)}: use the version that wrote it, or a later one"
        )
    if data["key"] + SUFFIX != path.name:
        raise InputError(f"{path} holds the record {data['key']}: name it {data['key']}{SUFFIX}, or move it away")
    data["objects"] = _unpack(data.get("objects"), path)
    return Record(**data | {"tables": tuple(data.get("tables", ())), "curve": tuple(data.get("curve", ()))})


def read_records(folder: Path) -> list[Record]:
    """All valid records in `folder`, sorted by key; [] where there is no folder."""
    records = (read_record(path) for path in sorted(folder.glob(f"*{SUFFIX}")))
    return [record for record in records if record is not None]


def cell_of(record: Record) -> Cell:
    """The cell of a record."""
    return cell_from_plain(record.kind, record.cell, record.tables)


def trainings_of(records: Iterable[Record], results: Path) -> list[Record]:
    """The training records that evaluation records need, each once.

    Args:
        records: of evaluations.
        results: the folder `results/<profile>`.
    """
    keys = dict.fromkeys(need.key() for record in records for need in cell_of(record).needs if need.kind == "training")
    known = {record.key: record for record in read_records(results / "records")}
    return [known[key] for key in keys if key in known]


def main_records(records: Iterable[Record], table: str, dataset: str, prompt: str, seed: int) -> dict[str, Record]:
    """By method: the evaluation that `table` shows without a variant, trained on `dataset` or not trained at all.

    Args:
        records: searched in their order; of several backbones the first one is taken.
        table: its name.
        dataset: measured.
        prompt: in the measurement.
        seed: of the run.
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
    """A table by columns: numbers as they are (not a number: null), text as indices into its distinct values.

    Dice that follows from the IoU is named and not stored.
    """
    if frame is None:
        return None
    columns = {}
    for name in frame.columns:
        column = frame[name]
        if name == "dice" and "iou" in frame and np.allclose(column, _dice(frame["iou"]), equal_nan=True):
            continue
        if pd.api.types.is_numeric_dtype(column):
            columns[name] = {"values": [_plain(value) for value in column.tolist()]}
        else:
            codes, names = pd.factorize(column.fillna("").astype(str))
            columns[name] = {"codes": codes.tolist(), "names": list(names)}
    return {"rows": len(frame), "names": list(frame.columns), "columns": columns}


def _unpack(packed: Mapping[str, Any] | None, path: Path) -> pd.DataFrame | None:
    if packed is None:
        return None
    described = {}
    if "described" in packed:
        file = path.parent / OBJECTS / f"{packed['described']}{SUFFIX}"
        try:
            described = _described(file)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise InputError(
                f"{path} needs {file}, which is {'damaged' if file.is_file() else 'missing'}: copy it from where the "
                "record comes from (in the repository: git checkout), or remove both, and the cell is run again"
            ) from error
    columns = {
        name: described[name] if name in described else _values(packed["columns"], name) for name in packed["names"]
    }
    for name, values in columns.items():
        if len(values) != packed["rows"]:
            raise ValueError(f"column {name} has {len(values)} rows of {packed['rows']}")
    return pd.DataFrame(columns)


@cache  # one file serves many records
def _described(file: Path) -> dict[str, np.ndarray]:
    columns = json.loads(gzip.decompress(file.read_bytes()))
    return {name: _values(columns, name) for name in columns}


def _values(columns: Mapping[str, Any], name: str) -> np.ndarray:
    if name == "dice" and name not in columns:
        return _dice(_values(columns, "iou"))
    column = columns[name]
    if "codes" in column:
        return np.array(column["names"] or [""], dtype=object)[np.array(column["codes"], dtype=int)]
    values = column["values"]
    whole = bool(values) and all(isinstance(value, int) for value in values)
    return np.array(values, dtype=np.int64 if whole else np.float64)  # null becomes not a number


def _dice(iou: Any) -> Any:
    return 2 * iou / (1 + iou)


def _json(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def _compressed(text: bytes) -> bytes:
    return gzip.compress(text, compresslevel=9, mtime=0)


def _plain(value: Any, digits: int = DIGITS) -> Any:
    """`value` as JSON can hold it: floats with `digits` significant digits; infinite and undefined ones as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item, digits) for name, item in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), digits)
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    if isinstance(value, Iterable):
        return [_plain(item, digits) for item in value]
    raise TypeError(f"a record cannot hold {value!r}")
