"""SPT's study: a smoke profile end to end on the small SAM, and which cells are asked for."""

import pytest

from samtune.methods import build_method
from samtune.report.claims import build_claims
from samtune.report.tables import build_tables
from samtune.study import spt
from samtune.study.cells import EvaluationCell
from samtune.study.plan import Plan
from samtune.study.profile import Profile
from samtune.study.spt import group_names, matching_rank, robustness_cells, run_ablations, run_main
from small_sam import small_sam

DATA = "synthetic-industrial"
pytestmark = pytest.mark.usefixtures("small_backbone")


def test_main_table_of_a_smoke_profile(profile: Profile) -> None:
    records = run_main(profile, [DATA], [0], [DATA])
    table = build_tables(records)["spt_main"]
    iou = table[table["metric"] == "iou"]
    rows = set(zip(iou["method"], iou["variant"], iou["output"], strict=True))
    rank = f"rank {matching_rank('nano')}, as many parameters"
    both = {("spt", variant, output) for variant in ("", "untrained", "two decoders, end to end")
            for output in ("draft", "final")}  # fmt: skip
    plain = {(method, "", "final") for method in ("zero_shot", "decoder_tuning", "lora")}
    assert rows == both | plain | {("lora", rank, "final"), ("truth", "", "at_mask_size")}
    verdicts = build_claims(records, "smoke", "nano").set_index("id")["verdict"]
    assert all(verdicts[claim] == "inconclusive" for claim in ("S1a", "S1b", "S4")) and verdicts["S3a"] == "not run"


def test_rank_that_matches_spts_parameters() -> None:
    def count(rank: int) -> int:
        return build_method("lora", small_sam(), rank=rank).count_trainable()

    spt, rank = build_method("spt", small_sam()).count_trainable(), matching_rank("nano")
    assert count(rank) >= spt > count(rank - 1)


def test_controls_differ_from_spt_as_they_say(profile: Profile, asked: list[EvaluationCell]) -> None:
    run_main(profile, [DATA, "magnetic-tile"], [0, 1], [DATA], union=True)
    by_table = {place: cell for cell in asked for place in cell.tables}
    two = by_table["spt_main:two decoders, end to end"]
    assert {cell.dataset for cell in asked if cell.tables[0].startswith("spt_main:two")} == {DATA}
    assert two.method == "spt" and spt.END_TO_END.items() <= dict(two.training.hyper).items()
    assert spt.END_TO_END == {"relation": False, "detach_draft": False}
    untrained = by_table["spt_main:untrained"]
    assert untrained.method == "spt" and untrained.training is None
    free = [cell for cell in asked if cell.target == "nothing"]
    assert {cell.dataset for cell in free} == {"magnetic-tile"} and len(free) == 2 * 4
    union = [cell for cell in asked if cell.training and len(cell.training.train_datasets) == 2]
    assert {(cell.method, cell.dataset, cell.seed) for cell in union} == {
        (method, dataset, seed) for method in spt.TUNED for dataset in (DATA, "magnetic-tile") for seed in (0, 1)
    }
    assert len({cell.key() for cell in asked}) == len(asked)


def test_other_backbones_come_last_without_controls(profile: Profile, asked: list[EvaluationCell]) -> None:
    run_main(profile.model_copy(update={"other_backbones": ("other",)}), [DATA], [0])
    first = next(place for place, cell in enumerate(asked) if cell.backbone == "other")
    assert {cell.backbone for cell in asked[:first]} == {"none", "nano"}
    assert [cell.backbone for cell in asked[first:]] == ["other"] * 4  # the truth's row stands there once
    assert [cell.tables for cell in asked[first:]] == [("spt_main",)] * 4


def test_every_ablation_changes_what_it_says_and_trains_nothing_twice(
    profile: Profile, asked: list[EvaluationCell]
) -> None:
    profile = profile.model_copy(update={"plateau_images": 50})
    two = [DATA, "synthetic-gpr"]
    run_ablations(profile, two, [0, 1], transfer=two)
    variants: dict[str, set] = {}
    chosen_from: dict[str, set] = {}
    for cell in asked:
        table, _, variant = cell.tables[0].partition(":")
        if table == "spt_choices":
            chosen_from.setdefault(variant, set()).add((cell.method, cell.split))
            continue
        assert cell.split == "test"
        variants.setdefault(variant, set()).add((cell.method, cell.training and cell.training.key(), cell.options))
    changed = {variant for group in spt.GROUPS.values() for variant in group} | set(spt.PARTS)
    changed -= {spt.WHOLE}
    rest = {spt.WHOLE, "neither", "SDT + VRA", "points", spt.WITH_MASK, "transfer", "plateau"}
    rest |= {f"box noise {n}%" for n in (0, 10, 20, 30, 40)}
    assert set(variants) == changed | rest
    both = {("lora", "val"), ("spt", "val")}
    options = {variant for group in ("draft", "relation", "lora") for variant in spt.GROUPS[group]}
    assert chosen_from == {variant: {("spt", "val")} for variant in options} | {
        variant: both for variant in ("", *spt.GROUPS["prompts"])
    }
    plan = Plan(profile).choose_rates([DATA], ("lora", "spt"))
    default = plan.training("spt", DATA, 0).key()
    for variant in changed:
        assert default not in {key for method, key, _ in variants[variant] if method == "spt"}, variant
    trained = {key for variant in changed | {"plateau"} for method, key, _ in variants[variant] if method == "spt"}
    # A training each, plateau, and those that are run on two sets with two seeds.
    assert len(trained) == len(changed) + 1 + 3 * (len(spt.PARTS) + 1)
    for variant in (spt.WHOLE, "SDT + VRA", "box noise 0%", spt.WITH_MASK):
        assert ("spt", default, ()) in variants[variant], variant
    transfer = [cell for cell in asked if cell.tables[0].endswith(":transfer") and cell.training]
    assert all(cell.dataset not in cell.training.train_datasets for cell in transfer) and len(transfer) == 2 * 2 * 2
    assert {cell.training.prompt for cell in asked if cell.tables[0].endswith("trained on boxes")} == {"box"}
    assert {cell.training.images for cell in asked if cell.tables[0].endswith(":plateau")} == {50}


def test_groups_can_be_asked_for_alone(profile: Profile, asked: list[EvaluationCell]) -> None:
    for group in group_names():
        asked.clear()
        run_ablations(profile, [DATA], [0], [group])
        # smoke has no plateau, and one set leaves nothing to transfer to but zero-shot
        assert bool(asked) == (group != "plateau"), group


def test_robustness_keeps_a_methods_cells_together(profile: Profile) -> None:
    methods = [cell.method for cell in robustness_cells(Plan(profile).choose_rates([DATA], ("lora", "spt")), DATA, 0)]
    changes = sum(one != other for one, other in zip(methods, methods[1:], strict=False))
    assert changes == 2 and len(methods) == 3 * 11
