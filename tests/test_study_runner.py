"""How cells are run: whole records whatever happens, nothing run twice."""

import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from fake_records import fake_cells, fake_execute, fake_objects
from samtune.common import atomic, provenance
from samtune.common.atomic import DiskFull, lock, write_atomically
from samtune.report.tables import build_tables, write_tables
from samtune.study import runner
from samtune.study.cells import KINDS, Cell, EvaluationCell, TrainingCell, plain_cell
from samtune.study.records import Record, read_record, read_records
from samtune.study.runner import Result, estimate_seconds, files_folder, run_cell, run_cells


def counting(calls: list):
    def execute(cell, folder):
        calls.append(cell.describe())
        return fake_execute(cell, folder)

    return execute


def test_cells_run_once_and_each_training_before_what_measures_it(tmp_path):
    calls, said = [], []
    cells = fake_cells(seeds=(0, 1))
    records = run_cells(cells, tmp_path, counting(calls), say=said.append)
    assert [record.key for record in records] == [cell.key() for cell in cells]
    assert len(calls) == 12 == len(set(calls))
    assert all(calls.index(cell.training.describe()) < calls.index(cell.describe()) for cell in cells if cell.training)
    assert (
        said[0] == "8 cells: 0 recorded, to run: 4 trainings and 8 evaluations, time unknown until the first are done"
    )
    run_cells(cells, tmp_path, counting(calls), say=said.append)
    assert len(calls) == 12 and said[-1] == "8 cells: 8 recorded, nothing to run"
    more = [cells[0].training.evaluation("drive"), *fake_cells(seeds=(5,), datasets=("neu-seg",))]
    run_cells(more, tmp_path, counting(calls), say=said.append)
    assert len(calls) == 16  # one measurement of a training that is there, and a training with two of its own
    # 3 measurements like those before (2 s each) and one training (30 s for 3,000 images)
    assert "3 cells: 0 recorded, to run: 1 trainings and 3 evaluations, about 36 s" in said
    record = read_record(tmp_path / "records" / f"{cells[0].training.key()}.json.gz")
    assert (record.kind, record.seconds, record.precision, record.images) == ("training", 30.0, "fp32", 3000)
    assert record.extras == {"trainable_parameters": 1234} and record.curve[0]["loss"] == 1
    assert record.hardware and record.commit and record.packages["torch"] and record.peak_memory_mb > 1


def test_committed_records_without_checkpoints_are_read_and_only_new_measurements_train_again(tmp_path):
    cells = fake_cells(datasets=("neu-seg",), seeds=(0,))
    run_cells(cells, tmp_path, fake_execute, say=lambda line: None)
    folder = files_folder(tmp_path, cells[0].training)
    for file in folder.iterdir():
        file.unlink()
    calls = []
    run_cells([*cells, cells[0].training], tmp_path, counting(calls), say=lambda line: None)
    assert calls == []
    run_cells([cells[0].training.evaluation("drive")], tmp_path, counting(calls), say=lambda line: None)
    assert [call.split()[0] for call in calls] == ["train", "measure"]


def test_a_training_that_ends_elsewhere_when_it_is_run_again_says_what_is_of_the_earlier_weights(tmp_path):
    cells = fake_cells(datasets=("neu-seg",), seeds=(0,))
    training = next(cell.training for cell in cells if cell.training)
    measured = next(cell for cell in cells if cell.training)
    run_cells(cells, tmp_path, fake_execute, say=lambda line: None)

    def again(factor):
        def execute(cell, folder):
            result = fake_execute(cell, folder)
            curve = [row | {"loss": factor * row["loss"]} for row in result.curve]
            return dataclasses.replace(result, curve=curve)

        said = []
        runner._finished(training, tmp_path).unlink()
        (tmp_path / "records" / f"{training.evaluation('drive').key()}.json.gz").unlink(missing_ok=True)
        run_cells([training.evaluation("drive")], tmp_path, execute, say=said.append)
        return [line for line in said if "run again" in line]

    assert again(1.1) == []
    (line,) = again(3)
    assert training.key() in line and measured.key() in line and "\n" not in line


def test_one_cell_can_be_shown_in_several_tables(tmp_path):
    (cell, _) = fake_cells(datasets=("neu-seg",), seeds=(0,))
    run_cells([cell], tmp_path, fake_execute, say=lambda line: None)
    again = dataclasses.replace(cell, tables=("spt_ablation:LoRA alone",))
    calls = []
    (record,) = run_cells([again], tmp_path, counting(calls), say=lambda line: None)
    assert calls == [] and record.tables == ("baselines", "spt_ablation:LoRA alone")
    assert record.variants("spt_ablation") == ["LoRA alone"] and record.variants("baselines") == [""]


