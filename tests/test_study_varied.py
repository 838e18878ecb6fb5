"""Columns `option` and `value`: they say what a row's cell changes, whatever its label says."""

from dataclasses import replace

import pytest

from samtune.study import sam_sp, spt
from samtune.study.cells import EvaluationCell, TrainingCell, plain_cell
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.varied import option_and_value, varied

DATA = "synthetic-medical"
pytestmark = pytest.mark.usefixtures("small_backbone")


def rows(cells: list[EvaluationCell]) -> dict[tuple[str, str], dict[str, object]]:
    """What the studies' cells vary, by table and variant (of the last method that it has)."""
    found = {}
    for cell in cells:
        for place in cell.tables:
            table, _, variant = place.partition(":")
            found[table, variant] = varied(Record(cell.key(), "evaluation", plain_cell(cell)), table, variant)
    return found


def test_ablations_of_spt_say_what_they_change(profile: Profile, asked: list[EvaluationCell]) -> None:
    profile = profile.model_copy(update={"plateau_images": 50})
    spt.run_main(profile, [DATA, "magnetic-tile"], [0], [DATA])
    spt.run_ablations(profile, [DATA, "synthetic-gpr"], [0])
    found = rows(asked)
    for group in (spt.PARTS, *spt.GROUPS.values()):
        for variant, changes in group.items():
            assert found["spt_ablation", variant] == (changes or {"train_share": 1}), variant
    noise = {variant: options["box_noise"] for (_, variant), options in found.items() if "box_noise" in options}
    assert noise == {f"box noise {percent}%": percent / 100 for percent in (0, 10, 20, 30, 40)}
    assert found["spt_ablation", "plateau"] == {"images": 50}
    for variant in (spt.NEITHER, spt.BOTH, spt.CLICKS, spt.WITH_MASK, "transfer"):
        assert found["spt_ablation", variant] == {}, variant
    assert found["spt_main", ""] == {} and found["spt_main", "untrained"] == {"images": 0}
    assert found["spt_main", "two decoders, end to end"] == spt.END_TO_END
    assert found["spt_main", "defect-free"] == {"target": "nothing"}


def test_ablations_of_sam_sp_say_what_they_change(profile: Profile, asked: list[EvaluationCell]) -> None:
    profile = profile.model_copy(update={"images": 40})
    sam_sp.run_main(profile, [DATA], [0])
    sam_sp.run_ablations(profile, [DATA], [0])
    found = rows(asked)
    for variant, changes in (sam_sp.CONTROLS | sam_sp.SIZES).items():
        assert found["sam_sp_ablation", variant] == (changes or {"train_share": 1}), variant
    assert found["sam_sp_ablation", "alpha 0.1"] == {}  # the default since it was chosen
    for group in sam_sp.GROUPS.values():
        for variant, changes in group.items():
            if variant != "alpha 0.1":
                assert found["sam_sp_ablation", variant] == {"distillation_weight": 1} | changes, variant
    assert found["sam_sp_main", ""] == found["sam_sp_ablation", "SAM-SP"] == {}
    assert found["sam_sp_main", sam_sp.ALPHA_1] == {"distillation_weight": 1}
    assert found["sam_sp_main", sam_sp.ON_BOTH].items() <= sam_sp.TRUTH_ON_BOTH.items()  # without what is the default
    assert found["sam_sp_ablation", sam_sp.DICE] == sam_sp.TAUGHT_DIRECTLY
    assert found["sam_sp_ablation", sam_sp.FIRST_ALONE] == {"trained_as": "lora_samed"}
    assert found["sam_sp_main", "everything"] == {"everything": sam_sp.GRID}
    # What only the measurement changes is told from what the training changes.
    assert found["sam_sp_ablation", "iterations"] == {"test_iterations": 3}
    assert found["sam_sp_ablation", "trained with 3 iterations"] == {"iterations": 3}
    assert found["sam_sp_ablation", "true box"] == {"test_self_prompt": "given"}
    taught = {"prompt": "box", "self_prompt": "given"}
    assert found["sam_sp_ablation", "true box in training and test"] == taught
    assert found["sam_sp_ablation", "true box in training"] == taught | {"test_self_prompt": "box"}
    images = [found["sam_sp_ablation", variant] for variant in sam_sp.SHARES]
    assert images == [{"images": number} for number in (4, 10, 20, 40)]


def test_the_value_is_the_cells_and_not_the_labels() -> None:
    cell = TrainingCell("lora", (DATA,), "nano", prompt="box,point10", hyper={"rank": 16, "learning_rate": 0.5})
    shown = replace(cell.evaluation(DATA), tables=("spt_ablation:rank 2",))
    assert rows([shown]) == {("spt_ablation", "rank 2"): {"rank": 16}}
    assert rows([replace(shown, tables=("learning_rates:0.001",))]).popitem()[1] == {"learning_rate": 0.5}


def test_several_options_stand_in_one_order() -> None:
    assert option_and_value({"b": 1.0, "a": False, "c": "box,point10"}) == ("a, b, c", "False, 1, box,point10")
    assert option_and_value({}) == ("", "")
