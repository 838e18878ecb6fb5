"""Cells: what to train and what to measure, as frozen dataclasses with a stable key.

A *training cell* gives a checkpoint, an *evaluation cell* gives metrics per object, a *generation cell* gives pictures
that open as a data set, a *timing cell* the speed of one step; each has one record at most.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar

from samtune.common.errors import InputError
from samtune.data.generated import PREFIX

NO_BACKBONE = "none"  # of what has none: truth, ellipse, grabcut, unet
Pairs = tuple[tuple[str, Any], ...]


class Cell(ABC):
    """What cells of every kind have. A kind is a frozen dataclass below, with a line in `KINDS`.

    Its fields, but for `tables`, are the configuration that its key is made of. A field added later needs a default:
    it enters the key only where it differs from that, so that older keys stay as they are. A default must therefore
    never be changed.

    Fields:
        tables: where the results are shown ("name" or "name:variant"); counts neither for equality nor for the key.
    """

    kind: ClassVar[str]
    # True: other cells read files that this one writes, so it is done only when they are there too.
    keeps_files: ClassVar[bool] = False
    folder: ClassVar[str] = "checkpoints"  # of the profile's results, where it keeps them
    tables: tuple[str, ...]

    @property
    def needs(self) -> tuple["Cell", ...]:
        """The cells whose files must be there before this one can run."""
        return tuple(value for value in vars(self).values() if isinstance(value, Cell))

    @property
    def parts(self) -> int:
        """The amount of work (images) that the run time is proportional to; used to estimate times."""
        return 1

    def key(self) -> str:
        """Stable name of the cell: 20 hexadecimal digits over everything but hardware and `tables`."""
        counted = (one for one in fields(self) if one.compare)
        values = {one.name: (getattr(self, one.name), one.default) for one in counted}
        configuration = {
            name: value.key() if isinstance(value, Cell) else value
            for name, (value, default) in values.items()
            if default is MISSING or value != default
        }
        text = json.dumps({"kind": self.kind, **configuration}, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def sets(self) -> tuple[str, ...]:
        """The data sets that it reads, without those that it needs other cells for."""
        read = (*getattr(self, "train_datasets", ()), *getattr(self, "dataset", "").split("+"))
        return tuple(name for name in read if name and not name.startswith(PREFIX))

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""


@dataclass(frozen=True)
class GenerationCell(Cell):
    """Pictures made by a latent diffusion model from the first `pictures` of real sets, with their masks.

    Fields:
        method: "inversion", "attack", "random" (noise of the attack's size in its place), "before" (what an attack
            starts from), "change" (what it changed, on the originals) or "sample" (from noise).
        dataset, split: what they are made from, several sets joined by "+", each giving as many.
        pictures: of them; which, see `samtune.data.generated.chosen_pictures`.
        diffusion, controlnet: as `load_diffusion` takes them; an attack's ControlNet may not be its inversion's.
            diffusion_hash: the hash of all their weights; of the autoencoder's where nothing else is used; with the
            hash of their settings where it is not "nano".
        backbone, weights_hash: the victim's; "none" where there is none.
        prompt: what the victim is given, one a mask.
        seed: draws noise and prompts.
        options: see `samtune.diffusion.generation`.
        inversion: of the same pictures and perhaps more; what "attack" and "random" start from. For "before" and
            "change": the attack.
    """

    kind: ClassVar[str] = "generation"
    keeps_files: ClassVar[bool] = True
    folder: ClassVar[str] = "generated"

    method: str
    dataset: str
    pictures: int
    diffusion: str
    diffusion_hash: str = ""
    controlnet: str = ""
    split: str = "train"
    backbone: str = NO_BACKBONE
    weights_hash: str = ""
    prompt: str = "none"
    seed: int = 0
    options: Pairs = ()
    inversion: "GenerationCell | None" = None
    tables: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", _pairs(self.options))
        object.__setattr__(self, "tables", tuple(self.tables))
        if self.inversion is None:
            return
        same_controlnet = self.controlnet == self.inversion.controlnet  # else the hash of all weights differs too
        for name in ("dataset", "split", "diffusion", *(["diffusion_hash"] if same_controlnet else [])):
            if getattr(self, name) != getattr(self.inversion, name):
                raise ValueError(f"{name} is {getattr(self, name)!r} here and not in the inversion")

    @property
    def name(self) -> str:
        """Under which the pictures open as a data set."""
        return f"{PREFIX}{self.key()}"

    @property
    def parts(self) -> int:
        return self.pictures

    def before(self) -> "GenerationCell":
        """Of an attack: the cell of what it starts from, the reconstructions by its own ControlNet."""
        return replace(self, method="before", options=(), inversion=self, tables=())

    def describe(self) -> str:
        return f"{self.method} of {self.pictures} pictures of {self.dataset} by {self.diffusion}, seed {self.seed}"


@dataclass(frozen=True)
class TrainingCell(Cell):
    """A method trained once. Precision and machine are no part of a cell.

    Fields:
        method: as on the command line.
        train_datasets: one set, or the union of several.
        backbone: "nano", "vit_b", ... or a checkpoint's path.
        seed: varies training and prompts only.
        images: seen in training.
        preprocess: "pad" or "stretch".
        prompt: the kinds drawn in training, joined by ",".
        target: "union" or "instances".
        hyper: all that differs from the method's defaults, as pairs or a dictionary.
        weights_hash: the hash of the backbone's weights.
        generated: the cell that makes the generated set among `train_datasets`, under its `name`.
        pictures: number of DIFFERENT images trained on, those that a generation cell draws (`chosen_pictures`); 0: all.
            `images` counts views.
    """

    kind: ClassVar[str] = "training"
    keeps_files: ClassVar[bool] = True

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
    generated: GenerationCell | None = None
    pictures: int = 0
    tables: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "train_datasets", tuple(self.train_datasets))
        _check_generated(self.train_datasets, self.generated)
        object.__setattr__(self, "hyper", _pairs(self.hyper))
        object.__setattr__(self, "tables", tuple(self.tables))

    @property
    def parts(self) -> int:
        return self.images

    def describe(self) -> str:
        return f"train {self.method} on {'+'.join(self.train_datasets)}, seed {self.seed}, {self.images} images"

    def evaluation(self, dataset: str, **options: Any) -> "EvaluationCell":
        """The cell that measures this training on `dataset`; `options` are `EvaluationCell`'s other fields."""
        shared = {name: getattr(self, name) for name in _SHARED}
        return EvaluationCell(**(shared | {"dataset": dataset, "training": self} | options))


