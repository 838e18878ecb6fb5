"""How cells are run: each one once, in an order that trains before it measures, surviving any interruption.

A notebook asks for cells; those with a record are read, the others are run and recorded.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from samtune.common import provenance
from samtune.common.atomic import (
    DISK_FULL,
    DiskFull,
    disk_full,
    is_disk_full,
    is_locked,
    locked,
    remove_stale_partials,
    write_atomically,
)
from samtune.common.paths import results_root
from samtune.study.cells import Cell, TrainingCell, cell_to_json, plain_cell
from samtune.study.records import SUFFIX, Record, read_record, read_records, write_record


@dataclass
class Result:
    """What an `execute` function hands back: see `Record` for the fields. `seconds` of an earlier, interrupted
    part included, where the function knows them; None: what this call took."""

    objects: pd.DataFrame | None = None
    curve: Sequence[Mapping[str, Any]] = ()
    precision: str = ""
    seconds: float | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


# Runs one cell. A training writes its checkpoints into the folder and resumes from what it finds there; an evaluation
# reads its training's folder (None: nothing was trained).
Execute = Callable[[Cell, Path | None], Result]


# Runs one cell somewhere, in this process or another one; leaves a record, or raises.
Executor = Callable[[Cell], None]


def checkpoint_folder(folder: Path, training: TrainingCell) -> Path:
    """Where a training keeps its checkpoints, in the results folder `folder`."""
    return folder / "checkpoints" / training.key()


def run_cells(
    cells: Iterable[Cell],
    results: str | Path,
    execute: Execute,
    say: Callable[[str], None] = print,
    executor: Executor | None = None,
) -> list[Record]:
    """The records of `cells`, in their order; cells without one are run first.

    `results`: a profile's name, or a folder in place of `results/<profile>`. `execute` runs one cell. `say` is told
    beforehand about how long it will take, and how far it is. `executor`: one after the other in this process when
    None, else see `in_subprocess`. The training cell that an evaluation needs is run first, once.

    A cell that fails is told at once and does not stop the others; when all are through, the first error is raised
    again, with the number of the others. A full disk and Ctrl-C stop at once. Records are whole or absent at any time.
    Several processes that are asked for the same cells share the work: each takes what no other one is at.
    """
    folder = results if isinstance(results, Path) else results_root(results)
    cells = list(cells)
    executor = executor or (lambda cell: run_cell(cell, folder, execute))
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
        training = getattr(cell, "training", None)
        if training is not None and training.key() in errors:
            errors[cell.key()] = errors[training.key()]
            continue
        start = time.perf_counter()
        try:
            executor(cell)
        except Exception as error:
            if is_disk_full(error):
                raise (error if isinstance(error, DiskFull) else disk_full(folder, error)) from error
            errors[cell.key()] = error
            say(f"[{number}/{total}] FAILED {cell.describe()}: {error}")
            continue
        known.append(_read(cell, folder))
        left = estimate_seconds(queue, known)
        ending = f"; {_duration(left)} left" if left else ""
        say(f"[{number}/{total}] {cell.describe()}: {_duration(time.perf_counter() - start)}{ending}")
    if errors:
        first = next(iter(errors.values()))
        first.add_note(f"{len(errors)} of {total} cells were not run for errors; the others are recorded")
        raise first
    return [_shown_in(cell, folder) for cell in cells]


def run_cell(cell: Cell, folder: Path, execute: Execute) -> None:
    """Run one cell in this process and record it, unless that has just been done by another process.

    `folder` is `results/<profile>`. A training counts as done when both its record and its finished checkpoint are
    there: records are committed, checkpoints are not.
    """
    training = cell if isinstance(cell, TrainingCell) else cell.training
    checkpoints = None if training is None else checkpoint_folder(folder, training)
    with locked(_lock(cell, folder)):
        if not _missing(cell, folder):
            return
        provenance.reset_peak_memory()
        start = time.perf_counter()
        result = execute(cell, checkpoints)
        seconds = time.perf_counter() - start if result.seconds is None else result.seconds
        memory, card = provenance.peak_memory_mb()
        commit, dirty = provenance.git_state()
        known = _read(cell, folder)  # a record without its checkpoint knows other tables that show it
        record = Record(
            key=cell.key(), kind="training" if cell is training else "evaluation", cell=plain_cell(cell),
            tables=_union(known.tables if known else (), cell.tables), objects=result.objects,
            curve=tuple(result.curve), seconds=seconds, peak_memory_mb=memory, peak_gpu_memory_mb=card,
            hardware=provenance.hardware(), precision=result.precision, packages=provenance.package_versions(),
            commit=commit, dirty=dirty, date=provenance.now(), extras=dict(result.extras),
        )  # fmt: skip
        write_record(folder / "records", record)
        if cell is training:
            write_atomically(_finished(checkpoints), cell_to_json(cell).encode())


def in_subprocess(
    folder: Path, command: Sequence[str] = (sys.executable, "-m", "samtune.commands.cli", "cell")
) -> Executor:
    """An executor that gives every cell a process of its own: memory is handed back, a crash costs one cell.

    `command` is called with `--results <folder>` and the cell's json, and must call `run_cell`. Raises `RuntimeError`
    with the exit status and the last line of what it said.
    """

    def run(cell: Cell) -> None:
        done = subprocess.run(
            [*command, "--results", str(folder), cell_to_json(cell)], stderr=subprocess.PIPE, text=True
        )
        if done.returncode == 0 and not _missing(cell, folder):
            return
        lines = done.stderr.strip().splitlines()
        full = next((line for line in lines if DISK_FULL in line), None)
        if full:
            raise DiskFull(full[full.index(DISK_FULL) :])
        if done.returncode in (-9, 137):
            raise RuntimeError("the process was killed, most likely out of memory: a smaller batch size needs less")
        raise RuntimeError(f"the process ended with status {done.returncode}: {lines[-1] if lines else 'no message'}")

    return run


def estimate_seconds(cells: Sequence[Cell], records: Sequence[Record]) -> float | None:
    """About how long `cells` take, from what recorded cells took on this hardware; None when nothing alike was run.

    Trainings scale with the images they see. The most alike records count: same method, backbone and test set, else
    same method and backbone, else same backbone.
    """
    here = provenance.hardware()
    levels: list[dict[tuple, list[float]]] = [{}, {}, {}]
    for record in records:
        if record.hardware == here and record.kind in ("training", "evaluation"):
            cost = record.seconds / max(record.images, 1) if record.kind == "training" else record.seconds
            likeness = (record.kind, record.backbone, record.method, record.dataset)
            for level, length in zip(levels, (4, 3, 2), strict=True):
                level.setdefault(likeness[:length], []).append(cost)
    total = 0.0
    for cell in cells:
        kind = "training" if isinstance(cell, TrainingCell) else "evaluation"
        likeness = (kind, cell.backbone, cell.method, getattr(cell, "dataset", ""))
        costs = next(
            (level[likeness[:n]] for level, n in zip(levels, (4, 3, 2), strict=True) if likeness[:n] in level), None
        )
        if costs is None:
            return None
        total += sum(costs) / len(costs) * (cell.images if kind == "training" else 1)
    return total


def _queue(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """`cells` once each, every evaluation after the training whose checkpoint it needs."""
    queue: dict[str, Cell] = {}
    tables: dict[str, tuple[str, ...]] = {}
    for cell in cells:
        training = getattr(cell, "training", None)
        if training is not None and _missing(training, folder):
            queue.setdefault(training.key(), training)
        queue.setdefault(cell.key(), cell)
        tables[cell.key()] = _union(tables.get(cell.key(), ()), cell.tables)
    return [replace(cell, tables=tables.get(key, cell.tables)) for key, cell in queue.items()]


def _free(queue: Sequence[Cell], folder: Path) -> Cell:
    """The first cell that no other process is at and whose training is done; if there is none, the first (to wait).

    Rather not one of a model that another process is measuring on the same pictures: both would have to encode them.
    """
    measured = {_model_and_pictures(cell) for cell in queue if is_locked(_lock(cell, folder))}
    second_choice = None
    for cell in queue:
        training = getattr(cell, "training", None)
        if training is not None and _missing(training, folder):
            continue
        if is_locked(_lock(cell, folder)):  # asked again: reading records took its time, others choose meanwhile
            continue
        if _model_and_pictures(cell) not in measured:
            return cell
        second_choice = second_choice or cell
    return second_choice or queue[0]


def _model_and_pictures(cell: Cell) -> tuple:
    return (cell,) if isinstance(cell, TrainingCell) else (cell.training, cell.method, cell.dataset, cell.split)


def _lock(cell: Cell, folder: Path) -> Path:
    return folder / "checkpoints" / f"{cell.key()}.lock"


def _announce(asked: Mapping[str, Record | None], queue: Sequence[Cell], known: Sequence[Record]) -> str:
    recorded = sum(record is not None for record in asked.values())
    text = f"{len(asked)} cell{'s' if len(asked) != 1 else ''}: {recorded} recorded"
    if not queue:
        return f"{text}, nothing to run"
    trainings = sum(isinstance(cell, TrainingCell) for cell in queue)
    seconds = estimate_seconds(queue, known)
    duration = "time unknown until the first are done" if seconds is None else f"about {_duration(seconds)}"
    return f"{text}, to run: {trainings} trainings and {len(queue) - trainings} measurements, {duration}"


def _missing(cell: Cell, folder: Path) -> bool:
    """Must the cell be run: no record, or, of a training, no finished checkpoint."""
    absent = _read(cell, folder) is None
    return absent or (isinstance(cell, TrainingCell) and not _finished(checkpoint_folder(folder, cell)).is_file())


def _finished(checkpoints: Path) -> Path:
    return checkpoints / "finished.json"


def _read(cell: Cell, folder: Path) -> Record | None:
    return read_record(folder / "records" / f"{cell.key()}{SUFFIX}")


def _shown_in(cell: Cell, folder: Path) -> Record:
    """The cell's record, shown in the cell's tables too: the same cell may serve a main table and an ablation."""
    record = _read(cell, folder)
    if set(cell.tables) <= set(record.tables):
        return record
    with locked(_lock(cell, folder)):  # another process may add tables of its own
        record = _read(cell, folder)
        record = replace(record, tables=_union(record.tables, cell.tables))
        write_record(folder / "records", record)
    return record


def _union(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*first, *second}))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
