"""The parameters of a notebook, checked inside the notebook.

papermill itself only warns at unknown names, and checks no types. With this check, papermill, nbval and Jupyter are all
strict.
"""

import ast
import json
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from samtune.common.errors import InputError, unknown
from samtune.data.registry import describe
from samtune.study.profile import Profile, load_profile


def _known_profile(name: str) -> str:
    load_profile(name)  # its errors list the known ones
    return name


def _known_dataset(name: str) -> str:
    describe(name)
    return name


def _known_backbone(name: str) -> str:
    from samtune.sam.build import BACKBONES  # not above: it brings torch

    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    return name


def _known_group(study: str, name: str) -> str:
    known = import_module(f"samtune.{study}").group_names()  # not above: it brings torch
    if name not in known:
        raise unknown("group of ablations", name, known)
    return name


ProfileName = Annotated[str, AfterValidator(_known_profile)]
DatasetName = Annotated[str, AfterValidator(_known_dataset)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _known_changes(method: str, changes: dict[str, Any]) -> dict[str, Any]:
    import_module("samtune.study.own_row").own_variant(method, changes)  # not above: it brings torch
    return changes


Changes = dict[str, bool | int | float | str | None]  # of a method's options


class NotebookParameters(BaseModel):
    """Base of a notebook's parameters. A subclass names each parameter with its type; the notebook has the defaults.

        parameters = StartHere.from_notebook(globals())

    Types are strict: a number is no text, and text no number; an int may stand for a float. Only lists may be given as
    text, JSON or YAML, because `papermill -p datasets '["magnetic-tile"]'` passes text. Where a parameter is empty ([],
    {} or None), the profile's value for `notebook` is taken, if it has one: data sets, seeds, and what else it sets.
    Where data sets are named, the profile's other lists of data sets keep those among them.
    """

    notebook: ClassVar[str] = ""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _list_from_text(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        return _listed(value) if (get_origin(annotation) or annotation) is list else value

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """Parameters from a notebook's `globals()`; to be called right after the parameters cell.

        Names that the model does not know are refused, in the parameters cell or injected by papermill. Raises
        `InputError` with the parameter, its value and the type expected.
        """
        declared = set(namespace.get("__annotations__", {})) | _injected_names(namespace)
        values = {name: namespace[name] for name in declared | set(cls.model_fields) if name in namespace}
        if cls.notebook and isinstance(values.get("profile"), str):
            values = cls._filled(values, load_profile(values["profile"]))
        return cls._checked(values)

    @classmethod
    def of_profile(cls, profile: Profile) -> Self:
        """The parameters with which a profile runs the notebook. Raises `InputError` as `from_notebook` does; the
        field `profile` says nothing, as the profile may be of a file.
        """
        empty = {name: _empty(one.annotation) for name, one in cls.model_fields.items()}
        return cls._checked(cls._filled(empty | {"profile": "smoke"}, profile))

    @classmethod
    def _filled(cls, values: dict[str, Any], profile: Profile) -> dict[str, Any]:
        """`values`, those of the profile where they are empty. Raises `InputError` where it has no data sets either."""
        given = profile.notebooks.get(cls.notebook)
        usual = {"datasets": list(profile.datasets.get(cls.notebook, ())), "seeds": list(profile.seeds)}
        usual = {k: v for k, v in usual.items() if k in cls.model_fields} | (given.parameters if given else {})
        if isinstance(named := _listed(values.get("datasets")), list) and named:
            lists = [k for k, field in cls.model_fields.items() if field.annotation == list[DatasetName]]
            usual |= {k: [name for name in usual[k] if name in named] for k in lists if k in usual}
        values = values | {k: v for k, v in usual.items() if values.get(k) in (None, [], {})}
        if not values["datasets"]:
            raise InputError(f"profile {profile.name} has no datasets for {cls.notebook}: name some")
        return values

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> Self:
        try:
            return cls(**values)
        except ValidationError as error:
            # `from None`: the reader of a notebook needs this line, not pydantic's traceback.
            raise InputError("; ".join(cls._explain(each) for each in error.errors())) from None

    @classmethod
    def _explain(cls, error: Any) -> str:
        name, *inside = error["loc"] or ("parameters",)
        if error["type"] == "extra_forbidden":
            return str(unknown("parameter", name, cls.model_fields))
        if error["type"] == "missing":
            return f"parameter {name!r} is missing from the parameters cell"
        if error["type"] == "value_error":
            return f"parameter {name!r}: {error['ctx']['error']}" if error["loc"] else str(error["ctx"]["error"])
        place = f"parameter {name!r}" + "".join(f"[{index}]" for index in inside)
        value = error["input"]
        found = f"{place} = {value!r} ({type(value).__name__})"
        if error["type"].endswith(("_type", "_parsing", "literal_error")) and name in cls.model_fields:
            return f"{found}: expected {_describe(cls.model_fields[name].annotation)}"
        return f"{found}: {error['msg'][0].lower()}{error['msg'][1:]}"


class StartHere(NotebookParameters):
    """Parameters of `00_start_here`."""

    notebook: ClassVar[str] = "00_start_here"
    profile: ProfileName
    datasets: list[DatasetName]
    seeds: list[Seed]


class Spt(NotebookParameters):
    """Parameters of `10_spt`."""

    notebook: ClassVar[str] = "10_spt"
    profile: ProfileName
    datasets: list[DatasetName]
    seeds: list[Seed]
    controls: list[DatasetName]
    union: bool | None
    changes: Annotated[Changes, AfterValidator(partial(_known_changes, "spt"))]


class SptAblations(NotebookParameters):
    """Parameters of `11_spt_ablations`."""

    notebook: ClassVar[str] = "11_spt_ablations"
    profile: ProfileName
    datasets: list[DatasetName]
    seeds: list[Seed]
    groups: list[Annotated[str, AfterValidator(partial(_known_group, "study.spt"))]]
    transfer: list[DatasetName]


class SamSp(NotebookParameters):
    """Parameters of `20_sam_sp`."""

    notebook: ClassVar[str] = "20_sam_sp"
    profile: ProfileName
    datasets: list[DatasetName]
    seeds: list[Seed]
    baselines: list[Literal["decoder_tuning", "lora_samed", "unet"]]
    changes: Annotated[Changes, AfterValidator(partial(_known_changes, "sam_sp"))]
    speed: list[Annotated[str, AfterValidator(_known_backbone)]]


class SamSpAblations(NotebookParameters):
    """Parameters of `21_sam_sp_ablations`."""

    notebook: ClassVar[str] = "21_sam_sp_ablations"
    profile: ProfileName
    datasets: list[DatasetName]
    seeds: list[Seed]
    groups: list[Annotated[str, AfterValidator(partial(_known_group, "study.sam_sp"))]]


class Asam(NotebookParameters):
    """Parameters of `30_asam`."""

    notebook: ClassVar[str] = "30_asam"
    profile: ProfileName
    datasets: list[DatasetName]
    seeds: list[Seed]


class AsamAblations(NotebookParameters):
    """Parameters of `31_asam_ablations`."""

    notebook: ClassVar[str] = "31_asam_ablations"
    profile: ProfileName
    datasets: list[DatasetName]
    seeds: list[Seed]
    groups: list[Annotated[str, AfterValidator(partial(_known_group, "study.asam"))]]


class YourData(NotebookParameters):
    """Parameters of `40_your_data`, which has no profile: `TuneSettings` checks what they mean."""

    images: str
    masks: str
    out: str
    method: str
    backbone: str
    prompts: list[str]
    mask_coding: str
    mask_suffix: str
    skip_bad: bool
    train_images: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _both_folders(self) -> Self:
        if bool(self.images) != bool(self.masks):
            raise ValueError("images and masks belong together: name both folders, or none")
        return self


class TrainNanoModels(NotebookParameters):
    """Parameters of `90_train_nano_models`."""

    notebook: ClassVar[str] = "90_train_nano_models"
    profile: ProfileName
    datasets: list[DatasetName]
    train: bool | None
    ship: bool

    @model_validator(mode="after")
    def _ships_what_it_trained(self) -> Self:
        if self.ship and not (self.train and self.profile == "cpu"):
            raise ValueError("ship replaces the kit's weights: it wants profile cpu and train True, a run of hours")
        return self


BY_NOTEBOOK = {one.notebook: one for one in NotebookParameters.__subclasses__() if one.notebook}


def _empty(annotation: Any) -> Any:
    """The value of a parameter that is not given."""
    return {list: [], dict: {}, bool: False}.get(get_origin(annotation) or annotation)


def _listed(value: Any) -> Any:
    """A list that is written as text; anything else as it is."""
    for parse in (json.loads, yaml.safe_load):  # YAML too: shells strip the quotes inside ["magnetic-tile"]
        with suppress(ValueError, yaml.YAMLError):
            if isinstance(value, str) and isinstance(parsed := parse(value), list):
                return parsed
    return value


def _injected_names(namespace: dict[str, Any]) -> set[str]:
    """Names that papermill injected: those assigned in cells of IPython's history that begin with its comment."""
    cells = [source for source in namespace.get("In", []) if source.startswith("# Parameters\n")]
    statements = [statement for source in cells for statement in ast.parse(source).body]
    return {target.id for statement in statements for target in getattr(statement, "targets", [])}


def _describe(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_describe(get_args(annotation)[0])}"
    if get_origin(annotation) is UnionType:
        return " or ".join(map(_describe, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _describe(get_args(annotation)[0])
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
