"""Every data set that the kit knows: list them all, describe one, open one by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtune.common.errors import InputError, unknown
from samtune.common.paths import data_root, resolve
from samtune.data import (
    industrial,
    industrial_layouts,
    medical,
    medical_layouts,
    natural,
    natural_layouts,
    own,
    polyps,
)
from samtune.data.files import walk
from samtune.data.generated import PREFIX, describe_generated
from samtune.data.procedural import synthetic
from samtune.data.registry_entry import Description, GitSource
from samtune.data.sample import Dataset
from samtune.data.splits import SPLITS

DATASETS: dict[str, Description] = {
    **industrial.DATASETS,
    **medical.DATASETS,
    **natural.DATASETS,
    **industrial_layouts.DATASETS,
    **medical_layouts.DATASETS,
    **polyps.DATASETS,
    **natural_layouts.DATASETS,
    **synthetic.DATASETS,
}


def describe(name: str, root: str | Path | None = None) -> Description:
    """What the registry knows of one data set. Raises `InputError` with the known names, nearest first.

    "generated:<key>" is the set of images that the generation cell of that key has made; any other unknown name may be
    a set of one's own in `root`, see `own`.
    """
    if name.startswith(PREFIX):
        return describe_generated(name, describe, open_dataset)
    if name in DATASETS:
        return DATASETS[name]
    if name in (mine := _own_names(root)):
        return own.describe_own(name)
    yours = f"a set of your own is a folder {_root(root) / name} (letters, digits, . _ -) with folders images and masks"
    raise InputError(f"{unknown('data set', name, [*mine, *DATASETS])}; {yours}")


def is_own(name: str) -> bool:
    """Is it no set that the kit knows, nor a generated one?"""
    return name not in DATASETS and not name.startswith(PREFIX)


def _own_names(root: str | Path | None) -> list[str]:
    """The sets of one's own in `root`: folders of that layout that belong to no other set."""
    taken = DATASETS.keys() | {description.folder for description in DATASETS.values()}
    return [name for name in own.own_names(_root(root)) if name not in taken]


def _root(root: str | Path | None) -> Path:
    return data_root() if root is None else resolve(root)


def dataset_folder(name: str, root: str | Path | None = None) -> Path:
    """The data set's folder in `root` (default: the data root, `SAMTUNE_DATA`); for most sets it has the set's name."""
    return _root(root) / (describe(name, root).folder or name)


def missing_parts(name: str, root: str | Path | None = None) -> list[str]:
    """The patterns of the data set's layout that match nothing in its folder; [] where all is there."""
    folder = dataset_folder(name, root)
    return [pattern for pattern in describe(name, root).layout if next(walk(folder, pattern), None) is None]


def by_hand(name: str, root: str | Path | None = None) -> str:
    """Instructions: what to download by hand, and where to put it."""
    description, folder = describe(name, root), dataset_folder(name, root)
    lines = [f"To get {name} by hand: {description.how_to_get}"]
    if isinstance(description.source, GitSource):
        lines += [f"git clone {description.source.url} '{folder}'"]
        lines += [f"git -C '{folder}' checkout {description.source.commit}"]
    elif description.source is not None:
        lines += [f"fetch {description.source.url} and unpack it in {folder}"]
    lines += [f"Afterwards there should be: {', '.join(str(folder / pattern) for pattern in description.layout)}"]
    return "\n  ".join(lines)


def open_dataset(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Open a data set by name.

    Args:
        name: in the registry.
        root: the folder of all data sets; default: `SAMTUNE_DATA`.
        options: of the set's loader.

    Raises `InputError` for an unknown name (nearest first), an unknown option, or a folder that is not there or lacks a
    part, with what to do.
    """
    description, folder = describe(name, root), dataset_folder(name, root)
    if missing := missing_parts(name, root):
        state = f"nothing in {folder} matches {missing[0]}" if folder.is_dir() else f"there is no folder {folder}"
        fetch = f"Run `samtune data download {name}`. " if description.source else ""
        raise InputError(
            f"data set {name} not found: {state}. {fetch}SAMTUNE_DATA names the folder of all data sets, "
            f"now {folder.parent}.\n{by_hand(name, root)}"
        )
    try:
        return description.factory(folder, **options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise InputError(f"data set {name}: {error}") from error
        raise


@dataclass(frozen=True)
class DatasetRow:
    """One line of `samtune data list`.

    Fields:
        name: in the registry.
        domain: industrial, medical ...
        title: one line for people.
        present: it is in the data root.
        images: number for each split; None where the set is not present or cannot be opened (`open_dataset` says why).
    """

    name: str
    domain: str
    title: str
    present: bool
    images: dict[str, int] | None


def list_datasets(root: str | Path | None = None) -> list[DatasetRow]:
    """Every known data set and one's own, by domain and name, with its images for each split where it is present."""
    rows = []
    known = DATASETS | {name: own.describe_own(name) for name in _own_names(root)}
    for name, description in sorted(known.items(), key=lambda item: (item[1].domain, item[0])):
        present, images = True, None
        try:
            present = not missing_parts(name, root)
            if present:
                dataset = open_dataset(name, root)
                images = {split: len(dataset.ids(split)) for split in SPLITS}
        except Exception:  # whatever is wrong with one set must not hide the others
            pass
        rows.append(DatasetRow(name, description.domain, description.title, present, images))
    return rows


def info(name: str, root: str | Path | None = None) -> str:
    """All that is known of one data set, as text."""
    description, folder = describe(name, root), dataset_folder(name, root)
    lines = [description.title, f"  name: {name} (domain: {description.domain})"]
    lines += [f"  licence: {description.licence}", f"  cite: {description.citation}", f"  splits: {description.splits}"]
    if description.images is not None:
        lines.append(f"  images with masks in the full download: {description.images}")
    lines.append(f"  pre-training on it: {description.pretraining}")
    lines.append(f"  pictures in committed figures: {'yes' if description.committed_pictures else 'no'}")
    if not description.layout:
        return "\n".join([*lines, "  made on the fly from a seed: nothing to download"])
    if missing := missing_parts(name, root):
        lines.append(f"  here: no (nothing in {folder} matches {missing[0]})")
        return "\n".join([*lines, f"  {by_hand(name, root)}"])
    dataset = open_dataset(name, root)
    counts = ", ".join(f"{len(dataset.ids(split))} {split}" for split in SPLITS)
    lines.append(f"  here: {folder}: {counts}")
    lines += [f"  left out, {reason}: {count}" for reason, count in dataset.dropped.items()]
    return "\n".join(lines)
