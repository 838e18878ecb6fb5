"""Runs cells: each cell once, after the cells that it needs. An interruption loses at most the cell that is running.

A notebook asks for cells. Those with a record are read; the others are run and recorded.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samtune.common import provenance
from samtune.common.atomic import (
    DiskFull,
    disk_full,
    is_disk_full,
    is_locked,
    lock,
    remove_stale_partials,
    write_atomically,
)
from samtune.common.errors import InputError, counted, duration_text
from samtune.common.paths import data_root, results_root
from samtune.data.own import fingerprint
from samtune.data.registry import is_own
from samtune.study.cells import KINDS, Cell, EvaluationCell, plain_cell
from samtune.study.estimate import estimate_seconds
from samtune.study.records import SUFFIX, Record, cell_of, read_record, read_records, write_record
from samtune.training import LAST

LOSS_APART = 1.25  # times, at the end: what rounding on another machine hardly does to a training that is stable
PICTURES_APART = 0.01  # of mean PSNR in dB, or IoU


@dataclass
class Result:
    """What an `execute` function returns.

    Fields:
        objects: see `Record`.
        curve: see `Record`.
        precision: see `Record`.
        seconds: with earlier, interrupted parts, if the function knows them; None: the time of this call.
        extras: see `Record`.
    """

    objects: pd.DataFrame | None = None
    curve: Sequence[Mapping[str, Any]] = ()
    precision: str = ""
    seconds: float | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


# Runs one cell, given the results folder. Files that a cell keeps are in its `files_folder`: others read them there,
# and interrupted work resumes from there.
Execute = Callable[[Cell, Path], Result]


def files_folder(results: Path, cell: Cell) -> Path:
    """The folder of a cell's own files (a training's checkpoints), in the folder `results`."""
    return results / cell.folder / cell.key()


def run_cells(
    cells: Iterable[Cell],
    results: str | Path,
    execute: Execute,
    say: Callable[[str], None] = print,
) -> list[Record]:
    """The records of `cells`, in their order. Cells without one are run first, after the cells that they need.

    When a cell fails, a message says so and the others are still run; at the end the first error is raised, with the
    number of failed cells. A full disk and Ctrl-C stop at once. A record is always whole or absent. Several processes
    that ask for the same cells share the work: each takes a cell that no other one is running.

    Args:
        cells: of any kinds.
        results: a profile's name, or a folder in place of `results/<profile>`.
        execute: runs one cell.
        say: gets the messages: an estimate of the time at the beginning, then one line for each cell.
    """
    folder = results if isinstance(results, Path) else results_root(results)
    cells = list(cells)
    if is_only_planned():
        _planned.extend(cells)
        return [record for cell in cells if (record := _read(cell, folder)) is not None]
    _check_own_sets(cells, folder.parent)
    provenance.git_state()  # asked now, and kept: a commit made while cells run is not of the code that runs
    remove_stale_partials(folder / "records")
    done = {cell.key(): _read(cell, folder) for cell in cells}
    queue = _queue([cell for cell in cells if done[cell.key()] is None], folder)
    known = read_records(folder / "records") if queue else []
    if cells:
        say(_announce(done, queue, known))
    errors: dict[str, Exception] = {}
    total = len(queue)
    while queue:
        cell = _free(queue, folder)
        queue.remove(cell)
        number = total - len(queue)
        if failed := [need.key() for need in cell.needs if need.key() in errors]:
            errors[cell.key()] = errors[failed[0]]
            continue
        start = time.perf_counter()
        earlier = _read(cell, folder)  # there is one where only the files that the cell keeps are missing
        try:
            run_cell(cell, folder, execute)
        except Exception as error:
            if is_disk_full(error):
                raise (error if isinstance(error, DiskFull) else disk_full(folder, error)) from error
            errors[cell.key()] = error
            say(f"[{number}/{total}] FAILED {cell.describe()}: {error}")
            continue
        known.append(_read(cell, folder))
        left = estimate_seconds(queue, known)
        ending = f"; {duration_text(left)} left" if left else ""
        say(f"[{number}/{total}] {cell.describe()}: {duration_text(time.perf_counter() - start)}{ending}")
        if earlier and (warning := _ended_elsewhere(earlier, known)):
            say(warning)
    if errors:
        first = next(iter(errors.values()))
        first.add_note(f"{len(errors)} of {total} cells were not run for errors; the others are recorded")
        raise first
    return [_shown_in(cell, folder) for cell in cells]


def _ended_elsewhere(earlier: Record, known: Sequence[Record]) -> str:
    """What to say when a cell was run again, because its files are not here, and a training's loss ended elsewhere than
    in its `earlier` record, or pictures came out otherwise: on another machine, rounding can decide that. The last of
    `known` is the new record.
    """
    resting = [one for one in known if any(need.key() == earlier.key for need in _all_needs(cell_of(one)))]
    of_earlier = [one.key for one in resting]
    if earlier.kind == "generation":
        was, now = (one.objects.groupby("output").mean(numeric_only=True) for one in (earlier, known[-1]))
        alike = [name for name in ("psnr", "iou") if name in was and name in now]
        apart = max((float((was[name] - now[name]).abs().max()) for name in alike), default=0.0)
        if apart <= PICTURES_APART:
            return ""
        pictures = [f"{cell_of(one).folder}/{one.key}" for one in resting if one.kind == "generation"]
        folders = f"; and their folders: {', '.join(pictures)}" if pictures else ""
        return (
            f"made again, the pictures of {earlier.key} are not as its record had them (mean PSNR or IoU differs by "
            f"{apart:.3f}): {counted(len(of_earlier), 'record')} rest on the earlier ones. To run these anew, remove "
            f"them: {', '.join(of_earlier)}{folders}"
        )
    if not earlier.curve:
        return ""
    was, now = (
        np.mean([row["loss"] for row in one.curve[-max(1, len(one.curve) // 10) :]]) for one in (earlier, known[-1])
    )
    if max(was, now) <= LOSS_APART * min(was, now):
        return ""
    return (
        f"run again, the training {earlier.key} ended at a loss of {now:.3f}, not {was:.3f} as its record had it: "
        f"{len(of_earlier)} measurements are of the earlier weights. To measure these, remove their records: "
        f"{', '.join(of_earlier)}"
    )


def _check_own_sets(cells: Iterable[Cell], results: Path) -> None:
    """Raises `InputError` where a set of one's own is not as it was when records in `results/*` were made of it: they
    know it by its name, and would be mixed.
    """
    for name in sorted({name for cell in cells for name in _sets(cell)}):
        if not is_own(name) or not (place := data_root() / name).is_dir():
            continue
        stamp, found = results / ".own_sets" / name, fingerprint(place)
        if stamp.is_file() and stamp.read_text() != found:
            records = [record for path in results.glob("*/records") for record in read_records(path)]
            if resting := [record.key for record in records if name in _sets(cell_of(record))]:
                raise InputError(
                    f"{place} has changed (names or sizes of its files) since {counted(len(resting), 'record')} were "
                    "made of it: give the folder a new name; or remove these records, and their folders in checkpoints "
                    f"and generated: {', '.join(resting)}"
                )
        write_atomically(stamp, found.encode())


def _sets(cell: Cell) -> set[str]:
    """The data sets that a cell rests on."""
    return {name for one in (cell, *_all_needs(cell)) for name in one.sets}


def _all_needs(cell: Cell) -> list[Cell]:
    """The cells that `cell` rests on, directly or not."""
    return [one for need in cell.needs for one in (need, *_all_needs(need))]


def run_cell(cell: Cell, folder: Path, execute: Execute) -> None:
    """Run one cell and record it, unless another process has just done so.

    A cell that keeps files is finished only when its record and its files are there: records are committed, most
    checkpoints are not.

    Args:
        cell: of any kind.
        folder: `results/<profile>`.
        execute: runs it.
    """
    with lock(_lock(cell, folder)):
        if not _missing(cell, folder):
            return
        provenance.reset_peak_memory()
        start = time.perf_counter()
        result = execute(cell, folder)
        seconds = time.perf_counter() - start if result.seconds is None else result.seconds
        memory, card = provenance.peak_memory_mb()
        commit, dirty = provenance.git_state()
        known = _read(cell, folder)  # an old record may name other tables that show it
        record = Record(
            key=cell.key(), kind=cell.kind, cell=plain_cell(cell),
            tables=_union(known.tables if known else (), cell.tables), objects=result.objects,
            curve=tuple(result.curve), seconds=seconds, peak_memory_mb=memory, peak_gpu_memory_mb=card,
            hardware=provenance.hardware(), precision=result.precision, packages=provenance.package_versions(),
            commit=commit, dirty=dirty, date=provenance.now(), extras=dict(result.extras),
        )  # fmt: skip
        write_record(folder / "records", record)
        if cell.keeps_files:
            write_atomically(_finished(cell, folder), json.dumps(plain_cell(cell), sort_keys=True).encode())
            # Not before all is written; but a training that is to be run anew must not go on from there.
            (files_folder(folder, cell) / LAST).unlink(missing_ok=True)


@contextmanager
def only_planned() -> Iterator[list[Cell]]:
    """Inside this context `run_cells` runs nothing: it adds the cells to the list it gives, and returns existing
    records. Nothing is downloaded either.
    """
    global _planned
    _planned = []
    offline = os.environ.get("SAMTUNE_OFFLINE", "")
    os.environ["SAMTUNE_OFFLINE"] = "1"
    try:
        yield _planned
    finally:
        _planned = None
        os.environ["SAMTUNE_OFFLINE"] = offline


_planned: list[Cell] | None = None


def is_only_planned() -> bool:
    """Are we inside `only_planned`?"""
    return _planned is not None


def missing_cells(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """The cells without a record, each once, and before each one the cells it needs that are missing too."""
    return _queue([cell for cell in cells if _read(cell, folder) is None], folder)


def needed_cells(cell: Cell, folder: Path) -> list[Cell]:
    """What `cell` needs and what is missing of it, each after what it needs itself."""
    return _queue([need for need in cell.needs if _missing(need, folder)], folder)


def _queue(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """`cells`, each once and after those that it needs and that are missing."""
    queue: dict[str, Cell] = {}
    tables: dict[str, tuple[str, ...]] = {}

    def add(cell: Cell) -> None:
        for need in cell.needs:
            if _missing(need, folder):
                add(need)
        queue.setdefault(cell.key(), cell)

    for cell in cells:
        add(cell)
        tables[cell.key()] = _union(tables.get(cell.key(), ()), cell.tables)
    return [replace(cell, tables=tables.get(key, cell.tables)) for key, cell in queue.items()]


def _free(queue: Sequence[Cell], folder: Path) -> Cell:
    """The first cell that no other process is running and that has all it needs; if there is none, the first (which
    waits).

    Cells of a model and images that another process is measuring come last: both processes would encode the images.
    """
    measured = {_model_and_pictures(cell) for cell in queue if is_locked(_lock(cell, folder))}
    second_choice = None
    for cell in queue:
        if any(_missing(need, folder) for need in cell.needs):
            continue
        if is_locked(_lock(cell, folder)):  # asked again: others may have chosen meanwhile
            continue
        if _model_and_pictures(cell) not in measured:
            return cell
        second_choice = second_choice or cell
    return second_choice or queue[0]


def _model_and_pictures(cell: Cell) -> tuple:
    """What two cells that would encode the same images with the same model share."""
    if isinstance(cell, EvaluationCell):
        return cell.training, cell.method, cell.dataset, cell.split
    return (cell,)


def _lock(cell: Cell, folder: Path) -> Path:
    return folder / "checkpoints" / f"{cell.key()}.lock"


def _announce(asked: Mapping[str, Record | None], queue: Sequence[Cell], known: Sequence[Record]) -> str:
    recorded = sum(record is not None for record in asked.values())
    text = f"{counted(len(asked), 'cell')}: {recorded} recorded"
    if not queue:
        return f"{text}, nothing to run"
    kinds = Counter(cell.kind for cell in queue)
    seconds = estimate_seconds(queue, known)
    duration = "time unknown until the first are done" if seconds is None else f"about {duration_text(seconds)}"
    return f"{text}, to run: {' and '.join(f'{kinds[kind]} {kind}s' for kind in KINDS if kinds[kind])}, {duration}"


def _missing(cell: Cell, folder: Path) -> bool:
    """Must the cell be run? It has no record, or lacks the files that it keeps."""
    return _read(cell, folder) is None or (cell.keeps_files and not _finished(cell, folder).is_file())


def _finished(cell: Cell, folder: Path) -> Path:
    return files_folder(folder, cell) / "finished.json"


def _read(cell: Cell, folder: Path) -> Record | None:
    return read_record(folder / "records" / f"{cell.key()}{SUFFIX}")


def _shown_in(cell: Cell, folder: Path) -> Record:
    """The cell's record, with the cell's tables added: one cell may belong to a main table and to an ablation."""
    record = _read(cell, folder)
    if set(cell.tables) <= set(record.tables):
        return record
    with lock(_lock(cell, folder)):  # another process may add tables of its own
        record = _read(cell, folder)
        record = replace(record, tables=_union(record.tables, cell.tables))
        write_record(folder / "records", record)
    return record


def _union(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*first, *second}))
