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

    name: as it is asked for.
    factory: `factory(folder, **options)` opens it from its folder; sets made on the fly do not look at the folder.
    title: one line for people.
    domain: the field it comes from.
    licence, citation: as its authors state them.
    how_to_get: what to do by hand where a site asks for a form or there is no plain link.
    splits: where the parts come from.
    source: what `download` can fetch, or None.
    folder: its folder in the data root where that is not its name: sets that come in one archive share one.
    layout: paths (shell patterns, relative to the folder) of which each must match something, in words that a user
        can act on when it does not; empty for sets made on the fly.
    images: number of pictures with masks in the full download, where it is known.
    committed_pictures: may its pictures appear in figures that are committed.
    pretraining: what of it may be used for training anything general.
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
    folder: str = ""
    layout: tuple[str, ...] = ()
    images: int | None = None
    committed_pictures: bool = False
    pretraining: str = "none: held out"
