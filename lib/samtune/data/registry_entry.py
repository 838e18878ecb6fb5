"""What the registry knows of a data set: how to open it, where it comes from, what may be done with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from samtune.data.sample import Dataset

Domain = Literal["industrial", "medical", "natural", "camouflage", "remote sensing"]


@dataclass(frozen=True)
class GitSource:
    """A public git repository, cloned at one pinned commit."""

    url: str
    commit: str


@dataclass(frozen=True)
class LinkSource:
    """A zip archive behind a plain link, unpacked as it is; `sha256` may be None where no one has published it."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Description:
    """One data set.

    `factory(folder, **options)` opens it from its own folder, `<data root>/<name>`; for procedural sets
    (`layout` empty) the folder need not exist. `layout` names the paths (shell patterns, relative to the folder) of
    which each must match something, in words that a user can act on when it does not. `source` is a `GitSource` or
    a `LinkSource` that `download` can fetch, or None where a site asks for a form or has no plain link; then
    `how_to_get` says what to do by hand. `images` is the number of pictures with masks in the full download,
    where it is known. `committed_pictures`: may its pictures appear in figures that are committed. `pretraining`:
    what of it may be used for training anything general.
    """

    name: str
    factory: Callable[..., Dataset]
    title: str
    domain: Domain
    licence: str
    citation: str
    how_to_get: str
    splits: str
    source: GitSource | LinkSource | None = None
    layout: tuple[str, ...] = ()
    images: int | None = None
    committed_pictures: bool = False
    pretraining: str = "none: held out"
