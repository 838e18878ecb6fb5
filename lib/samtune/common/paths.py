"""Where files are. Relative paths start at the repository root, never at the working directory."""

import os
from pathlib import Path

from samtune.common.errors import InputError


def repository_root() -> Path:
    """The checkout that this package is installed from (editable install); without one, the working directory."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def resolve(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one starts at the repository root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else (repository_root() / path).resolve()


def names_a_file(name: str) -> bool:
    """Is `name` a file name, with a suffix or a folder, and not one of the kit's own names ("vit_b")?"""
    return bool(Path(name).suffix) or "/" in name or len(Path(name).parts) > 1


def data_root() -> Path:
    """The folder with one folder for each data set: `SAMTUNE_DATA`, or `data/` in the repository."""
    return resolve(os.environ.get("SAMTUNE_DATA") or "data")


def checkpoint_root() -> Path:
    """The cache folder of official checkpoints: `SAMTUNE_CHECKPOINTS`, or `checkpoints/` in the repository."""
    return resolve(os.environ.get("SAMTUNE_CHECKPOINTS") or "checkpoints")


def results_root(profile: str) -> Path:
    """`results/<profile>`, or `<profile>` in the folder `SAMTUNE_RESULTS`."""
    return resolve(os.environ.get("SAMTUNE_RESULTS") or "results") / profile


def is_offline() -> bool:
    """Does `SAMTUNE_OFFLINE` forbid downloads? Unset, empty and 0 do not."""
    return os.environ.get("SAMTUNE_OFFLINE", "") not in ("", "0")


def check_is_no_file(folder: Path) -> None:
    """Raise `InputError` where a folder is to be written and a file of that name is there."""
    if folder.is_file():
        raise InputError(f"{folder} is a file, and a folder is to be written there: give another name")


def asset(name: str) -> Path:
    """A file that ships inside the package: nano weights, profiles, paper numbers."""
    return Path(__file__).resolve().parents[1] / name
