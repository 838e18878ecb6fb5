"""What a row of an ablation varies, read from its cell: the columns `option` and `value` of the tables."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import ModuleType

from samtune.evaluation import EvaluationConfig
from samtune.methods import METHODS
from samtune.study import asam, sam_sp, spt
from samtune.study.records import Record
from samtune.training_config import TrainingConfig

# Not varied: chosen by a rule, or what the profile and the backbone ask for.
NEVER = {"learning_rate", "batch_size", "accumulate", "image_size", "mask_size"}
MEASUREMENT = {field.name for field in fields(EvaluationConfig)}


def varied(record: Record, table: str, variant: str) -> dict[str, object]:
    """The options, with their values, that `record` varies where `table` shows it as `variant`; {} for variant "".

    These are: options of the method or its training that are `unusual`; options of the measurement; and what the study
    says of the row in `ALONG` and `LENGTHS`. `prompt` is that of the training, `images` the number it saw, `trained_as`
    its method where that is another one. A method's option that only the measurement changes is called `test_<option>`.
    """
    cell = record.cell
    training = cell if record.kind == "training" else cell.get("training")
    hyper = {} if training is None else training["hyper"]
    # Of pictures that are generated, `ALONG` alone says what is varied: their other options are the profile's.
    measured = {} if record.kind == "generation" and table == asam.ABLATION else cell.get("options", {})
    if not variant:
        return {}
    if table == "learning_rates":
        return {"learning_rate": hyper["learning_rate"]}
    trained = {}
    if training is not None:
        before = METHODS[record.method].options_before if record.method in METHODS else {}
        trained = {**before, **hyper, "prompt": training["prompt"]}
    found = unusual(trained, record.method, table)
    if training is not None and training["method"] != record.method:
        found["trained_as"] = training["method"]
    as_trained = _usual(record.method, table) | trained
    for name, value in measured.items():
        if name in MEASUREMENT or name not in as_trained:
            found[name] = value
        elif value != as_trained[name]:
            found[f"test_{name}"] = value
    study, plain = _study(table), variant.removeprefix(f"{sam_sp.ON_BOTH}, ")
    if cell.get("target", usual := study.USUAL.get("target", "union")) != usual:  # generated images have none
        found["target"] = cell["target"]
    found |= study.ALONG.get(plain, {})
    if plain in study.LENGTHS:
        found["images"] = 0 if training is None else training["images"]
    return {name: value for name, value in found.items() if name not in NEVER}


def unusual(options: Mapping[str, object], method: str, table: str) -> dict[str, object]:
    """Those of `options` that differ from the defaults of the method and its training, and from the study's `USUAL`."""
    usual = _usual(method, table)
    return {name: value for name, value in options.items() if name not in usual or value != usual[name]}


def option_and_value(options: Mapping[str, object]) -> tuple[str, str]:
    """The two columns: names in alphabetical order, and their values in the same order, each joined by ", "."""
    values = [options[name] for name in sorted(options)]
    texts = [f"{v:g}" if isinstance(v, (int, float)) and not isinstance(v, bool) else str(v) for v in values]
    return ", ".join(sorted(options)), ", ".join(texts)


def _study(table: str) -> ModuleType:
    return next((study for name, study in (("sam_sp_", sam_sp), ("asam_", asam)) if table.startswith(name)), spt)


@cache
def _usual(method: str, table: str) -> dict[str, object]:
    parameters = inspect.signature(METHODS[method]).parameters.values() if method in METHODS else ()
    training = {field.name: field.default for field in fields(TrainingConfig)}
    return training | {one.name: one.default for one in parameters} | _study(table).USUAL
