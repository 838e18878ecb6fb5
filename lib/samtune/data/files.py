"""Which files count as data, and how they are found and named: the one place that every loader asks."""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from samtune.common.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# What archives, disks and network storage leave behind, besides names that begin with a dot (`._x.png`, `.DS_Store`).
LEFT_BEHIND = {
    "$recycle.bin", "#recycle", "@eadir", "@recycle", "__macosx", "__pycache__", "desktop.ini", "lost+found",
    "system volume information", "thumbs.db",
}  # fmt: skip


def is_data(path: Path) -> bool:
    """False for the names of files and folders that systems leave behind; nothing is opened."""
    return not path.name.startswith(".") and path.name.lower() not in LEFT_BEHIND


def readable(name: str) -> str:
    """A file's name as text that can be compared and written: Unicode's composed form (NFC).

    macOS stores "ü" as two characters, other systems as one; `ls` shows no difference. Old archives hold bytes that are
    no UTF-8: those are read as Latin-1.
    """
    if any("\udc80" <= character <= "\udcff" for character in name):
        name = os.fsencode(name).decode("latin-1")
    return unicodedata.normalize("NFC", name)


def by_name(paths: Iterable[Path], ending: str = "") -> dict[str, Path]:
    """Paths by their readable name, without the file type but for folders; two of one name are an `InputError`.

    With an `ending`, only those that end so, by what stands before it.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = readable(path.name if path.is_dir() else path.stem)
        if not name.endswith(ending):
            continue
        name = name.removesuffix(ending)
        if name in found:
            raise InputError(f"two files for {name!r}: {found[name]} and {path}; keep one")
        found[name] = path
    return found


def read_text(path: Path, errors: str = "strict") -> str:
    """A text file in UTF-8, without the mark that some tools begin it with; `InputError` with path and reason.

    `errors`: what to do where it is no UTF-8, as `open` takes it.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors=errors)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as text in UTF-8: {error}") from error


def children(folder: Path) -> list[Path]:
    """Files and folders directly inside `folder` that count as data, sorted; `InputError` where there is no folder."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    return sorted(child for child in folder.iterdir() if is_data(child))


def folders(folder: Path) -> list[Path]:
    """Folders directly inside `folder`, sorted."""
    return [child for child in children(folder) if child.is_dir()]


def pictures(folder: Path) -> list[Path]:
    """Picture files directly inside `folder`, sorted."""
    return [child for child in children(folder) if child.suffix.lower() in IMAGE_SUFFIXES and not child.is_dir()]


def find(folder: Path, pattern: str) -> list[Path]:
    """Paths under `folder` that match a shell pattern ("*", "**"), sorted; each once; [] where there is no folder.

    Symbolic links are followed, which `Path.glob` does not do for "**". ".JPG" matches "*.jpg".
    """
    return sorted(set(walk(folder, pattern)))


def walk(folder: Path, pattern: str) -> Iterator[Path]:
    """`find` one by one, in no order; a path may come twice where "**" stands twice."""
    yield from _walk(folder, pattern.split("/"), frozenset())


def _walk(folder: Path, steps: list[str], above: frozenset[str]) -> Iterator[Path]:
    """`above`: the real paths of the folders passed by "**", so that a link to one of them does not go on for ever."""
    first, *rest = steps
    if not folder.is_dir():
        return
    if first == "**":
        yield from _walk(folder, rest, frozenset())
        if (real := os.path.realpath(folder)) not in above:
            for child in folder.iterdir():
                if is_data(child) and child.is_dir():
                    yield from _walk(child, steps, above | {real})
        return
    for child in folder.iterdir():
        names = child.name, child.stem + child.suffix.lower()
        if is_data(child) and any(fnmatchcase(name, first) for name in names):
            yield from _walk(child, rest, above) if rest else [child]
