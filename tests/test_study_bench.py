"""The bench: a record a step of every method, medians in turns, what does not fit, the fastest; and hours from it."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from samtune.common import provenance
from samtune.common.errors import InputError
from samtune.report.tables import build_tables
from samtune.study import bench, estimate, notebooks
from samtune.study.bench import bench_methods, recommendations, run_bench, speed_table
from samtune.study.cells import EvaluationCell, GenerationCell, TrainingCell
from samtune.study.estimate import estimate_seconds
from samtune.study.profile import Notebook, load_profile
from samtune.study.records import Record, cell_of, read_records, write_record
from small_sam import ListedSamples, disc_sample, small_sam

STEPS = {(name, phase) for name in bench_methods("nano") for phase in bench.PHASES}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every backbone is the small SAM; which were built. One precision, on processors with bf16 instructions too."""
    built: list[str] = []
    monkeypatch.setattr(bench, "new_sam", lambda backbone: built.append(backbone) or small_sam())
    monkeypatch.setattr(bench, "BATCHES", (1, 2))
    monkeypatch.setattr(bench, "choose_precision", lambda asked, device: "fp32")
    return built


def test_every_method_is_timed_once_and_read_afterwards(tmp_path: Path, small: list[str]) -> None:
    records = run_bench(tmp_path, ["nano"], 1.0, "cpu", say=lambda line: None)
    table = speed_table(records)
    first = table[table["batch"] == 1]
    assert set(zip(first["method"], first["phase"], strict=True)) == STEPS and len(first) == len(STEPS)
    assert (table["images_per_second"] > 0).all() and table["device"].unique() == [provenance.device_name("cpu")]
    assert build_tables(records)["speed"].equals(table)
    built = len(small)
    again = run_bench(tmp_path, ["nano"], 1.0, "cpu", say=lambda line: None)
    assert len(small) == built and [record.key for record in again] == [record.key for record in records]
    fastest = recommendations(table)
    trained = table[table["phase"] == "train"].groupby("method")["images_per_second"].max()
    assert dict(zip(fastest["method"], fastest["images_per_second"], strict=True)) == trained.to_dict()


def test_any_backbone_can_be_timed_and_a_wrong_name_is_told(tmp_path: Path, small: list[str]) -> None:
    table = speed_table(run_bench(tmp_path, ["mobile_sam", "nano"], 1.0, "cpu", say=lambda line: None))
    assert list(dict.fromkeys(table["backbone"])) == ["nano", "mobile_sam"]
    methods = {backbone: set(rows["method"]) for backbone, rows in table.groupby("backbone")}
    assert methods["nano"] - methods["mobile_sam"] == {"lora", "lora_samed", "spt", "sam_sp"}  # its encoder is no ViT
    with pytest.raises(InputError, match="unknown backbone 'vit_x'; known: "):
        run_bench(tmp_path, ["vit_x"], 1.0, "cpu", say=lambda line: None)


