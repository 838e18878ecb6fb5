"""What the registry knows of a data set: how to open it, where it comes from, what it may be used for."""

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
    """A zip archive at a plain link; `sha256` is None where nobody has published it."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Description:
    """One data set.

    Fields:
        name: by which it is opened.
        factory: `factory(folder, **options)` opens it; sets that are made on the fly ignore the folder.
        title: one line for people.
        domain: industrial, medical ...
        licence: as its authors state it.
        citation: as its authors state it.
        how_to_get: what to do by hand, where a site has a form or there is no plain link.
        splits: where they come from.
        source: what `download` can fetch, or None.
        folder: in the data root, if it is not `name`: sets of one archive share one.
        layout: paths (shell patterns, relative to the folder) that must all match something; empty for sets made on the
            fly. Users read them when something is missing.
        images: number with masks in the full download, where it is known.
        committed_pictures: its images may be shown in committed figures.
        pretraining: which part of it may train general models, such as the nano SAM.
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
