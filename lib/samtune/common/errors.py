"""`InputError`, which users are meant to read: what is wrong, where, and what to do."""

import difflib
import math
import numbers
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input from the user: a file, a name, an option. The message is one clear line."""


def counted(number: int, noun: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """ "2.5 s", "45 s", "12 min", "1.6 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_range(name: str, value: float, least: float, most: float = math.inf, above: bool = False) -> None:
    """Raise `InputError` unless least <= value <= most; with `above`, least < value. Not a number (nan) is refused."""
    if not isinstance(value, numbers.Real):
        raise InputError(f"{name} is {value!r}: it has to be a number")
    if (value > least if above else value >= least) and value <= most:  # false for what is no number (nan)
        return
    end = "" if math.isinf(most) else f" and at most {most:g}"
    raise InputError(f"{name} is {value:g}: it has to be {'above' if above else 'at least'} {least:g}{end}")


def is_out_of_memory(error: BaseException) -> bool:
    """Does `error` mean that memory ran out, on a graphics card or in the machine? torch has several
    messages for it.
    """
    words = str(error).lower()
    said = any(part in words for part in ("out of memory", "allocate memory", "not enough memory"))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said)


@contextmanager
def explains_out_of_memory(work: str, smaller: str) -> Iterator[None]:
    """Turn an out-of-memory error inside the context into an `InputError`: "out of memory in {work}: set {smaller}"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"out of memory in {work}: set {smaller}") from error


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not known; it lists all known names, the nearest match first."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=len(names) or 1, cutoff=0.0)
    return InputError(f"unknown {kind} {name!r}; known: {', '.join(nearest + [n for n in names if n not in nearest])}")
