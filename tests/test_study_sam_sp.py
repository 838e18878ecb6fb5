"""SAM-SP's study: a smoke profile end to end on the small SAM, and which cells are asked for."""

import inspect

import pytest

from samtune.common.errors import InputError
from samtune.data.polyps import TEST_SETS
from samtune.losses import samed_loss, squared_dice_loss
from samtune.methods import SamSP
from samtune.report.claims import build_claims
from samtune.report.tables import build_tables
from samtune.study.cells import EvaluationCell, plain_cell
from samtune.study.execute import cell_method
from samtune.study.own_row import own_variant
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import only_planned
from samtune.study.sam_sp import (
    BESIDE,
    CONTROLS,
    GROUPS,
    REPEATED,
    SAMED,
    SIZES,
    START,
    TRUTH_ON_BOTH,
    TUNED,
    WHOLE,
    group_names,
    iteration_cells,
    run_ablations,
    run_main,
    sam_sp_plan,
)
from small_sam import small_sam

DATA = "synthetic-medical"
pytestmark = pytest.mark.usefixtures("small_backbone")


def test_a_row_of_ones_own(profile: Profile) -> None:
    with only_planned() as cells:
        run_main(profile, [DATA], [0, 1], ["unet"], {"temperature": 2.0, "learning_rate": 0.5})
    own = [cell for cell in cells if "sam_sp_main:own: temperature 2.0, learning rate 0.5" in cell.tables]
    assert [cell.training.seed for cell in own] == [0, 1]
    for cell in own:
        hyper = dict(cell.training.hyper)
        assert (hyper["temperature"], hyper["learning_rate"], hyper["optimiser"]) == (2.0, 0.5, "adamw")
    with pytest.raises(InputError, match="unknown option of sam_sp 'temprature'; known: temperature"):
        run_main(profile, [DATA], [0], ["unet"], {"temprature": 2.0})
    for changes, message in (
        ({"rank": "abc"}, "rank is 'abc': it has to be a number"),
        ({"temperature": float("inf")}, "temperature is inf: it has to be a finite number"),
        ({"learning_rate": -1}, "learning_rate is -1: it has to be above 0"),
        ({"optimiser": "sgd"}, "unknown optimiser 'sgd'; known: adam"),
        ({"augmentation": 3}, "sam_sp cannot be trained with {'augmentation': 3}"),
    ):
        with pytest.raises(InputError, match="^" + message):
            own_variant("sam_sp", changes)


def test_main_table_of_a_smoke_profile(profile: Profile) -> None:
    records = run_main(profile, [DATA], [0])
    table = build_tables(records)["sam_sp_main"].query("metric == 'dice'")
    everything = table[table["variant"] == "everything"].set_index("output")["mean"]
    assert everything["best_by_truth"] >= everything["final"] and set(everything.index) == {"final", "best_by_truth"}
    assert set(table[table["variant"] == "a box an object"]["prompt"]) == {"box"}
    dice = table[table["variant"] == ""]
    for variant in ("truth on both passes", "alpha 1"):
        rows = table[table["variant"] == variant]
        assert set(zip(rows["method"], rows["output"], strict=True)) == {
            ("sam_sp", output) for output in ("pass0", "pass1", "final")
        }
    rows = set(zip(dice["method"], dice["prompt"], dice["output"], strict=True))
    unprompted = {
        (method, "none", "final") for method in ("zero_shot", "decoder_tuning", "lora_samed", "unet", "sam_sp")
    }
    expected = unprompted | {("sam_sp", "none", f"pass{number}") for number in (0, 1)}
    expected |= {("zero_shot", prompt, "final") for prompt in ("box", "point1")}
    assert rows == expected | {("truth", "none", "at_mask_size")}
    by_method = {record.method: record for record in records if "" in record.variants("sam_sp_main")}
    assert by_method["unet"].cell["training"]["hyper"]["image_size"] == 64  # the backbone's
    assert by_method["unet"].backbone == "none" and by_method["sam_sp"].backbone == "nano"
    assert by_method["sam_sp"].extras["counts"]["first predictions"] == 2
    assert "box_iou" in by_method["sam_sp"].objects and "box_iou" not in by_method["lora_samed"].objects
    verdicts = build_claims(records, "smoke", "nano").set_index("id")["verdict"]
    assert all(verdicts[claim] == "inconclusive" for claim in ("P1a", "P1b", "P2a", "P4", "P6a"))
    assert verdicts["P3"] == "not run"


