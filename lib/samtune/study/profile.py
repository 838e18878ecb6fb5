"""Profiles: at what scale the study is run. `profiles/<name>.yaml` ships with the kit; a path names one's own."""

import json
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from samtune.common.errors import InputError, unknown
from samtune.common.paths import asset, resolve

Count = Annotated[int, Field(ge=1)]
Names = tuple[str, ...]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Notebook(_Strict):
    """How the profile runs one notebook: about how long it takes, and parameters beyond the profile's name."""

    minutes: float
    parameters: dict[str, object] = {}


class Evaluation(_Strict):
    """What is measured: the first `max_images` of each test part (0: all), under `prompts`, by `metrics`; of medical
    and camouflage sets also by those named for their domain."""

    max_images: Annotated[int, Field(ge=0)]
    batch_size: Count
    prompts: Names
    metrics: Names
    medical_metrics: Names
    camouflage_metrics: Names

    @field_validator("metrics")
    @classmethod
    def _with_iou(cls, metrics: Names) -> Names:
        if "iou" not in metrics:
            raise ValueError("iou must be among them: learning rates are chosen by it")
        return metrics


class Stage(_Strict):
    """`steps` batches of `batch` pictures at `image_size` pixels; `decay`: the rate falls to 0 over the stage."""

    steps: Count
    image_size: Count
    batch: Count
    learning_rate: float
    decay: bool = False


class Pretraining(_Strict):
    """Notebook 90: `warm_up_steps` of the prompt side alone, then the `stages`, on the first `pictures` of each of
    `sets` (0: all), in `processes` processes. The shipped weights come from the cpu profile."""

    sets: Names
    pictures: Annotated[int, Field(ge=0)]
    warm_up_steps: Count
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    processes: Count


class Generation(_Strict):
    """Generated pictures (notebooks 30, 31): `pictures` of `sets`, as many of each; ablations on the first
    `ablation_pictures` of them; inversion by `recipe`, in `steps`; `attack_steps` of the attack. `batch`: at once."""

    sets: Names = ("bsds500", "ccp", "car-parts")
    pictures: Count = 200
    ablation_pictures: Count = 40
    recipe: str = "direct"
    steps: Count = 50
    attack_steps: Count = 10
    batch: Count = 1


class Profile(_Strict):
    """Everything that differs between a smoke test and the paper's own scale.

    Fields:
        backbone: of the tables; other_backbones: for the claim that gains hold for all sizes.
        diffusion, controlnet: folder or hub name of the latent diffusion pipeline and of its mask ControlNet.
        precision: "auto", "fp32" or "bf16".
        device: "auto", "cpu", "cuda" or "mps".
        preprocess: "stretch" or "pad".
        seeds: of main tables and named controls; ablation_seeds: of the other ablations.
        images: that every training cell sees; null: the paper's own schedule.
        plateau_images: of the one cell a method that is trained until it no longer improves; null: none.
        batch_size: in training; accumulate: batches that make a step.
        learning_rates: the grid in which all methods look for the best on validation; empty: each method's own rate.
        datasets: by notebook.
        notebooks: in the order in which they are run.
    """

    name: str
    description: str
    backbone: str
    other_backbones: Names
    diffusion: str
    controlnet: str
    precision: Literal["auto", "fp32", "bf16"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    preprocess: Literal["stretch", "pad"]
    seeds: Seeds
    ablation_seeds: Seeds
    images: Count | None
    plateau_images: Count | None
    batch_size: Count
    accumulate: Count = 1
    learning_rates: tuple[float, ...]
    evaluation: Evaluation
    pretraining: Pretraining
    generation: Generation = Generation()
    datasets: dict[str, Names]
    notebooks: dict[str, Notebook]


def profile_names() -> list[str]:
    """The profiles that ship with the kit."""
    return sorted(path.stem for path in asset("profiles").glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """The profile of that name, or the one in the file `name` (ending in .yaml, relative to the repository root).

    Raises `InputError`, one line: the known names, nearest first; or the file and what is wrong in it.
    """
    path = resolve(name) if name.endswith((".yaml", ".yml")) else asset("profiles") / f"{name}.yaml"
    if not path.is_file():
        raise (
            InputError(f"no such profile: {path}") if path.suffix in name else unknown("profile", name, profile_names())
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise InputError(f"{path}: a profile is a mapping of names to values")
        return Profile.model_validate_json(json.dumps(data))  # strict, but a list is good where a tuple is due
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(_explain(one, Profile) for one in error.errors())) from error


def _explain(error: dict, model: type[BaseModel]) -> str:
    """One of pydantic's errors in words; for a name that is not known, those that are."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        for part in error["loc"][:-1]:
            field = model.model_fields.get(part) if isinstance(part, str) else None
            inner = field.annotation if field else None
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else Notebook
        return str(unknown("key", place.rpartition(".")[2], model.model_fields))
    if error["type"] == "missing":
        return f"{place} is missing"
    return f"{place} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
