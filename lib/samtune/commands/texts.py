"""Reads the options of the commands, and writes numbers as text."""

import inspect
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from samtune.common.errors import InputError
from samtune.common.paths import names_a_file

if TYPE_CHECKING:
    import pandas as pd

    from samtune.commands.settings import TuneSettings


def file_as_absolute(name: str) -> str:
    """A file name as an absolute path, relative to the working directory as usual on the command line; other names as
    they are.
    """
    return str(Path(name).expanduser().resolve()) if names_a_file(name) else name


def method_options(options: list[str], method: str) -> dict[str, Any]:
    """ "name=value" texts as a dictionary. The method's signature tells each value's type; "none" is None.

    Raises `InputError` on a value of another type, or without "=".
    """
    from samtune.methods import METHODS

    parameters = dict(inspect.signature(METHODS[method]).parameters) if method in METHODS else {}
    parameters.pop("sam", None)  # no option
    pairs: dict[str, Any] = {}
    for one in options:
        name, equals, value = (part.strip() for part in one.partition("="))
        if not equals:
            raise InputError(f"--option {one}: expected name=value")
        pairs[name] = None if value.lower() == "none" else value
        if name in parameters:  # else `tune` names the known ones
            kind = parameters[name].annotation
            try:
                pairs[name] = TypeAdapter(kind).validate_python(pairs[name])
            except ValidationError as error:
                raise InputError(f"--option {one}: expected {getattr(kind, '__name__', kind)}") from error
    return pairs


def coordinates(flag: str, text: str, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Numbers separated by commas, as many as one of `counts`. Raises `InputError` with the flag and
    the form expected.
    """
    form = "x0,y0,x1,y1" if 4 in counts else "x,y or x,y,label"
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts or not all(map(math.isfinite, values)):
        raise InputError(f"{flag} {text}: expected {form} in pixels")
    return values


@contextmanager
def names_as_flags() -> Iterator[None]:
    """Inside this context, names of parameters in error messages become flags of the command line."""
    from samtune.commands.settings import RANGES

    try:
        yield
    except InputError as error:
        words = re.sub(r"\bmask_(coding|suffix)(?:=| )'([^']+)'", r"--mask-\1 \2", str(error))
        words = re.sub(r"\b(batch_size|accumulate) (?=\d)", lambda found: f"--{found[1].replace('_', '-')} ", words)
        words = words.replace("or save_memory (", "or --save-memory (")
        words = re.sub(f"^({'|'.join(RANGES)}) (?=is )", lambda found: f"--{found[1].replace('_', '-')} ", words)
        raise InputError(words) from error


def scores_text(scores: "pd.DataFrame") -> str:
    """A table of IoU by prompt: zero-shot and tuned."""
    width = max(len("mean IoU"), *(len(name) for name in scores.index))
    lines = [f"{'mean IoU':{width}}  zero-shot   tuned   change"]
    for prompt, row in scores.iterrows():
        change = row["tuned"] - row["zero_shot"]
        lines.append(f"{prompt:{width}}  {row['zero_shot']:9.3f}  {row['tuned']:6.3f}  {change:+7.3f}")
    return "\n".join(lines)


def worse_text(scores: "pd.DataFrame", settings: "TuneSettings") -> str:
    """One line on prompts for which tuning lowered the IoU, and what to try; "" where there are none."""
    worse = [f"{prompt} by {row['zero_shot'] - row['tuned']:.3f}" for prompt, row in scores.iterrows()
             if row["zero_shot"] - row["tuned"] >= 0.0005]  # fmt: skip
    if not worse:
        return ""
    advice = f"more pictures, or a method other than {settings.method}"
    if settings.epochs is not None or settings.train_images is not None:
        advice = "to leave --epochs and --train-images out, so that it is trained as long as it gets better"
    if settings.learning_rate is not None:
        advice = "to leave --learning-rate out, so that a better one is searched"
    return f"tuning has made it WORSE than SAM untuned, with {', '.join(worse)}: try {advice}"
