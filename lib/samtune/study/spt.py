"""The cells of notebooks 10 and 11: SPT's main table, its controls and its ablations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from samtune.data.registry import open_dataset
from samtune.methods import trainable_parameters
from samtune.study.cells import EvaluationCell
from samtune.study.execute import NOTHING
from samtune.study.own_row import own_variant
from samtune.study.plan import BOX_AND_POINTS, ON_BOXES, Plan, zero_shot_cell
from samtune.study.profile import Profile
from samtune.study.records import Record

MAIN, ABLATION, CHOICES = "spt_main", "spt_ablation", "spt_choices"
TUNED = ("decoder_tuning", "lora", "spt")
UNIFORM = 1e9  # so high a temperature averages all tokens uniformly
# Sets whose loader also gives pictures without a defect.
WITH_DEFECT_FREE = ("magnetic-tile", "mvtec-ad", "visa", "kolektorsdd2", "btad", "mpdd", "dagm2007")
WHOLE = "100% of the pictures"  # the main table's model, as the last point of the curve
NEITHER, BOTH = "neither", "SDT + VRA"

# Ablations by group and variant: options of SPT, or of its training, that differ from the default.
PARTS = {"SDT": {"relation": False}, "VRA": {"draft": False}}
END_TO_END = {"relation": False, "detach_draft": False}
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    "draft": {
        "draft not detached": {"detach_draft": False},
        "draft as probabilities": {"handoff": "sigmoid"},
        "draft thresholded": {"handoff": "threshold"},
    },
    "relation": {
        "VRA in block 1": {"relation_block": 0},
        "VRA in block 2": {"relation_block": 1},
        "relation threshold 1": {"relation_threshold": 1.0},
        "uniform averaging": {"relation_temperature": UNIFORM},
        "temperature 0.1": {"relation_temperature": 0.1},
        "temperature 0.03": {"relation_temperature": 0.03},
    },
    "lora": {  # alpha stays 1, as in SPT's code: with the rank, the scale alpha / rank changes too
        "rank 2": {"rank": 2},
        "rank 4": {"rank": 4},
        "rank 16": {"rank": 16},
        "alpha = rank": {"alpha": 8.0},
    },
    "prompts": {
        ON_BOXES: {"prompt": "box"},
        "trained on points": {"prompt": "point10"},
        "trained on masks as well": {"prompt": "box,point10,mask"},  # as HQ-SAM's script
    },
    "size": {f"{share:.0%} of the pictures": {"train_share": share} for share in (0.1, 0.25, 0.5)} | {WHOLE: {}},
}
CHOSEN_FROM = ("draft", "relation", "lora", "prompts")  # options of the method: also measured on validation
EVALUATED = ("boxes", "robustness", "transfer", "plateau")  # groups that are not single options of SPT
POINTS = (1, 2, 5, 20)  # beside the 10 of the main table
CLICKS, EXACT = "points", "box noise 0%"
BOX_NOISE = (0.1, 0.2, 0.3, 0.4)  # of a side
WITH_MASK = "a noised true mask as well"

# For the tables' columns `option` and `value` (`study.varied`). USUAL: values that count as defaults, besides the
# methods' own. ALONG: values to show for rows that use the default, so that they end a curve. LENGTHS: rows that vary
# the number of images seen in training.
USUAL = {"prompt": BOX_AND_POINTS}
ALONG = {WHOLE: {"train_share": 1.0}, EXACT: {"box_noise": 0.0}}
LENGTHS = ("plateau", "untrained")


def group_names() -> list[str]:
    """The groups of ablations that notebook 11 can be asked for."""
    return ["parts", *GROUPS, *EVALUATED]


def matching_rank(backbone: str) -> int:
    """The smallest rank at which LoRA alone has at least as many trainable parameters as SPT."""
    counts = {name: trainable_parameters(name, backbone) for name in ("lora", "spt")}
    return -(-8 * counts["spt"] // counts["lora"])


def run_main(
    profile: Profile,
    datasets: Sequence[str],
    seeds: Sequence[int],
    controls: Sequence[str] = (),
    union: bool = False,
    changes: Mapping[str, object] = MappingProxyType({}),
) -> list[Record]:
    """Table `spt_main`: SPT and its baselines, controls, the union, and the profile's other backbones.

    Args:
        profile: at what scale.
        datasets: trained on and measured.
        seeds: of the runs.
        controls: those of the sets on which the controls are run, see `run_controls`.
        union: also train one model on all sets together.
        changes: options of SPT or its training, for a further row of one's own.

    Controls, union and one's own row are run with the first backbone alone.
    """
    name = f"{MAIN}:{own_variant('spt', changes)}"  # its errors before the work
    plan = Plan(profile).choose_rates(datasets, TUNED, seeds=profile.seeds)
    truth = [cell for dataset in datasets for cell in plan.truth(dataset, seeds[0], MAIN)]
    records = plan.run([*truth, *main_cells(plan, datasets, seeds)])
    own = plan.changed("spt", changes, datasets, seeds)
    records += plan.run([cell for one in own for cell in plan.measured(one, one.train_datasets[0], name)])
    records += run_controls(plan, [name for name in datasets if name in controls], seeds)
    if union and len(datasets) > 1:
        records += run_union(plan, datasets, seeds)
    for backbone in profile.other_backbones:
        plan = Plan(profile.model_copy(update={"backbone": backbone})).choose_rates(
            datasets, TUNED, seeds=profile.seeds
        )
        records += plan.run(main_cells(plan, datasets, seeds))
    return records


def main_cells(plan: Plan, datasets: Sequence[str], seeds: Sequence[int]) -> list[EvaluationCell]:
    """The main table's measurements of one backbone, the plan's."""
    cells: list[EvaluationCell] = []
    for dataset in datasets:
        for seed in seeds:
            cells += plan.zero_shot(dataset, seed, MAIN)
            for method in TUNED:
                training = plan.training(method, dataset, seed)
                cells += plan.measured(training, dataset, MAIN)
                if dataset in WITH_DEFECT_FREE:
                    cells.append(training.evaluation(dataset, target=NOTHING, tables=(f"{MAIN}:defect-free",)))
            if dataset in WITH_DEFECT_FREE:
                cell = zero_shot_cell(plan.profile, dataset, seed, plan.hash, target=NOTHING)
                cells.append(replace(cell, tables=(f"{MAIN}:defect-free",)))
    return cells


def run_controls(plan: Plan, datasets: Sequence[str], seeds: Sequence[int]) -> list[Record]:
    """Controls, in `spt_main`: does the method help, or only the additional compute?

    Three controls: two decoders trained end to end, without detaching and without VRA; LoRA with a rank that gives it
    as many parameters as SPT; SAM without tuning that is prompted by its own logits ("untrained"). The two that are
    trained have learning rates of their own.
    """
    rank = matching_rank(plan.profile.backbone)
    plan.choose_rates(datasets, variants=[("spt", END_TO_END), ("lora", {"rank": rank})], seeds=plan.profile.seeds)
    cells: list[EvaluationCell] = []
    for dataset in datasets:
        for seed in seeds:
            two = plan.training("spt", dataset, seed, **END_TO_END)
            wide = plan.training("lora", dataset, seed, rank=rank)
            cells += plan.measured(two, dataset, f"{MAIN}:two decoders, end to end")
            cells += plan.measured(wide, dataset, f"{MAIN}:rank {rank}, as many parameters")
            stock = plan.zero_shot(dataset, seed, f"{MAIN}:untrained")
            cells += [replace(cell, method="spt") for cell in stock]
    return plan.run(cells)


def run_union(plan: Plan, datasets: Sequence[str], seeds: Sequence[int]) -> list[Record]:
    """One model trained on all of `datasets` and measured on each, in `spt_main`."""
    together = "+".join(datasets)
    plan.choose_rates([together], TUNED, seeds=plan.profile.seeds)
    cells: list[EvaluationCell] = []
    for seed in seeds:
        for method in TUNED:
            training = plan.training(method, together, seed)
            cells += [cell for dataset in datasets for cell in plan.measured(training, dataset, MAIN)]
    return plan.run(cells)


def run_ablations(
    profile: Profile,
    datasets: Sequence[str],
    seeds: Sequence[int],
    groups: Sequence[str] = (),
    transfer: Sequence[str] = (),
) -> list[Record]:
    """Table `spt_ablation`, and `spt_choices` on validation.

    Three groups run on every set and seed or between sets: "parts" (SDT x VRA, each with a learning rate of its own),
    "boxes" (both methods trained on boxes alone, which widened the gap on validation) and "transfer". The others run on
    the first set with the profile's `ablation_seeds`, at SPT's own rate (or LoRA's). A model that the main table has
    trained is not trained again. Options of SPT are also measured on validation, in `spt_choices`: choose an option by
    that table.

    Args:
        profile: at what scale.
        datasets: sets to train on.
        seeds: of "parts", "boxes" and "transfer".
        groups: some of `group_names`; none: all.
        transfer: sets of "transfer"; none: `datasets`.
    """
    groups = list(groups) or group_names()
    for name in transfer if "transfer" in groups else ():
        open_dataset(name)  # a missing set raises its error now, not after hours
    parts = [("spt", changes) for changes in PARTS.values()] if "parts" in groups else ()
    tuned = TUNED if "plateau" in groups else ("lora", "spt")
    plan = Plan(profile).choose_rates(datasets, tuned, parts, profile.seeds)
    first, few = datasets[0], profile.ablation_seeds
    cells: list[EvaluationCell] = []
    for dataset in datasets if "parts" in groups else ():
        for seed in seeds:
            # Without both parts SPT equals LoRA bit for bit (a test checks it), so LoRA's cells are used.
            cells += plan.measured(plan.training("lora", dataset, seed), dataset, f"{ABLATION}:{NEITHER}")
            cells += plan.measured(plan.training("spt", dataset, seed), dataset, f"{ABLATION}:{BOTH}")
            for variant, changes in PARTS.items():
                cells += plan.measured(plan.training("spt", dataset, seed, **changes), dataset, f"{ABLATION}:{variant}")
    for dataset in datasets if "boxes" in groups else ():
        for seed in seeds:
            for method in ("lora", "spt"):
                training = plan.training(method, dataset, seed, prompt="box")
                cells += plan.measured(training, dataset, f"{ABLATION}:{ON_BOXES}")
    for seed in few:
        for group in filter(GROUPS.__contains__, groups):
            for variant, changes in GROUPS[group].items():
                for method in ("lora", "spt") if group in ("prompts", "size") else ("spt",):
                    training = plan.training(method, first, seed, **changes)
                    cells += plan.measured(training, first, f"{ABLATION}:{variant}")
                    if group in CHOSEN_FROM:
                        cells += plan.measured(training, first, f"{CHOICES}:{variant}", split="val")
        if set(groups) & set(CHOSEN_FROM):
            for method in ("lora", "spt"):
                cells += plan.measured(plan.training(method, first, seed), first, CHOICES, split="val")
        if "robustness" in groups:
            cells += robustness_cells(plan, first, seed)
        if "plateau" in groups and profile.plateau_images:
            for method in TUNED:
                training = plan.training(method, first, seed, profile.plateau_images)
                cells += plan.measured(training, first, f"{ABLATION}:plateau")
    records = plan.run(cells)
    return records + (run_transfer(plan, transfer or datasets, seeds) if "transfer" in groups else [])


def robustness_cells(plan: Plan, dataset: str, seed: int) -> list[EvaluationCell]:
    """The main table's models with other prompts: fewer and more points, inexact boxes, a mask beside the box.

    The mask shows how far a decoder follows one, and what the second decoder makes of a better draft.
    """
    cells = []
    options = [{"prompt": f"point{count}", "tables": (f"{ABLATION}:{CLICKS}",)} for count in (*POINTS, 10)]
    options += [
        {"prompt": "box_jitter", "options": {"box_noise": noise}, "tables": (f"{ABLATION}:box noise {noise:.0%}",)}
        for noise in BOX_NOISE
    ]
    options.append({"prompt": "box", "tables": (f"{ABLATION}:{EXACT}",)})
    options.append({"prompt": "box+mask", "tables": (f"{ABLATION}:{WITH_MASK}",)})
    for option in options:
        shared = {"max_images": plan.profile.evaluation.max_images} | option
        cells.append(zero_shot_cell(plan.profile, dataset, seed, plan.hash, **shared))
        for method in ("lora", "spt"):
            cells.append(plan.training(method, dataset, seed).evaluation(dataset, **shared))
    return sorted(cells, key=lambda cell: cell.method)  # a method's cells together: its embeddings stay in memory


def run_transfer(plan: Plan, datasets: Sequence[str], seeds: Sequence[int]) -> list[Record]:
    """Trained on one set and measured on every other one, with boxes; and zero-shot SAM."""
    plan.choose_rates(datasets, ("lora", "spt"), seeds=plan.profile.seeds)
    cells: list[EvaluationCell] = []
    shared = {"max_images": plan.profile.evaluation.max_images, "tables": (f"{ABLATION}:transfer",)}
    for seed in seeds:
        for trained_on in datasets:
            for method in ("lora", "spt"):
                training = plan.training(method, trained_on, seed)
                cells += [training.evaluation(other, **shared) for other in datasets if other != trained_on]
        cells += [zero_shot_cell(plan.profile, other, seed, plan.hash, **shared) for other in datasets]
    return plan.run(cells)
