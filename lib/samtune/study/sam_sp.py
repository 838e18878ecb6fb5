"""The cells of notebooks 20 and 21: SAM-SP's main table, its controls and its ablations."""

from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType

from samtune.data.polyps import POLYPS, TEST_SETS
from samtune.methods.lora import LoraSamed
from samtune.study.cells import EvaluationCell, TrainingCell
from samtune.study.own_row import own_variant
from samtune.study.plan import Plan, images_seen, zero_shot_cell
from samtune.study.profile import Profile
from samtune.study.records import Record

MAIN, ABLATION, CHOICES = "sam_sp_main", "sam_sp_ablation", "sam_sp_choices"
BASELINES = ("decoder_tuning", "lora_samed", "unet")
TUNED = (*BASELINES, "sam_sp")
MOST_ITERATIONS = 3
GRID = 8  # points per side in SAM's everything mode: fine enough for these objects, and a second an image
WHOLE = "100% of the pictures"  # the main table's model, as the last point of the curve

SAMED = dict(LoraSamed.recipe)  # the paper does not say what SAM-SP uses. Group "recipe" has SPT's.

# What the paper leaves open is chosen on validation: one change at a time from `START`, by group and variant. In each
# group, the best change becomes the default of `SamSP` (or `SAMED`) if its Dice, in the mean over the data sets, is
# more than half a point above `START`'s: first with one seed, then in the mean over all seeds. What the paper does say
# stays: the box, and the KL divergence by which the second pass teaches the first. Rows that change it show what it is
# worth. `START` names every option, so that it stays the same training when a default changes. It has squared Dice,
# because by the plain one, at most rates, the nano SAM comes to mark the whole picture (`losses.squared_dice_loss`).
START = {
    "rank": 4, "iterations": 1, "self_prompt": "box", "smallest_part": 0.0, "distillation": "kl",
    "distillation_weight": 1.0, "temperature": 1.0, "reverse": False, "first_weight": 0.0, "mask_loss": "squared_dice",
    "optimiser": "adamw", "weight_decay": 0.1, "schedule": "polynomial",
}  # fmt: skip
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    "alpha": {"alpha 0.1": {"distillation_weight": 0.1}, "alpha 10": {"distillation_weight": 10.0}},
    "distillation": {
        "temperature 2": {"temperature": 2.0},
        "squared error": {"distillation": "mse"},
        "the first pass teaches": {"reverse": True},
    },
    "prompt": {
        "mask prompt": {"self_prompt": "mask"},
        "point prompts": {"self_prompt": "points"},
        "box and mask": {"self_prompt": "box+mask"},
        "box without small parts": {"smallest_part": 0.01},
    },
    "lora": {f"rank {rank}": {"rank": rank} for rank in (2, 8, 16)},
    "recipe": {
        "Adam in steps": {"optimiser": "adam", "weight_decay": 0.0, "schedule": "step"},
        "SAMed's loss": {"mask_loss": "samed"},
        "plain Dice": {"mask_loss": "dice"},
    },
}
# With all seeds: what was above the starting point with one.
REPEATED = (
    "starting point", "alpha 0.1", "squared error", "the first pass teaches", "point prompts", "box and mask",
)  # fmt: skip
# In the main table too, each with its own learning rate: the kit's first version of SAM-SP, before the paper's loss was
# known; and `START`'s alpha, because the choice of another rests on two sets alone.
TRUTH_ON_BOTH = {"distillation_weight": 0.1, "temperature": 2.0, "first_weight": 1.0, "mask_loss": "samed"}
ON_BOTH, ALPHA_1 = "truth on both passes", "alpha 1"
BESIDE = {ON_BOTH: TRUTH_ON_BOTH, ALPHA_1: {"distillation_weight": 1.0}}
# The most important control: equal budget, SAM-SP's own loss, but the first pass learns from the truth directly.
DICE, TAUGHT_DIRECTLY = "Dice loss", {"mask_loss": "squared_dice"}
FIRST_ALONE = "truth on the first pass alone"  # the same weights, tested with SAM-SP's two passes
# Named controls, at SAM-SP's learning rate.
CONTROLS = {
    "no distillation": {"distillation_weight": 0.0},
    "teacher not detached": {"detach_teacher": False},
    "random box": {"self_prompt": "random_box"},
    "trained with 2 iterations": {"iterations": 2},
    "trained with 3 iterations": {"iterations": 3},
}
# SAM-SP, and SAM-SP with the true box in the second pass: at test, in training, in both.
BOUNDS = SAM_SP, TRUE_BOX, TAUGHT, TAUGHT_AND_TESTED = (
    "SAM-SP", "true box", "true box in training", "true box in training and test",
)  # fmt: skip
# Ablations of SAM-SP as it is.
SIZES = {f"{share:.0%} of the pictures": {"train_share": share} for share in (0.1, 0.25, 0.5)} | {WHOLE: {}}
SHARES = {f"after {share:.0%} of the training": share for share in (0.1, 0.25, 0.5, 1.0)}
OTHERS = ("controls", TAUGHT, "size", "iterations", "prompt quality", "plateau")
FEW_SETS = 2  # rows that vary one choice, with the profile's few seeds, run on the first sets alone