class Clock:
    """A clock that only `run` moves on, by the seconds that a step is said to take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, taken: dict[tuple[str, str], float]) -> None:
        self.now, self.called = 0.0, []
        monkeypatch.setattr(bench.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(bench, "_step", lambda method, cell, device: (cell.method, cell.phase, cell.batch))
        monkeypatch.setattr(bench, "_seconds_a_product", lambda device: 0.0)

        def run(step: tuple[str, str, int], device: str) -> tuple[float, None]:
            self.called.append(step)
            seconds = taken[step[1]] * step[2]
            if seconds == float("inf"):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            self.now += seconds
            return seconds, None

        monkeypatch.setattr(bench, "run_step", run)


def test_bench_ends_in_time_and_times_the_papers_training_first(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, {"train": 20.0, "encode": 4.0, "decode": 1.0})
    records = run_bench(tmp_path, ["vit_b"], 1.5, "cpu", say=lambda line: None)
    assert clock.now <= 90
    assert [step[:2] for step in clock.called[:3]] == [("lora", "train"), ("spt", "train"), ("sam_sp", "train")]
    table = speed_table(records)
    assert len(records) == len(set(clock.called)) and set(table["images_per_second"]) <= {1 / 20, 1 / 4, 1.0}
    before = len(clock.called)
    more = run_bench(tmp_path, ["vit_b"], 1.5, "cpu", say=lambda line: None)  # goes on with what is missing
    assert len(more) > len(records) and clock.now <= 180
    assert not set(clock.called[:before]) & set(clock.called[before:])


def test_a_step_that_cannot_fit_is_not_started(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, {"train": 20.0, "encode": 4.0, "decode": 1.0})
    monkeypatch.setattr(bench, "_seconds_a_product", lambda device: 1.0)
    assert run_bench(tmp_path, ["nano"], 1.0, "cpu", say=lambda line: None) == [] and clock.called == []


def test_what_was_timed_is_kept_when_the_bench_is_stopped(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, {"train": 1.0, "encode": 1.0, "decode": 1.0})
    timed = bench.run_step

    def stopped(step: tuple[str, str, int], device: str) -> tuple[float, None]:
        if step[1] == "encode":
            raise KeyboardInterrupt
        return timed(step, device)

    monkeypatch.setattr(bench, "run_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_bench(tmp_path, ["nano"], 60.0, "cpu", say=lambda line: None)
    assert {record.cell["phase"] for record in read_records(tmp_path / "records")} == {"train"} and clock.called


def test_median_in_turns_leaves_the_first_round_out_and_what_does_not_fit_is_0(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    taken = {"lora": iter([9.0, 1.0, 2.0, 7.0]), "spt": iter([50.0, 3.0, 30.0, 4.0])}

    def run(step, device):
        called.append(step)
        if step == "sam_sp":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return next(taken[step]), None

    monkeypatch.setattr(bench, "run_step", run)
    monkeypatch.setattr(bench, "_seconds_a_product", lambda device: 0.0)
    monkeypatch.setattr(bench, "_step", lambda method, cell, device: cell.method)
    names = ("lora", "spt", "sam_sp")
    cells = {(name, "train"): bench.TimingCell(name, "nano", "train", 4, "fp32", False, "x") for name in names}
    found: dict = {}
    bench._Bench("nano", "cpu", False, float("inf")).time(cells, dict.fromkeys(cells, 0.0), found)
    speeds = [found[cell.key()].extras["images_per_second"] for cell in cells.values()]
    assert speeds == [4 / 2, 4 / 4, 0.0]
    assert called == ["lora", "spt", "sam_sp"] + ["lora", "spt"] * 3


def test_a_cards_first_step_never_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_step", lambda method, cell, device: cell.method)
    method = bench.build_method("lora", small_sam())
    monkeypatch.setattr(bench._Bench, "method", lambda self, name: self.methods.setdefault(name, method))
    cells = {("lora", "train"): bench.TimingCell("lora", "nano", "train", 4, "fp32", False, "x")}
    for device, rounds, expected in (("cuda", 1, []), ("cuda", 2, [4 / 2]), ("cpu", 1, [4 / 9])):
        taken, found = iter([9.0, 2.0][:rounds]), {}
        monkeypatch.setattr(bench, "run_step", lambda step, device, taken=taken: (next(taken), None))
        monkeypatch.setattr(bench, "ROUNDS", rounds)
        bench._Bench("nano", device, False, float("inf")).time(cells, {("lora", "train"): 1.0}, found)
        assert [result.extras["images_per_second"] for result in found.values()] == expected


def test_a_method_that_does_not_fit_itself_is_0_pictures_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(self: bench._Bench, name: str) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench._Bench, "method", too_large)
    cells = {("lora", "train"): bench.TimingCell("lora", "nano", "train", 4, "fp32", False, "x")}
    found: dict = {}
    bench._Bench("nano", "cpu", False, float("inf")).time(cells, {("lora", "train"): 1.0}, found)
    assert [result.extras["images_per_second"] for result in found.values()] == [0.0]


def test_compilation_and_bf16_are_tried_on_cuda_alone() -> None:
    assert {compiled for _, compiled in bench.settings("cpu")} == {False} and ("fp32", False) in bench.settings("cpu")
    assert len(bench.settings("cuda:1")) == 4


def test_hours_come_from_the_bench_where_nothing_alike_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def timing(method: str, phase: str, speed: float, diffusion: str = "", batch: int = 1) -> Record:
        cell = bench.TimingCell(method, "vit_b", phase, batch, "fp32", False, "x", diffusion=diffusion)
        values = {"method": method, "backbone": "vit_b", "phase": phase, "batch": batch, "precision": "fp32"}
        values |= {"compiled": False, "device": "x", "diffusion": diffusion}
        return Record(cell.key(), "timing", values, seconds=1 / speed,
                      hardware=provenance.hardware(), extras={"images_per_second": speed})  # fmt: skip

    records = [timing("lora", "train", 0.5), timing("lora", "encode", 4.0), timing("lora", "decode", 20.0)]
    records += [timing("decoder_tuning", phase, 10.0) for phase in ("encode", "decode")]
    assert cell_of(records[0]).key() == records[0].key
    training = TrainingCell("lora", ("neu-seg",), "vit_b", images=30)
    assert estimate_seconds([training], records) == pytest.approx(60)
    faster = [*records, timing("lora", "train", 2.0, batch=8)]
    for batch, seconds in ((1, 60), (4, 60), (8, 15), (16, 15)):  # at the largest batch that is no larger
        asked = replace(training, hyper={"batch_size": batch})
        assert estimate_seconds([asked], faster) == pytest.approx(seconds)
    measured = training.evaluation("neu-seg", max_images=8)
    assert estimate_seconds([measured], records) == pytest.approx(8 / 4 + 8 / 20)
    opened = []
    monkeypatch.setattr(estimate, "open_dataset", lambda name: opened.append(name) or ListedSamples([disc_sample(0)]))
    whole = [training.evaluation("discs of this test", split=split) for split in ("val", "test", "test")]
    assert estimate_seconds(whole, records) == pytest.approx(3 * (1 / 4 + 1 / 20)) and len(opened) == 2
    spt = TrainingCell("spt", ("neu-seg",), "vit_b", images=30)  # not timed: as the slowest that was
    assert estimate_seconds([spt], records) == pytest.approx(60)
    assert estimate_seconds([spt.evaluation("neu-seg", max_images=8)], records) == pytest.approx(8 / 4 + 8 / 10)
    assert estimate_seconds([spt.evaluation("neu-seg", max_images=8)], records[:2]) == pytest.approx(8 / 0.5)
    untuned = EvaluationCell("zero_shot", "vit_b", "neu-seg", max_images=10)
    truth = EvaluationCell("truth", "none", "neu-seg", max_images=10)
    assert estimate_seconds([untuned, truth], records) == pytest.approx(2)
    larger = TrainingCell("lora", ("neu-seg",), "vit_l", images=30)
    assert estimate_seconds([larger], records) is None
    assert estimate_seconds([larger.evaluation("neu-seg", max_images=8)], records) is None
    inversion = GenerationCell("inversion", "bsds500", 4, "nano", options={"recipe": "direct", "steps": 20})
    attack = GenerationCell("attack", "bsds500", 4, "nano", options={"steps": 3}, inversion=inversion)
    assert estimate_seconds([inversion], records) is None
    records.append(timing("inversion", "evaluate", 1.0, "a larger diffusion model"))
    assert estimate_seconds([inversion], records) is None
    records += [timing("inversion", "evaluate", 10.0, "nano"), timing("attack", "evaluate", 8.0, "nano")]
    assert estimate_seconds([inversion], records) == pytest.approx(4 * 20 * 5 / 10)
    assert estimate_seconds([attack], records) == pytest.approx(4 * 2 * 20 * 4 / 8)
    latent = replace(attack, inversion=replace(inversion, options={"recipe": "autoencoder"}))
    assert estimate_seconds([latent], records) is None  # not timed, and not free
    through_all = replace(attack, options={"steps": 3, "last_steps": 1000})
    assert estimate_seconds([through_all], records) == pytest.approx(4 * 2 * 20 * (4 + 3 * 3) / 8)


def test_an_empty_table_has_its_columns() -> None:
    assert isinstance(speed_table([]), pd.DataFrame) and "images_per_second" in speed_table([])


def test_hours_come_from_another_profiles_bench_on_the_same_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))
    step = bench.TimingCell("lora", "vit_b", "train", 1, "fp32", False, "x")
    [made] = bench.run_cells([step], "quick", lambda cell, _: bench.Result(extras={"images_per_second": 0.5}))
    training = TrainingCell("lora", ("neu-seg",), "vit_b", images=30)
    monkeypatch.setitem(notebooks.ASKED, "10_spt", lambda profile, *_: bench.run_cells([training], profile.name, None))
    profile = load_profile("gpu").model_copy(update={"notebooks": {"10_spt": Notebook()}})
    assert [left.seconds for left in notebooks.outlook(profile)] == [pytest.approx(60)]
    write_record(tmp_path / "quick" / "records", replace(made, hardware="another machine"))
    assert [left.seconds for left in notebooks.outlook(profile)] == [None]
