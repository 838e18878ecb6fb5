"""Answers: the sentence follows from records by rule, whichever way they fall out."""

import dataclasses

import pytest

from fake_records import fake_cells, fake_execute
from samtune.report.answers import answers
from samtune.study.cells import TrainingCell
from samtune.study.records import read_records
from samtune.study.runner import Result, run_cells
from samtune.study.sam_sp import TAUGHT_DIRECTLY, TRUTH_ON_BOTH

SETS = ("magnetic-tile", "neu-seg")


def answer_of(tmp_path, cells, paper, execute=fake_execute):
    run_cells(cells, tmp_path, execute, say=lambda line: None)
    found = {answer.paper: answer for answer in answers(read_records(tmp_path / "records"), "cpu")}
    assert list(found) == ["SPT", "SAM-SP", "ASAM"]
    return found[paper]


@pytest.mark.parametrize(
    ("shift", "few", "verdict"),
    [
        (0.0, False, "gain"),
        (-0.05, False, "no demonstrated gain"),
        (-0.1, False, "loss"),
        (0.0, True, "too few pictures"),
    ],
)
def test_spt_over_lora(tmp_path, shift, few, verdict):
    def execute(cell, folder):
        result = fake_execute(cell, folder)
        if result.objects is None:
            return result
        objects = result.objects[result.objects["image"] < "003"] if few else result.objects
        moved = shift * (cell.method == "spt") + 0.02 * (cell.dataset == "neu-seg" and cell.method == "spt")
        return Result(objects=objects.assign(iou=objects["iou"] + moved - 0.01 * (cell.method == "spt")))

    answer = answer_of(tmp_path, fake_cells(("spt_main",), SETS, ("lora", "spt")), "SPT", execute)
    assert answer.verdict == verdict and f" in the mean over two sets: {verdict} with the nano SAM." in answer.sentence
    assert (
        answer.sentence.startswith("SPT minus LoRA at equal training, box: ") and "points of IoU [" in answer.sentence
    )
    ends = "Best on neu-seg, " in answer.sentence and ", worst on magnetic-tile, " in answer.sentence
    assert ends != few  # of too few pictures none is said to be best
    pictures = 3 if few else 12
    assert answer.measured_on == (
        f"magnetic-tile, neu-seg; {2 * pictures} pictures, three seeds; prompt: box; backbone: nano"
    )
    assert answer.table["set"].tolist() == ["mean of two sets", "neu-seg", "magnetic-tile"]
    assert answer.table.columns[2:4].tolist() == ["LoRA", "SPT"] and answer.table["pictures"].iloc[0] == 2 * pictures
    effect = answer.sentence.split(": ")[1].split(" points")[0]
    row = answer.table.iloc[0]
    assert row.iloc[1].startswith(effect)
    assert float(effect) == pytest.approx(100 * (float(row["SPT"]) - float(row["LoRA"])), abs=0.15)


def test_not_run(tmp_path):
    answer = answer_of(tmp_path, [], "ASAM")
    assert (answer.verdict, answer.figure, len(answer.table)) == ("not run", "asam_forest", 0)
    assert answer.sentence.endswith("not run.")


def test_clicks_are_told_beside_boxes_and_tables_stay_small(tmp_path):
    sets = ("bbbc038", "drive", "magnetic-tile", "neu-seg", "crackforest", "ph2", "bsds500")
    cells = fake_cells(("spt_main",), sets, ("lora", "spt"))
    cells += [dataclasses.replace(cell, prompt="point1") for cell in cells if cell.method != "zero_shot"]
    answer = answer_of(tmp_path, cells, "SPT")
    beside = answer.beside.set_index("compared too")
    assert list(beside.index) == ["SPT minus LoRA at equal training, one click", "SPT minus zero-shot SAM, box"]
    assert beside.iloc[:, 0].str.startswith("+").all() and beside["sets"].tolist() == [7, 7]
    assert "one click" not in answer.sentence
    assert answer.table.shape == (7, 5) and all(name in answer.measured_on for name in sets)


def test_self_prompting_by_the_comparison_that_is_there(tmp_path, monkeypatch):
    """The one that decides, else LoRA by its own loss, else the kit's first version: each named as such."""
    monkeypatch.setitem(fake_cells.__globals__["LEVELS"], "sam_sp", 0.61)
    monkeypatch.setitem(fake_cells.__globals__["LEVELS"], "lora_samed", 0.6)

    def execute(cell, folder):
        result = fake_execute(cell, folder)
        return result if result.objects is None else Result(objects=result.objects.assign(dice=result.objects["iou"]))

    def cells(method, table, **hyper):
        recipe = {"optimiser": "adamw", "weight_decay": 0.1, "schedule": "polynomial"}
        trainings = [TrainingCell(method, ("drive",), "nano", seed, prompt="none", hyper=recipe | hyper)
                     for seed in (0, 1, 2)]  # fmt: skip
        return [one.evaluation("drive", prompt="none", tables=(table,)) for one in trainings]

    first = cells("lora_samed", "sam_sp_main") + cells("sam_sp", "sam_sp_main:truth on both passes", **TRUTH_ON_BOTH)
    answer = answer_of(tmp_path, first, "SAM-SP", execute)
    assert answer.sentence.startswith("The kit's first version of SAM-SP") and answer.verdict == "gain"
    assert answer.sentence.endswith("SAM-SP by the paper's own loss was not run.")
    answer = answer_of(tmp_path, cells("sam_sp", "sam_sp_main"), "SAM-SP", execute)
    other = "SAM-SP minus LoRA by cross-entropy and Dice"
    assert answer.sentence.startswith(other) and "was not run" in answer.sentence
    assert not answer.beside["compared too"].str.startswith(other).any()
    direct = cells("lora_samed", "sam_sp_ablation:Dice loss", **TAUGHT_DIRECTLY)
    answer = answer_of(tmp_path, direct, "SAM-SP", execute)
    assert "that was taught the truth by the same Dice loss" in answer.sentence and "not run" not in answer.sentence
    assert answer.beside["compared too"].str.startswith(other).sum() == 1
    assert "LoRA, Dice loss" in answer.table
    assert "Why" not in answer.sentence
    monkeypatch.setitem(fake_cells.__globals__["LEVELS"], "sam_sp", 0.55)
    boxes = cells("sam_sp", "sam_sp_ablation:random box", self_prompt="random_box", **TAUGHT_DIRECTLY)
    answer = answer_of(tmp_path, boxes, "SAM-SP", execute)
    row = answer.beside.set_index("compared too").filter(like="with a random box", axis=0).iloc[0]
    assert f" Why: its own box is better than a random one ({row.iloc[0]})." in answer.sentence
    without = cells("sam_sp", "sam_sp_ablation:no distillation", distillation_weight=0.0, **TAUGHT_DIRECTLY)
    answer = answer_of(tmp_path, without, "SAM-SP", execute)
    assert answer.beside["compared too"].iloc[-1] == "SAM-SP with distillation, minus without"