# For the tables' columns `option` and `value` (`study.varied`). USUAL: values that count as defaults, besides the
# methods' own. ALONG: values to show for rows that use the default, so that they end a curve. LENGTHS: rows that vary
# the number of images seen in training.
USUAL = {"prompt": "none", **SAMED}
ALONG = {WHOLE: {"train_share": 1.0}}
LENGTHS = ("plateau", *SHARES)


def group_names() -> list[str]:
    """The groups of ablations that notebook 21 can be asked for."""
    return [*GROUPS, *OTHERS]


def measured_sets(datasets: Sequence[str]) -> list[str]:
    """The sets on which models of `datasets` are measured: of `polyps` PraNet's five test sets, as in the paper."""
    return [test for name in datasets for test in (TEST_SETS if name == POLYPS else (name,))]


def sam_sp_plan(
    profile: Profile,
    datasets: Sequence[str],
    methods: Sequence[str] = TUNED,
    variants: Sequence[tuple[str, dict[str, object]]] = (),
    seeds: Sequence[int] = (),
    **options: object,
) -> Plan:
    """A plan without user prompts, in training and at test, with SAMed's recipe; `options` are for every cell."""
    return Plan(profile, "none", ("none",), **SAMED | options).choose_rates(datasets, methods, variants, seeds)


def run_main(
    profile: Profile,
    datasets: Sequence[str],
    seeds: Sequence[int],
    baselines: Sequence[str] = (),
    changes: Mapping[str, object] = MappingProxyType({}),
) -> list[Record]:
    """Table `sam_sp_main`: SAM-SP and `baselines` (none: all of `BASELINES`) without prompts; zero-shot SAM also with a
    true box or click; and a row of one's own, SAM-SP with `changes` in its options or those of its training.
    """
    name = f"{MAIN}:{own_variant('sam_sp', changes)}"  # its errors before the work
    tuned = (*(baselines or BASELINES), "sam_sp")
    plan = sam_sp_plan(profile, datasets, tuned, seeds=profile.seeds)
    beside = {
        variant: sam_sp_plan(profile, datasets, ("sam_sp",), seeds=profile.seeds, **changes)
        for variant, changes in BESIDE.items()
    }
    shared = {"max_images": profile.evaluation.max_images}
    cells: list[EvaluationCell] = []
    for dataset, tested in ((name, test) for name in datasets for test in measured_sets([name])):
        cells += plan.truth(tested, seeds[0], MAIN)
        everything = {"options": {"everything": GRID}, "tables": (f"{MAIN}:everything",)} | shared
        cells.append(zero_shot_cell(profile, tested, seeds[0], plan.hash, prompt="none", **everything))  # no seed in it
        for seed in seeds:
            for prompt in ("none", "box", "point1"):
                zero_shot = zero_shot_cell(profile, tested, seed, plan.hash, prompt=prompt, tables=(MAIN,), **shared)
                cells.append(zero_shot)
            boxes = {"options": {"per_object": True}, "tables": (f"{MAIN}:a box an object",)} | shared
            cells.append(zero_shot_cell(profile, tested, seed, plan.hash, prompt="box", **boxes))
            for method in tuned:
                cells += plan.measured(plan.training(method, dataset, seed), tested, MAIN)
            for variant, other in beside.items():
                cells += other.measured(other.training("sam_sp", dataset, seed), tested, f"{MAIN}:{variant}")
    for own in plan.changed("sam_sp", changes, datasets, seeds):
        cells += [cell for tested in measured_sets(own.train_datasets) for cell in plan.measured(own, tested, name)]
    return plan.run(cells)