def test_nothing_in_training_or_use_has_a_prompt(profile: Profile, asked: list[EvaluationCell]) -> None:
    run_main(profile, [DATA], [0, 1])
    run_ablations(profile, [DATA], [0])
    trained = [cell for cell in asked if cell.training]
    prompted = {place for cell in trained if cell.training.prompt != "none" for place in cell.tables}
    upper = {"sam_sp_ablation:true box", "sam_sp_ablation:true box in training and test"}  # bounds, and they say so
    assert prompted == {"sam_sp_ablation:true box in training", "sam_sp_ablation:true box in training and test"}
    assert {place for cell in trained if cell.prompt != "none" for place in cell.tables} == upper


def test_baselines_can_be_left_out(profile: Profile, asked: list[EvaluationCell]) -> None:
    run_main(profile, [DATA], [0], ["lora_samed"])
    assert {cell.method for cell in asked} == {"truth", "zero_shot", "lora_samed", "sam_sp"}


def test_every_ablation_changes_what_it_says(profile: Profile, asked: list[EvaluationCell]) -> None:
    profile = profile.model_copy(update={"plateau_images": 50, "images": 40})
    run_ablations(profile, [DATA], [0], ["controls", "true box in training", "size", "prompt quality", "plateau"])
    default = sam_sp_plan(profile, [DATA]).training("sam_sp", DATA, 0).key()
    variants = {(cell.tables[0].partition(":")[2], cell.method): cell for cell in asked}
    assert {cell.split for cell in asked} == {"test"}
    sizes = [variants[variant, "sam_sp"].training.key() for variant in SIZES]
    assert len(set(sizes)) == len(sizes) and sizes[-1] == default
    assert {method for variant, method in variants if variant == "25% of the pictures"} == {
        "lora_samed", "unet", "sam_sp"
    }  # fmt: skip
    changed = [variants[variant, "sam_sp"].training for variant in (*CONTROLS, "true box in training")]
    assert len({default, *(training.key() for training in changed)}) == 1 + len(changed)
    for training, changes in zip(changed, CONTROLS.values(), strict=False):
        method, usual = cell_method(training), SamSP(small_sam())
        assert all(getattr(method, name) == value != getattr(usual, name) for name, value in changes.items())
    direct = variants["Dice loss", "lora_samed"].training
    assert cell_method(direct).mask_loss is SamSP(small_sam()).mask_loss is squared_dice_loss
    assert direct.images == variants["SAM-SP", "sam_sp"].training.images
    first_alone = variants["truth on the first pass alone", "sam_sp"]
    assert first_alone.training.key() == direct.key() and isinstance(cell_method(first_alone), SamSP)
    taught = variants["true box in training", "sam_sp"]  # it prompts itself at test time
    assert cell_method(taught).self_prompt == "box" and cell_method(taught.training).self_prompt == "given"
    assert variants["true box", "sam_sp"].training.key() == variants["SAM-SP", "sam_sp"].training.key() == default
    share = {variant: cell.training.images for (variant, _), cell in variants.items() if variant.startswith("after")}
    assert share == {f"after {percent}% of the training": 40 * percent // 100 for percent in (10, 25, 50, 100)}
    assert variants["after 100% of the training", "sam_sp"].training.key() == default
    assert {method for variant, method in variants if variant == "plateau"} == set(TUNED)
    assert variants["plateau", "lora_samed"].training.images == 50
    usual = {method: cell.training.images for (variant, method), cell in variants.items() if variant == WHOLE}
    assert usual == dict.fromkeys(TUNED, 40)  # beside the plateau, every method as in the main table


def test_choices_change_one_option_and_do_not_depend_on_defaults(profile: Profile, asked: list[EvaluationCell]) -> None:
    run_ablations(profile, [DATA], [0], list(GROUPS))
    trained: dict[str, dict[str, dict]] = {}
    for cell in asked:
        table, _, variant = cell.tables[0].partition(":")
        trained.setdefault(cell.split, {})[variant] = dict(cell.training.hyper)
        assert table == {"val": "sam_sp_choices", "test": "sam_sp_ablation"}[cell.split]
    assert trained["val"] == trained["test"]
    start = trained["val"].pop("starting point")
    assert len(trained["val"]) == sum(map(len, GROUPS.values()))
    in_groups = inspect.signature(SamSP).parameters.keys() - {"sam", "alpha", "detach_teacher"}
    assert START.keys() == in_groups | SAMED.keys()
    for variant, options in trained["val"].items():
        # In full: a new default of SamSP leaves the record what it is.
        assert set(START) - {"mask_loss"} <= set(options)
        assert options.get("mask_loss", "samed") == GROUPS["recipe"].get(variant, {}).get("mask_loss", "squared_dice")
        assert 1 <= len(set(options.items()) ^ set(start.items())) <= 6


def test_what_claims_rest_on_has_all_seeds_and_sets_and_the_rest_the_profiles_few(
    profile: Profile, asked: list[EvaluationCell]
) -> None:
    sets = [DATA, "synthetic-natural", "synthetic-industrial"]
    run_ablations(profile, sets, [1, 2])
    seeds: dict[str, set[int]] = {}
    tested: dict[str, set[str]] = {}
    for cell in asked:
        variant = cell.tables[0].partition(":")[2]
        seeds.setdefault(variant, set()).add(cell.seed)
        tested.setdefault(variant, set()).add(cell.dataset)
    bounds = {"SAM-SP", "true box", "true box in training", "true box in training and test"}
    claimed = {*CONTROLS, *bounds, "Dice loss", "truth on the first pass alone", "iterations"}
    assert {variant for variant in seeds if seeds[variant] == {1, 2}} == claimed
    assert {variant for variant in seeds if seeds[variant] == {0, 1, 2}} == set(REPEATED)
    others = seeds.keys() - claimed - set(REPEATED)
    assert all(seeds[variant] == {0} for variant in others)  # the profile's, whatever is asked for
    assert {variant for variant in tested if tested[variant] == set(sets)} == claimed
    assert all(tested[variant] == set(sets[:2]) for variant in seeds.keys() - claimed)


def test_truth_on_both_passes_is_the_cell_of_the_kits_first_version(profile: Profile) -> None:
    """Its key says nothing of what could not be chosen then, so that the committed records are its."""
    both = sam_sp_plan(profile, [DATA], ("sam_sp",), **TRUTH_ON_BOTH).training("sam_sp", DATA, 0)
    hyper = dict(both.hyper)
    assert set(SamSP.named_options) | set(SAMED) | {"learning_rate", "batch_size"} == set(hyper)
    assert (hyper["first_weight"], hyper["distillation_weight"], hyper["temperature"]) == (1, 0.1, 2)
    method = cell_method(both)
    assert method.mask_loss is samed_loss and method.detach_teacher
    plan = sam_sp_plan(profile, [DATA])
    assert dict(plan.training("sam_sp", DATA, 0).hyper) == hyper | {
        "first_weight": 0, "temperature": 1, "mask_loss": "squared_dice"
    }  # fmt: skip
    # The same for LoRA: SAMed's loss, which was its only one, is no part of its key.
    assert "mask_loss" not in dict(plan.training("lora_samed", DATA, 0).hyper)
    assert cell_method(plan.training("lora_samed", DATA, 0)).mask_loss is samed_loss


def test_a_new_default_makes_other_cells(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what was run with the old default would be read as the new method's."""
    old = sam_sp_plan(profile, [DATA]).training("sam_sp", DATA, 0)
    chosen = START | GROUPS["alpha"]["alpha 0.1"]  # the one change that was above the starting point on validation
    assert old == sam_sp_plan(profile, [DATA], **chosen).training("sam_sp", DATA, 0)
    defaults = SamSP.__init__.__defaults__
    monkeypatch.setattr(SamSP.__init__, "__defaults__", (8, *defaults[1:]))
    assert sam_sp_plan(profile, [DATA]).training("sam_sp", DATA, 0).key() != old.key()


def test_iterations_at_test_reach_the_method_and_not_its_training(profile: Profile) -> None:
    (cell,) = iteration_cells(sam_sp_plan(profile, [DATA]), DATA, [0])
    assert cell_method(cell).iterations == 3 and cell_method(cell.training).iterations == 1


def test_groups_can_be_asked_for_alone(profile: Profile, asked: list[EvaluationCell]) -> None:
    for group in group_names():
        asked.clear()
        run_ablations(profile, [DATA], [0], [group])
        assert bool(asked) == (group != "plateau"), group  # smoke has none


def test_polyps_train_one_model_a_method_for_five_test_sets(profile: Profile, asked: list[EvaluationCell]) -> None:
    run_main(profile, ["polyps"], [0])
    tuned = [cell for cell in asked if cell.training]
    assert {cell.dataset for cell in asked} == {cell.dataset for cell in tuned} == set(TEST_SETS)
    assert {cell.training.train_datasets for cell in tuned} == {("polyps",)}
    assert len({cell.training for cell in tuned}) == len(TUNED) + len(BESIDE)
    records = [Record(cell.key, cell.kind, plain_cell(cell)) for cell in tuned]
    assert {record.train_datasets == (record.dataset,) for record in records} == {True}  # not shown as unseen sets


def test_controls_of_polyps_are_measured_on_the_main_tables_five_sets(
    profile: Profile, asked: list[EvaluationCell]
) -> None:
    run_ablations(profile, ["polyps"], [0], ["controls", "iterations", "true box in training"])
    measured: dict[str, set[str]] = {}
    for cell in asked:
        measured.setdefault(cell.tables[0], set()).add(cell.dataset)
    assert {"sam_sp_ablation:Dice loss", "sam_sp_ablation:iterations"} < measured.keys()
    assert all(sets == set(TEST_SETS) for sets in measured.values())