def test_one_failure_does_not_stop_the_others_and_is_raised_at_the_end(tmp_path):
    cells, calls, said = fake_cells(), [], []

    def execute(cell, folder):
        if cell.method == "lora" and cell.seed == 1 and isinstance(cell, TrainingCell):
            raise RuntimeError("loss is not a number")
        return counting(calls)(cell, folder)

    with pytest.raises(RuntimeError, match="not a number") as caught:
        run_cells(cells, tmp_path, execute, say=said.append)
    assert "4 of 18 cells were not run" in caught.value.__notes__[0]  # two trainings, and what measures them
    assert sum(line.count("FAILED train lora") for line in said) == 2
    assert len(read_records(tmp_path / "records")) == 14
    run_cells(cells, tmp_path, counting(calls), say=said.append)
    assert len(read_records(tmp_path / "records")) == 18 and len(calls) == 18


def test_a_full_disk_is_one_line_and_leaves_earlier_records_whole(tmp_path, monkeypatch):
    cells, written = fake_cells(datasets=("neu-seg",)), []
    real = os.fsync

    def full_after_five(descriptor):
        written.append(descriptor)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full_after_five)
    with pytest.raises(DiskFull, match="disk full while writing .*: free some space") as caught:
        run_cells(cells, tmp_path, fake_execute, say=lambda line: None)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    before = read_records(tmp_path / "records")
    assert before and not list((tmp_path / "records").glob(".*"))
    calls = []
    run_cells(cells, tmp_path, counting(calls), say=lambda line: None)
    assert len(read_records(tmp_path / "records")) == 9

    # Also where a method's own file (a checkpoint) meets the full disk.
    def no_room(cell, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.pt")

    with pytest.raises(DiskFull, match="disk full while writing last.pt"):
        run_cells(fake_cells(seeds=(9,)), tmp_path, no_room, say=lambda line: None)


def test_a_training_whose_record_cannot_be_written_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    (training,) = {cell.training for cell in fake_cells(datasets=("neu-seg",), seeds=(0,))} - {None}

    def execute(cell, folder):
        write_atomically(files_folder(folder, cell) / "last.pt", b"a checkpoint")
        return fake_execute(cell, folder)

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(runner, "write_record", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        run_cell(training, tmp_path, execute)
    assert (files_folder(tmp_path, training) / "last.pt").is_file()
    run_cell(training, tmp_path, execute)
    assert not (files_folder(tmp_path, training) / "last.pt").is_file()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


RUN = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from fake_records import fake_cells, fake_execute
    from samtune.study.runner import run_cells

    def slowly(cell, folder):
        time.sleep(0.01)
        result = fake_execute(cell, folder)
        time.sleep(0.01)
        return result

    print("ready", flush=True)
    run_cells(fake_cells(), Path(sys.argv[1]), slowly, say=lambda line: None)
    """
)


def test_killed_ten_times_at_random_moments_the_tables_are_the_same(tmp_path):
    run_cells(fake_cells(), tmp_path / "whole", fake_execute, say=lambda line: None)
    moments, killed = random.Random(0), 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for _ in range(10):
        command = [sys.executable, "-c", RUN, str(tmp_path / "killed")]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        for record in (tmp_path / "killed" / "records").glob("*.json.gz"):
            assert read_record(record) is not None, record
    assert killed >= 3  # the run takes about 0.6 s in all
    run_cells(fake_cells(), tmp_path / "killed", fake_execute, say=lambda line: None)
    for name in ("whole", "killed"):
        write_tables(build_tables(read_records(tmp_path / name / "records")), tmp_path / name / "tables")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "tables").iterdir() if path.stem != "speed"}
    killed_tables = {path.name: path.read_bytes() for path in (tmp_path / "killed" / "tables").iterdir()}
    assert whole and all(killed_tables[name] == content for name, content in whole.items())


SHARE = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from fake_records import fake_cells, fake_execute
    from samtune.study.runner import run_cells

    folder = Path(sys.argv[1])

    def execute(cell, checkpoints):
        with (folder / f"{os.getpid()}.txt").open("a") as log:
            log.write(cell.key() + "\\n")
        time.sleep(0.1)
        return fake_execute(cell, checkpoints)

    print("ready", flush=True)
    sys.stdin.readline()
    run_cells(fake_cells(seeds=(0, 1)), folder, execute, say=lambda line: None)
    """
)


def test_cell_taken_while_others_were_looked_at_is_not_chosen(tmp_path, monkeypatch):
    cells = [TrainingCell("lora", (name,), "nano") for name in ("neu-seg", "crackforest")]
    asked = []

    def taken_at_the_second_look(path):
        asked.append(path.name)
        return cells[0].key() in path.name and asked.count(path.name) > 1

    monkeypatch.setattr(runner, "is_locked", taken_at_the_second_look)
    assert runner._free(cells, tmp_path) is cells[1]


def test_processes_that_are_asked_for_the_same_cells_share_the_work(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", SHARE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    shares = [path.read_text().split() for path in tmp_path.glob("*.txt")]
    assert len(shares) == 2 and min(map(len, shares)) >= 3  # 4 trainings and 8 evaluations in all
    assert len(set(shares[0] + shares[1])) == len(shares[0] + shares[1]) == 12


def test_what_another_process_measures_is_left_to_it_while_there_is_other_work(tmp_path):
    here, sibling = (EvaluationCell("zero_shot", "nano", "neu-seg", prompt=prompt) for prompt in ("box", "point1"))
    elsewhere = EvaluationCell("zero_shot", "nano", "drive")
    order = []

    def execute(cell, results):
        order.append(cell)
        other_process.close()  # lets go of its lock
        return fake_execute(cell, results)

    with ExitStack() as other_process:
        other_process.enter_context(lock(tmp_path / "checkpoints" / f"{here.key()}.lock"))
        run_cells([here, sibling, elsewhere], tmp_path, execute, say=lambda line: None)
    assert order == [elsewhere, here, sibling]


def test_a_cell_that_another_process_has_just_run_is_not_run_again(tmp_path):
    cell, calls = fake_cells()[0], []
    for _ in range(2):
        run_cell(cell.training, tmp_path, counting(calls))
        run_cell(cell, tmp_path, counting(calls))
    assert len(calls) == 2


@dataclass(frozen=True)
class PicturesCell(Cell):
    """A kind that the runner has never heard of: pictures made from other pictures."""

    kind: ClassVar[str] = "pictures"
    keeps_files: ClassVar[bool] = True
    name: str
    method: str = ""
    source: "PicturesCell | None" = None
    tables: tuple[str, ...] = field(default=(), compare=False)

    def describe(self):
        return self.name


def test_cells_of_any_kind_run_after_what_they_need_and_only_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "pictures", PicturesCell)
    first = PicturesCell("inversion")
    last = PicturesCell("attack of the attack", source=PicturesCell("attack", source=first))
    calls = []

    def execute(cell, results):
        assert all((files_folder(results, need) / "finished.json").is_file() for need in cell.needs)
        calls.append(cell.describe())
        return Result()

    run_cells([last], tmp_path, execute, say=lambda line: None)
    assert calls == ["inversion", "attack", "attack of the attack"]
    (files_folder(tmp_path, first) / "finished.json").unlink()  # a record without its files, needed by nothing missing
    run_cells([last, PicturesCell("another attack", source=last.source)], tmp_path, execute, say=lambda line: None)
    assert calls[3:] == ["another attack"]
    calls.clear()

    def fails(cell, results):
        calls.append(cell.describe())
        raise RuntimeError("no diffusion model")

    chain = PicturesCell("c", source=PicturesCell("b", source=PicturesCell("a")))
    with pytest.raises(RuntimeError, match="no diffusion model"):
        run_cells([chain], tmp_path, fails, say=lambda line: None)
    assert calls == ["a"]  # what needs it, at whatever distance, is not tried


def test_time_is_estimated_from_the_most_alike_cells():
    def record(method, seconds):
        cell = plain_cell(TrainingCell(method, ("drive",), "nano", images=3000))
        return Record("k", "training", cell, seconds=seconds, hardware=provenance.hardware())

    records = [record("lora", 30), record("spt", 90)]
    train = TrainingCell("lora", ("neu-seg",), "nano", images=500)
    assert estimate_seconds([train], records) == pytest.approx(5)
    assert estimate_seconds([dataclasses.replace(train, method="asam")], records) == pytest.approx(10)  # mean of both
    assert estimate_seconds([dataclasses.replace(train, backbone="vit_b")], records) is None
    assert estimate_seconds([], records) == 0


def test_graphics_memory_is_that_of_the_fullest_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: device * 5 * 2**30)
    assert provenance.peak_memory_mb()[1] == 5 * 2**10


def test_peak_memory_starts_anew_with_every_cell(tmp_path):
    def hungry(cell, folder):
        if cell.seed == 0:
            np.ones(400_000_000 // 8).sum()  # 400 MB: more than a long test process has free
        return Result(objects=fake_objects(cell))

    if not os.access("/proc/self/clear_refs", os.W_OK):  # elsewhere the peak is the process's, and says so
        return
    cells = [EvaluationCell("zero_shot", "nano", "neu-seg", seed=seed) for seed in (0, 1)]
    first, second = run_cells(cells, tmp_path, hungry, say=lambda line: None)
    assert first.peak_memory_mb - second.peak_memory_mb > 200
