"""Where things are: every path resolves from the repository root, never from the working directory."""

import os
from pathlib import Path


def repository_root() -> Path:
    """The checkout that this package is installed from (editable install); otherwise the working directory."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def resolve(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one is taken from the repository root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else (repository_root() / path).resolve()


def names_a_file(name: str) -> bool:
    """Is `name` a file's, with a suffix or a folder in it, and not one of the kit's own names ("vit_b")?"""
    return bool(Path(name).suffix) or len(Path(name).parts) > 1


def data_root() -> Path:
    """Folder that holds the data sets, one folder a set: `SAMTUNE_DATA`, or `data/` in the repository."""
    return resolve(os.environ.get("SAMTUNE_DATA", "data"))


def checkpoint_root() -> Path:
    """Cache folder of official checkpoints: `SAMTUNE_CHECKPOINTS`, or `checkpoints/` in the repository."""
    return resolve(os.environ.get("SAMTUNE_CHECKPOINTS", "checkpoints"))


def results_root(profile: str) -> Path:
    """`results/<profile>`, or the same name under `SAMTUNE_RESULTS`."""
    return resolve(os.environ.get("SAMTUNE_RESULTS", "results")) / profile


def asset(name: str) -> Path:
    """A file shipped inside the package: nano weights, profiles, paper numbers."""
    return Path(__file__).resolve().parents[1] / name
