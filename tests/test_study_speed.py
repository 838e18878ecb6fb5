"""Speed: a table row a method and quantity, medians of what a step took, no checkpoint asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from samtune.report.readable_tables import NOT_RUN, pivot
from samtune.report.tables import build_tables
from samtune.study import speed
from samtune.study.speed import run_speed
from small_sam import small_sam


def test_speed_table_has_training_and_prediction_of_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    monkeypatch.setattr(speed, "new_sam", lambda backbone: built.append(backbone) or small_sam())

    def seconds(steps: list[Callable[[], object]], rounds: int, device: str) -> list[float]:
        return [step() or 0.5 * number for number, step in enumerate(steps, 1)]

    monkeypatch.setattr(speed, "_median_seconds", seconds)
    records = run_speed(tmp_path, "vit_b", ("lora_samed", "sam_sp"), images=4)
    assert built == ["vit_b"] * 4 and [record.seconds for record in records] == [2.0, 4.0, 6.0, 8.0]
    table = build_tables(records)["speed"]
    rows = pivot("speed", table).rows
    assert [row[1] for row in rows] == ["lora_samed", "sam_sp"] and not any(NOT_RUN in row for row in rows)
    table = table.set_index(["method", "metric"])["mean"]
    assert table["lora_samed", "training_seconds_per_image"] == 0.5
    assert table["sam_sp", "evaluation_seconds_per_image"] == 2.0
    assert table["sam_sp", "trainable_parameters"] == table["lora_samed", "trainable_parameters"] > 0
    run_speed(tmp_path, "vit_b", ("lora_samed", "sam_sp"), images=4)
    assert len(built) == 4  # read, not measured again


def test_median_in_turns_leaves_the_first_round_and_one_slow_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now, called = [0.0], []
    durations = {"a": iter([9.0, 1.0, 2.0, 7.0]), "b": iter([50.0, 3.0, 30.0, 4.0])}
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def step(name: str) -> None:
        called.append(name)
        now[0] += next(durations[name])

    assert speed._median_seconds([lambda: step("a"), lambda: step("b")], 3, "cpu") == [2, 4]
    assert called == ["a", "b"] * 4