@dataclass(frozen=True)
class EvaluationCell(Cell):
    """A method, trained (`training`) or not (None), measured on one part of one set.

    `backbone`, `seed` and `weights_hash` are the training's (`TrainingCell.evaluation` copies them); raises
    `ValueError` when they contradict it. `method` may be another one with the same trainable parameters (SAM-SP's two
    passes with the weights of LoRA).

    Fields:
        dataset, split: what is measured.
        target: "union" or "instances".
        prompt: a kind of prompt, see `prompts.parse_kind`.
        preprocess: "pad" or "stretch".
        seed: also draws the prompts.
        max_images: measures the first so many only (0: all).
        options: what else differs at test time.
        generated: the cell that makes `dataset`, where that is a generated set.
    """

    kind: ClassVar[str] = "evaluation"

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
    generated: GenerationCell | None = None
    tables: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        _check_generated((self.dataset,), self.generated)
        object.__setattr__(self, "options", _pairs(self.options))
        object.__setattr__(self, "tables", tuple(self.tables))
        for name in ("backbone", "seed", "weights_hash"):
            if self.training is not None and getattr(self, name) != getattr(self.training, name):
                raise ValueError(f"{name} is {getattr(self, name)!r} here and {getattr(self.training, name)!r} there")

    def describe(self) -> str:
        return f"measure {self.method} on {self.dataset} {self.split}, {self.prompt} prompt, seed {self.seed}"


@dataclass(frozen=True)
class TimingCell(Cell):
    """A step of a method timed on one device (`samtune.study.bench`).

    Fields:
        method: or "inversion", "attack" (`study.bench_generation`).
        phase: "encode", "decode", "train"; "evaluate" of an inversion or attack.
        batch: pictures in a step.
        precision: "fp32" or "bf16".
        compiled: is the image encoder compiled?
        device: what was timed, in words: here the machine is part of the cell.
        diffusion: the model that inverts or attacks; the backbone is then the victim's.
    """

    kind: ClassVar[str] = "timing"

    method: str
    backbone: str
    phase: str
    batch: int
    precision: str
    compiled: bool
    device: str
    tables: tuple[str, ...] = field(default=(), compare=False)
    diffusion: str = ""

    @property
    def parts(self) -> int:
        return self.batch

    def describe(self) -> str:
        return f"time {self.phase} of {self.method} on {self.backbone}, batch {self.batch}, {self.precision}"


_SHARED = ("method", "backbone", "seed", "weights_hash", "preprocess", "target")
KINDS: dict[str, type[Cell]] = {kind.kind: kind for kind in (GenerationCell, TrainingCell, EvaluationCell, TimingCell)}
_WITHIN = {"training": "training", "generated": "generation", "inversion": "generation"}  # fields that hold a cell


def plain_cell(cell: Cell) -> dict[str, Any]:
    """All fields but `tables` as plain data: pairs as dictionaries, a cell within it likewise."""
    values = {one.name: getattr(cell, one.name) for one in fields(cell) if one.compare}
    for name, value in values.items():
        if isinstance(value, Cell):
            values[name] = plain_cell(value)
        elif name in ("hyper", "options"):
            values[name] = dict(value)
    return json.loads(json.dumps(values))


def cell_from_plain(kind: str, values: Mapping[str, Any], tables: tuple[str, ...] = ()) -> Cell:
    """The cell of which `plain_cell` gave `values`. Raises `InputError` on anything else."""
    try:
        within = {
            name: cell_from_plain(what, values[name]) for name, what in _WITHIN.items() if values.get(name) is not None
        }
        return KINDS[kind](**{**values, **within}, tables=tables)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a cell of this version of SAMtune: {error}") from error


def _check_generated(datasets: tuple[str, ...], generated: GenerationCell | None) -> None:
    """A generated set is read only by cells that need the cell that makes it."""
    named = [name for name in datasets if name.startswith(PREFIX)]
    if named != ([generated.name] if generated else []):
        raise ValueError(f"generated sets {named} are read, and {generated.name if generated else 'none'} is made")


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
