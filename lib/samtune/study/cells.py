"""Cells: what to train and what to measure, as frozen dataclasses with a stable key.

A *training cell* gives a checkpoint, an *evaluation cell* gives metrics per object; each has one record at most.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from samtune.common.errors import InputError

NO_BACKBONE = "none"  # of what has none: truth, ellipse, grabcut, unet
Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class TrainingCell:
    """A method trained once.

    `method` as on the command line; `train_datasets` one set or the union of several; `backbone` "nano", "vit_b",
    ... or a checkpoint's path, `weights_hash` the hash of its weights; `seed` varies training and prompts only;
    `images` seen in training; `preprocess` "pad" or "stretch"; `prompt` the kinds drawn in training; `target`
    "union" or "instances"; `hyper` all that differs from the method's defaults, as pairs or a dictionary. Precision
    and machine are no part of a cell. `tables` says where its results are shown ("name" or "name:variant") and does
    not count for equality or key.
    """

    method: str
    train_datasets: tuple[str, ...]
    backbone: str
    seed: int = 0
    images: int = 0
    preprocess: str = "stretch"
    prompt: str = "box"
    target: str = "union"
    hyper: Pairs = ()
    weights_hash: str = ""
    tables: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "train_datasets", tuple(self.train_datasets))
        object.__setattr__(self, "hyper", _pairs(self.hyper))
        object.__setattr__(self, "tables", tuple(self.tables))

    def key(self) -> str:
        """Stable name of the cell: 20 hexadecimal digits over everything but hardware and `tables`."""
        return _hash("training", _configuration(self))

    def describe(self) -> str:
        """One line for people."""
        return f"train {self.method} on {'+'.join(self.train_datasets)}, seed {self.seed}, {self.images} images"

    def evaluation(self, dataset: str, **options: Any) -> "EvaluationCell":
        """The cell that measures this training on `dataset`; `options` are `EvaluationCell`'s other fields."""
        shared = {name: getattr(self, name) for name in _SHARED}
        return EvaluationCell(**(shared | {"dataset": dataset, "training": self} | options))


@dataclass(frozen=True)
class EvaluationCell:
    """A method, trained (`training`) or not (None), measured on one part of one set.

    `dataset`, `split`, `target` ("union" or "instances"), `prompt` (one of `samtune.prompts.KINDS`), `preprocess`;
    `max_images` measures the first so many only (0: all); `options` what else differs at test time. `method`,
    `backbone`, `seed` and `weights_hash` are the training's (`TrainingCell.evaluation` copies them); the seed also
    draws the prompts. Raises `ValueError` when they contradict the training. `tables` as in `TrainingCell`.
    """

    method: str
    backbone: str
    dataset: str
    split: str = "test"
    target: str = "union"
    prompt: str = "box"
    preprocess: str = "stretch"
    seed: int = 0
    max_images: int = 0
    options: Pairs = ()
    weights_hash: str = ""
    training: TrainingCell | None = None
    tables: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", _pairs(self.options))
        object.__setattr__(self, "tables", tuple(self.tables))
        for name in ("method", "backbone", "seed", "weights_hash"):
            if self.training is not None and getattr(self, name) != getattr(self.training, name):
                raise ValueError(f"{name} is {getattr(self, name)!r} here and {getattr(self.training, name)!r} there")

    def key(self) -> str:
        """Stable name of the cell: 20 hexadecimal digits over everything but hardware and `tables`."""
        configuration = _configuration(self)
        if self.training is not None:
            configuration["training"] = self.training.key()
        return _hash("evaluation", configuration)

    def describe(self) -> str:
        """One line for people."""
        return f"measure {self.method} on {self.dataset} {self.split}, {self.prompt} prompt, seed {self.seed}"


_SHARED = ("method", "backbone", "seed", "weights_hash", "preprocess", "target")
Cell = TrainingCell | EvaluationCell


def plain_cell(cell: Cell) -> dict[str, Any]:
    """All fields but `tables` as plain data, pairs as dictionaries."""
    values = {one.name: getattr(cell, one.name) for one in fields(cell) if one.compare}
    for name in ("hyper", "options"):
        if name in values:
            values[name] = dict(values[name])
    if values.get("training") is not None:
        values["training"] = plain_cell(values["training"])
    return json.loads(json.dumps(values))


def cell_to_json(cell: Cell) -> str:
    """The cell as one line of json, `tables` included, for `samtune cell`."""
    kind = "training" if isinstance(cell, TrainingCell) else "evaluation"
    return json.dumps({"kind": kind, "cell": plain_cell(cell), "tables": cell.tables}, sort_keys=True)


def cell_from_json(text: str) -> Cell:
    """The cell that `cell_to_json` wrote. Raises `InputError` on anything else."""
    try:
        data = json.loads(text)
        values = data["cell"]
        if data["kind"] == "training":
            return TrainingCell(**values, tables=tuple(data["tables"]))
        training = values.pop("training")
        return EvaluationCell(**values, training=training and TrainingCell(**training), tables=tuple(data["tables"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"not a cell: {error}") from error


def _configuration(cell: Cell) -> dict[str, Any]:
    """The fields that differ from their defaults, so that a field added later leaves older keys as they are.

    A default must therefore never be changed.
    """
    counted = (one for one in fields(cell) if one.compare)
    values = {one.name: (getattr(cell, one.name), one.default) for one in counted}
    return {name: value for name, (value, default) in values.items() if default is MISSING or value != default}


def _pairs(values: Mapping[str, Any] | Pairs) -> Pairs:
    """Options as pairs sorted by name, their values hashable; raises `ValueError` for a name given twice."""
    pairs = sorted((str(name), _frozen(value)) for name, value in dict(values).items())
    if len(pairs) != len(values):
        raise ValueError(f"an option is given twice: {values}")
    return tuple(pairs)


def _frozen(value: Any) -> Any:
    """Lists as tuples, numbers as Python's own and whole floats as integers: equal cells must have equal keys."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hash(kind: str, configuration: Mapping[str, Any]) -> str:
    text = json.dumps({"kind": kind, **configuration}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