def run_ablations(
    profile: Profile, datasets: Sequence[str], seeds: Sequence[int], groups: Sequence[str] = ()
) -> list[Record]:
    """Table `sam_sp_ablation`.

    Controls, the true box in training and iterations at test run on every set with `seeds`; all else on the first
    `FEW_SETS` with the profile's `ablation_seeds` (`REPEATED` with `seeds` too). "plateau" and the usual length beside
    it run on the first set alone. A model that the main table has trained is not trained again. The groups in `GROUPS`
    do not depend on `SamSP`'s defaults.

    Args:
        profile: at what scale.
        datasets: trained on and measured.
        seeds: of the runs.
        groups: some of `group_names`; none: all.
    """
    groups = list(groups) or group_names()
    few, few_sets = profile.ablation_seeds, datasets[:FEW_SETS]
    records = run_choices(profile, few_sets, seeds, few, [group for group in GROUPS if group in groups])
    if set(groups) <= set(GROUPS):
        return records
    direct = [("lora_samed", TAUGHT_DIRECTLY)] if "controls" in groups else []
    plan = sam_sp_plan(profile, datasets, TUNED if "plateau" in groups else TUNED[1:], direct, profile.seeds)
    cells: list[EvaluationCell] = []
    for dataset in datasets:
        cells += iteration_cells(plan, dataset, seeds) if "iterations" in groups else []
        cells += control_cells(plan, dataset, seeds) if "controls" in groups else []
        cells += taught_cells(plan, dataset, seeds) if TAUGHT in groups else []
        for seed in few if dataset in few_sets else ():
            for variant, changes in SIZES.items() if "size" in groups else ():
                for method in TUNED[1:]:
                    training = plan.training(method, dataset, seed, **changes)
                    cells += plan.measured(training, dataset, f"{ABLATION}:{variant}")
            if "prompt quality" in groups:
                for variant, share in SHARES.items():
                    images = max(1, round(share * images_seen(profile, plan.trained_with, dataset)))
                    training = plan.training("sam_sp", dataset, seed, images)
                    cells += plan.measured(training, dataset, f"{ABLATION}:{variant}")
    for seed in few if "plateau" in groups and profile.plateau_images else ():
        for method in TUNED:
            for variant, images in ((WHOLE, 0), ("plateau", profile.plateau_images)):
                training = plan.training(method, datasets[0], seed, images)
                cells += plan.measured(training, datasets[0], f"{ABLATION}:{variant}")
    return records + plan.run(cells)


