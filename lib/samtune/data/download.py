"""Downloads a data set from its authors, and checks what is in its folder."""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pooch
from tqdm.auto import tqdm

from samtune.common.atomic import lock
from samtune.common.errors import InputError, first_line
from samtune.data.duplicates import DuplicatePair, Fingerprint, duplicates_across_splits, fingerprint
from samtune.data.files import find
from samtune.data.registry import by_hand, dataset_folder, describe, is_own, missing_parts, open_dataset
from samtune.data.registry_entry import GitSource, LinkSource
from samtune.data.sample import Dataset, Sample
from samtune.data.splits import SPLITS


def download(name: str, root: str | Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Download data set `name` into `<root>/<name>` and return that folder. Does nothing where it is complete.

    All goes first into `<root>/<name>.partial`, which is renamed when complete, so that a broken download never counts
    as present. Raises `InputError`, with what to download by hand and where to put it, when the site has a form or
    there is no network.
    """
    description, folder = describe(name, root), dataset_folder(name, root)
    if not description.layout:
        raise InputError(f"{name} is made on the fly from a seed; there is nothing to download")
    if not missing_parts(name, root):
        say(f"{name} is already in {folder}")
        return folder
    if description.source is None:
        raise InputError(by_hand(name, root))
    with lock(folder.with_name(f".{folder.name}.lock")):  # two processes may want it at once
        return _download(name, root, say)


def _download(name: str, root: str | Path | None, say: Callable[[str], None]) -> Path:
    """`download`, by the one process that has the lock."""
    description, folder = describe(name, root), dataset_folder(name, root)
    if not (missing := missing_parts(name, root)):  # another process was quicker
        return download(name, root, say)
    if folder.exists():
        raise InputError(f"{folder} exists but nothing there matches {missing[0]}; move it away, then download again")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    say(f"fetching {name}: {description.source.url}\n  licence: {description.licence}\n  cite: {description.citation}")
    try:
        if isinstance(description.source, GitSource):
            _clone(description.source, partial)
        else:
            _fetch_zip(description.source, partial)
    except (OSError, ValueError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"could not download {name} ({first_line(error)}). {by_hand(name, root)}") from error
    absent = [pattern for pattern in description.layout if not find(partial, pattern)]
    if absent:
        raise InputError(f"what {description.source.url} gave has nothing that matches {absent[0]}; see {partial}")
    os.replace(partial, folder)
    say(f"{name} is in {folder}")
    return folder


def _clone(source: GitSource, target: Path) -> None:
    """One commit of a repository; without history where the server allows it."""
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}  # a vanished repository must not ask for a password

    def git(*arguments: str, check: bool = True) -> bool:
        return subprocess.run(["git", *arguments], cwd=target, env=environment, check=check).returncode == 0

    git("init", "--quiet")
    git("remote", "add", "origin", source.url)
    if not git("fetch", "--progress", "--depth", "1", "origin", source.commit, check=False):
        git("fetch", "--progress", "origin")
    git("-c", "advice.detachedHead=false", "checkout", "--quiet", source.commit)


def _fetch_zip(source: LinkSource, target: Path) -> None:
    known_hash = f"sha256:{source.sha256}" if source.sha256 else None
    pooch.get_logger().setLevel("WARNING")  # the bar says it all, and an error message must begin the output
    archive = Path(pooch.retrieve(source.url, known_hash, fname="archive.zip", path=target, progressbar=True))
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(target)
    archive.unlink()


@dataclass
class CheckReport:
    """What `check` found.

    Fields:
        name: of the data set.
        folder: where it is.
        images: number for each split.
        objects: number for each split.
        expected_images: in the full download, where it is known.
        dropped: how many images the listing left out, by reason.
        without_objects: images without an object.
        problems: one line each.
        duplicates: images in different splits that look alike.
    """

    name: str
    folder: Path
    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    expected_images: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    without_objects: int = 0
    problems: list[str] = field(default_factory=list)
    duplicates: list[DuplicatePair] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Could every sample be loaded, and is it as `Sample` says?"""
        return not self.problems

    def text(self) -> str:
        """The report as text."""
        lines = [f"{self.name} in {self.folder}"]
        lines += [f"  {split}: {self.images[split]} images, {self.objects[split]} objects" for split in self.images]
        total = sum(self.images.values())
        if self.expected_images is not None and total != self.expected_images:
            lines.append(f"  {total} images in all; the full download has {self.expected_images}")
        lines += [f"  left out, {reason}: {count}" for reason, count in self.dropped.items()]
        if self.without_objects:
            lines.append(f"  images without an object: {self.without_objects}")
        lines += [f"  problem: {problem}" for problem in self.problems] or ["  every sample opens"]
        lines.append(f"  near-duplicates across splits: {len(self.duplicates)}")
        for pair in self.duplicates:
            lines.append(
                f"    {pair.first} ({pair.first_split}) and {pair.second} ({pair.second_split}), "
                f"details agree to {pair.correlation:.3f}"
            )
        return "\n".join(lines)


def check(name: str, root: str | Path | None = None) -> CheckReport:
    """Open every sample of a data set and report what is wrong, with images in different splits that look alike."""
    report = check_dataset(open_dataset(name, root))
    report.folder, report.expected_images = dataset_folder(name, root), describe(name, root).images
    if is_own(name):
        report.problems += [f"no {split} picture with an object" for split in SPLITS if not report.objects[split]]
    return report


def check_dataset(dataset: Dataset) -> CheckReport:
    """`check` for a data set that is already open (a plain folder, for instance)."""
    report = CheckReport(dataset.name, Path(), dropped=dict(dataset.dropped))
    prints: dict[str, Fingerprint] = {}
    split_of = {id: split for split in SPLITS for id in dataset.ids(split)}
    report.images = {split: len(dataset.ids(split)) for split in SPLITS}
    report.objects = dict.fromkeys(SPLITS, 0)
    for id, split in tqdm(split_of.items(), desc=f"check {dataset.name}", leave=False):
        try:
            sample = dataset.load(id)
        except InputError as error:
            report.problems.append(str(error))
            continue
        report.problems += [f"{id}: {fault}" for fault in sample_faults(sample)]
        report.objects[split] += len(sample.masks)
        report.without_objects += not sample.masks.any()
        prints[id] = fingerprint(sample.image)
    report.duplicates = duplicates_across_splits(prints, split_of)
    return report


def sample_faults(sample: Sample) -> list[str]:
    """How a sample differs from what `Sample` says: one short line for each fault."""
    image, masks, ignore = sample.image, sample.masks, sample.ignore
    faults = []
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        faults.append(f"image is {image.dtype} {image.shape}, not uint8 (H, W, 3)")
    if masks.dtype != bool or masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        faults.append(f"masks are {masks.dtype} {masks.shape}, not bool (N, H, W) of the image's size")
    elif empty := int((~masks.any(axis=(1, 2))).sum()):
        faults.append(f"{empty} of {len(masks)} masks are empty")
    if ignore is not None and (ignore.dtype != bool or ignore.shape != image.shape[:2]):
        faults.append(f"ignore is {ignore.dtype} {ignore.shape}, not bool (H, W) of the image's size")
    if sample.object_class and len(sample.object_class) != len(masks):
        faults.append(f"{len(sample.object_class)} class names for {len(masks)} masks")
    return faults
