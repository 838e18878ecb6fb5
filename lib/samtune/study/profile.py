"""Profiles: at what scale the study is run. `profiles/<name>.yaml` ships with the kit; users may write their own."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from samtune.common.errors import InputError, unknown
from samtune.common.paths import asset, resolve
from samtune.data.files import read_text

Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=1, le=1000)]  # of denoising
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Names = tuple[str, ...]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Notebook(_Strict):
    """How the profile runs one notebook.

    Fields:
        parameters: of the notebook, beside the profile's name.
    """

    parameters: dict[str, object] = {}


class Evaluation(_Strict):
    """What is measured.

    Fields:
        max_images: the first ones of each test split; 0: all.
        batch_size: images at once.
        prompts: kinds of prompts.
        metrics: of all sets; "iou" must be one of them.
        medical_metrics: in addition, for medical sets.
        camouflage_metrics: in addition, for sets of camouflaged objects.
    """

    max_images: Annotated[int, Field(ge=0)]
    batch_size: Count
    prompts: Annotated[Names, Field(min_length=1)]
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
    """One stage of the nano SAM's pre-training.

    Fields:
        steps: number of batches.
        image_size: side of the images, pixels.
        batch: images in a batch.
        learning_rate: at the beginning.
        decay: it falls to 0 over the stage.
    """

    steps: Count
    image_size: Count
    batch: Count
    learning_rate: Rate
    decay: bool = False


class Pretraining(_Strict):
    """Notebook 90. The shipped weights come from the cpu profile.

    Fields:
        sets: data sets to train on.
        pictures: the first ones of each set; 0: all.
        warm_up_steps: of the prompt encoder and mask decoder alone.
        stages: afterwards, of the whole model.
        processes: that share each batch.
    """

    sets: Names
    pictures: Annotated[int, Field(ge=0)]
    warm_up_steps: Count
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    processes: Count


class Generation(_Strict):
    """The images that are generated for ASAM.

    Fields:
        sets: the originals' data sets, as many images of each.
        pictures: how many images in all; ASAM's rivals are tuned on the same ones.
        ablation_pictures: the first so many of them, for ablations.
        recipe: of the inversion.
        captions: "classes" (their names), "blip2", or a file of captions (`diffusion.captions`).
        steps: of denoising.
        guided_masks: in pictures from noise, see `Denoising`; they then follow even a small ControlNet's masks.
        compared_steps: of denoising in the table of inversions, beside the authors' recipe; None: `steps`.
        compared_pictures: the first so many pictures, for that table; None: `ablation_pictures`.
        attack_steps: of the attack.
        batch: images at once.
        accumulate: batches for an optimiser step in the tuning on them; None: the profile's.
    """

    sets: Annotated[Names, Field(min_length=1)] = ("bsds500", "ccp", "car-parts")
    pictures: Count = 200
    ablation_pictures: Count = 40
    recipe: Literal["ddim", "null_text", "negative_prompt", "direct"] = "direct"
    captions: str = "classes"
    steps: Steps = 50
    guided_masks: bool = False
    compared_steps: Steps | None = None
    compared_pictures: Count | None = None
    attack_steps: Count = 10
    batch: Count = 1
    accumulate: Count | None = None


class Profile(_Strict):
    """Everything that differs between a smoke test and the paper's own scale.

    Fields:
        name: of the profile, and of its folder in `results`.
        description: one line for people.
        backbone: of the tables.
        other_backbones: for the claim that gains hold for all sizes.
        diffusion: folder or hub name of the latent diffusion pipeline.
        controlnet: its mask ControlNet, as `load_diffusion` takes it.
        attack_controlnet: another one for attacks and for pictures from noise, as ASAM's authors have; "": the same.
        precision: "auto", "fp32" or "bf16".
        device: "auto", "cpu", "cuda" or "mps".
        preprocess: "stretch" or "pad".
        seeds: of main tables and named controls.
        ablation_seeds: of the other ablations.
        images: seen by every training; null: the paper's own schedule.
        plateau_images: seen by one training of each method, to show where it stops improving; null: no such training.
        batch_size: in training.
        accumulate: batches for an optimiser step.
        workers: processes that load the pictures of a training, and threads that compute metrics while a card predicts.
        save_memory: trainings of the image encoder take less memory, more time; the same results.
        learning_rates: the grid, searched on validation for all methods; empty: no search.
        rates: by method, in place of the method's own: where the search over the grid begins, or the rate itself.
        evaluation: what is measured.
        pretraining: of the nano SAM.
        generation: of ASAM's images.
        datasets: by notebook.
        notebooks: in the order in which they are run.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    description: str
    backbone: str
    other_backbones: Names
    diffusion: str
    controlnet: str
    attack_controlnet: str = ""
    precision: Literal["auto", "fp32", "bf16"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    preprocess: Literal["stretch", "pad"]
    seeds: Seeds
    ablation_seeds: Seeds
    images: Count | None
    plateau_images: Count | None
    batch_size: Count
    accumulate: Count = 1
    workers: Annotated[int, Field(ge=0)] = 0
    save_memory: bool = False
    learning_rates: tuple[Rate, ...]
    rates: dict[str, Rate] = {}
    evaluation: Evaluation
    pretraining: Pretraining
    generation: Generation = Generation()
    datasets: dict[str, Annotated[Names, Field(min_length=1)]]
    notebooks: dict[str, Notebook]


def profile_names() -> list[str]:
    """The profiles that ship with the kit."""
    return sorted(path.stem for path in asset("profiles").glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """The profile of that name, or in the file `name` (ending in .yaml; a relative path starts at the repository root).

    A file with the key `base`, the name of a profile that ships, needs only a name and what differs from that profile;
    of `generation`, `datasets` and other mappings the keys that differ, but of `notebooks` all that are to be run.
    Raises `InputError`, one line: the known names, nearest first; or the file and what is wrong in it.
    """
    path = _path(name)
    data = _read(path)
    if "base" in data:
        if (name := str(data.pop("base"))) not in profile_names():
            raise unknown("profile as a base", name, profile_names())
        base = _read(_path(name))
        base["description"] = f"{base.pop('name')}, changed"
        if data.get("name") in profile_names():
            raise InputError(f"{path}: name is {data['name']!r}, as a profile's that ships: choose another")
        if isinstance(data.get("datasets"), dict):
            for notebook in data["datasets"].keys() - base["datasets"].keys():
                raise unknown("notebook", str(notebook), base["datasets"])
        for key, value in data.items():
            both = key != "notebooks" and isinstance(value, dict) and isinstance(base.get(key), dict)
            base[key] = base[key] | value if both else value
        data = base
    try:
        return Profile.model_validate_json(json.dumps(data, default=str))  # strict, but a list may be a tuple
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(_explain(one, Profile) for one in error.errors())) from error


def _path(name: str) -> Path:
    path = resolve(name) if name.endswith((".yaml", ".yml")) else asset("profiles") / f"{name}.yaml"
    if not path.is_file():
        raise (
            InputError(f"no such profile: {path}") if path.suffix in name else unknown("profile", name, profile_names())
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: a profile is a mapping of names to values")
    return data


def _explain(error: dict, model: type[BaseModel]) -> str:
    """One of pydantic's errors in words; for an unknown name it lists the known ones."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        for part in error["loc"][:-1]:
            field = model.model_fields.get(part) if isinstance(part, str) else None
            inner = field.annotation if field else None
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else Notebook
        return str(unknown("key", place.rpartition(".")[2], model.model_fields))
    if error["type"] == "missing":
        return f"{place} is missing"
    hint = ""
    if error["type"] == "float_type":
        with suppress(ValueError, TypeError):
            hint = f" (in YAML write {float(error['input'])!r})"
    return f"{place} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}{hint}"