def run_choices(
    profile: Profile, datasets: Sequence[str], seeds: Sequence[int], few: Sequence[int], groups: Sequence[str]
) -> list[Record]:
    """One change at a time from `START`, on test (`sam_sp_ablation`) and on validation (`sam_sp_choices`).

    `REPEATED` with `few` and `seeds`, the others with `few` alone. Each alpha and Dice loss has its own learning rate.
    """
    if not groups:
        return []
    variants = {"starting point": {}} | {name: changes for group in groups for name, changes in GROUPS[group].items()}
    own_rate = [name for name, changes in variants.items() if changes.keys() & {"distillation_weight", "mask_loss"}]
    every = list(dict.fromkeys([*few, *seeds]))
    plan = sam_sp_plan(profile, datasets, ("sam_sp",), seeds=profile.seeds, **START)
    for repeated in (True, False):  # of what is repeated all seeds count in the choice of its rate
        chosen = [("sam_sp", variants[name]) for name in own_rate if (name in REPEATED) == repeated]
        plan.choose_rates(datasets, variants=chosen, seeds=profile.seeds if repeated else ())
    cells: list[EvaluationCell] = []
    for dataset in datasets:
        for seed in every:
            for variant, changes in variants.items():
                if seed not in few and variant not in REPEATED:
                    continue
                training = plan.training("sam_sp", dataset, seed, **changes)
                cells += plan.measured(training, dataset, f"{ABLATION}:{variant}")
                cells += plan.measured(training, dataset, f"{CHOICES}:{variant}", split="val")
    return plan.run(cells)


def iteration_cells(plan: Plan, dataset: str, seeds: Sequence[int]) -> list[EvaluationCell]:
    """The paper's figure 4: more self-prompted passes at test."""
    more = {"iterations": MOST_ITERATIONS}
    return [
        cell
        for seed in seeds
        for tested in measured_sets([dataset])
        for cell in plan.measured(
            plan.training("sam_sp", dataset, seed), tested, f"{ABLATION}:iterations", options=more
        )
    ]


def control_cells(plan: Plan, dataset: str, seeds: Sequence[int]) -> list[EvaluationCell]:
    """The paper's figure 5 and our controls: does self-prompting help, or something else?

    - `CONTROLS` change the training.
    - "Dice loss" is a model of equal budget whose first pass learns from the truth directly, with SAM-SP's own loss and
      a learning rate of its own. (SAM-SP trained with an empty prompt in the second pass would be the same model.)
    - "truth on the first pass alone" is that model, tested with SAM-SP's two passes: what prompting itself does to a
      decoder that was tuned without prompts.
    - "true box" gives the true box to the second pass at test: an upper bound.
    """
    cells = []
    for seed, tested in product(seeds, measured_sets([dataset])):
        for variant, changes in CONTROLS.items():
            cells += plan.measured(plan.training("sam_sp", dataset, seed, **changes), tested, f"{ABLATION}:{variant}")
        direct = plan.training("lora_samed", dataset, seed, **TAUGHT_DIRECTLY)
        cells += plan.measured(direct, tested, f"{ABLATION}:{DICE}")
        cells += plan.measured(direct, tested, f"{ABLATION}:{FIRST_ALONE}", method="sam_sp")
        usual = plan.training("sam_sp", dataset, seed)
        cells += plan.measured(usual, tested, f"{ABLATION}:{SAM_SP}")
        cells.append(in_true_boxes(plan, usual, tested, TRUE_BOX))
    return cells


def taught_cells(plan: Plan, dataset: str, seeds: Sequence[int]) -> list[EvaluationCell]:
    """Does a decoder that is taught with true boxes in the second pass follow its own box, and a true one?"""
    cells = []
    for seed, tested in product(seeds, measured_sets([dataset])):
        boxes = plan.training("sam_sp", dataset, seed, prompt="box", self_prompt="given")
        cells += plan.measured(boxes, tested, f"{ABLATION}:{TAUGHT}", options={"self_prompt": "box"})
        cells.append(in_true_boxes(plan, boxes, tested, TAUGHT_AND_TESTED))
    return cells


def in_true_boxes(plan: Plan, training: TrainingCell, tested: str, variant: str) -> EvaluationCell:
    """The measurement with the true box as prompt of the second pass."""
    given = {"prompt": "box", "options": {"self_prompt": "given"}, "max_images": plan.profile.evaluation.max_images}
    return training.evaluation(tested, **given, tables=(f"{ABLATION}:{variant}",))
