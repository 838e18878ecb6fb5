"""Which cells notebooks 30 and 31 ask for: ASAM's tuning against its rivals' and its ablations.

Everything is tuned once, on general pictures (the profile's sets of pre-training, which the nano SAM was trained on
too), and measured zero-shot, object by object, on sets of other fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from samtune.common.errors import InputError
from samtune.data.registry import open_dataset
from samtune.methods import METHODS
from samtune.methods.asam import ASAM
from samtune.study.cells import Cell, EvaluationCell, TrainingCell
from samtune.study.execute import executor
from samtune.study.plan import Place, Plan, choose_learning_rates, place_of, training_cell, zero_shot_cell
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import run_cells

MAIN, ABLATION = "asam_main", "asam_ablation"
INSTANCES = "instances"
TRAINED_WITH = ",".join(ASAM.prompts)
PROMPTS = ("box", "point1")
ON_CLEAN = ("clean_tuning", "classical_augmentation", "pgd")  # need no generated pictures
ON_GENERATED = ("dat", "generated", "asam")
WITHOUT = "without ControlNet"
# Options of ASAM by group and row; "rivals" are those of PGD. They run without a diffusion model where ASAM cannot: the
# rows of "tokens" are then those of clean tuning.
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    "tokens": {
        "mask tokens alone": {"tuned": "mask_tokens"},
        "IoU token alone": {"tuned": "iou_token"},
        "whole decoder": {"tuned": "decoder"},
    },
    "rivals": {"PGD eps 2": {"eps": 2.0, "step_size": 0.5}, "PGD eps 16": {"eps": 16.0, "step_size": 4.0}},
}
# What the pictures are made with: options of the inversion and of the attack.
PICTURES: dict[str, dict[str, tuple[dict[str, object], dict[str, object]]]] = {
    "controlnet": {WITHOUT: ({"controlnet": False}, {})},
    "inversions": {
        "DDIM": ({"recipe": "ddim"}, {}),
        "null-text": ({"recipe": "null_text"}, {}),
        "negative-prompt": ({"recipe": "negative_prompt"}, {}),
        "direct": ({"recipe": "direct"}, {}),
    },
    "attack steps": {f"{steps} attack steps": ({}, {"steps": steps}) for steps in (1, 3, 20)},
    "eps": {f"eps {eps:g}": ({}, {"eps": eps}) for eps in (0.05, 0.1, 0.4)},
    "guidance": {f"guidance {weight:g}": ({"guidance": weight}, {}) for weight in (1.0, 3.0)},
    "gradient": {f"through the last {steps} steps": ({}, {"last_steps": steps}) for steps in (1, 3)},
    "attacked prompt": {"attacked with ten clicks": ({}, {"prompt": "point10"})},
}
OTHERS = ("pictures", "forgetting")
SHARES = (0.1, 0.25, 0.5)

USUAL = {"prompt": TRAINED_WITH, "target": INSTANCES, **ASAM.recipe}
ALONG: dict[str, dict[str, object]] = {WITHOUT: {"controlnet": False}}
for _rows in PICTURES.values():
    for _variant, (_made, _attacked) in _rows.items():
        ALONG[_variant] = {**_made, **{f"attack_{name}": value for name, value in _attacked.items()}}
LENGTHS: tuple[str, ...] = ()


def group_names() -> list[str]:
    """The groups of ablations that notebook 31 can be asked for."""
    return [*GROUPS, *PICTURES, *OTHERS]


class Tuning:
    """The cells of one profile: trainings on general or generated pictures, measured zero-shot on any set."""

    def __init__(self, profile: Profile) -> None:
        self.profile, self.hash = profile, Plan(profile).hash
        self.general = tuple(profile.pretraining.sets)
        self.generated: dict[str, Any] = {}  # by method: the cell that makes its pictures
        self.rates: dict[Place, float] = {}

    def training(
        self, method: str, seed: int, rate: float = 0.0, made: Any = None, images: int = 0, **changes: object
    ) -> TrainingCell:
        """`method` tuned once: on the general sets, or on the pictures that `made`, a generation cell, gives."""
        made = made or self.generated.get(method)
        rate = rate or self.rates.get(self._place(method, changes)) or self.rates[self._place(method)]
        hyper = dict(METHODS[method].recipe) | changes
        steps = self.profile.generation.attack_steps
        if method == "pgd" and steps != Profile.model_fields["generation"].default.attack_steps:
            hyper["steps"] = steps  # as many as ASAM's attack has
        cell = training_cell(
            self.profile, method, "+".join(self.general), seed, rate, self.hash, images, TRAINED_WITH, **hyper
        )
        on = {} if made is None else {"train_datasets": (made.name,), "generated": made}
        return replace(cell, target=INSTANCES, **on)

    def choose_rates(self, arms: Sequence[tuple[str, Mapping[str, object]]]) -> None:
        """By the one rule, on the general sets' validation pictures, whatever is trained on."""
        places = [self._place(method, changes) for method, changes in arms]

        def cells_of(place: Place, rate: float) -> list[EvaluationCell]:
            training = self.training(place[1], 0, rate, **dict(place[2]))
            variant = "".join(f", {name} {value}" for name, value in place[2])
            shared = {"split": "val", "tables": (f"learning_rates:{rate:g}{variant}",)}
            shared |= {"max_images": self.profile.evaluation.max_images}
            return [training.evaluation(name, prompt=prompt, **shared) for name in self.general for prompt in PROMPTS]

        self.rates |= choose_learning_rates(self.profile, places, self.hash, TRAINED_WITH, cells_of)

    def _place(self, method: str, changes: Mapping[str, object] | None = None) -> Place:
        return place_of("+".join(self.general), method, changes or {})

    def measured(
        self, training: TrainingCell, datasets: Sequence[str], table: str, prompts: Sequence[str] = PROMPTS
    ) -> list[EvaluationCell]:
        """The test part of each set."""
        shared = {"max_images": self.profile.evaluation.max_images, "tables": (table,)}
        return [training.evaluation(name, prompt=prompt, **shared) for name in datasets for prompt in prompts]

    def zero_shot(self, datasets: Sequence[str], seed: int, table: str) -> list[EvaluationCell]:
        """The same of the backbone as it is."""
        shared = {"max_images": self.profile.evaluation.max_images, "target": INSTANCES, "tables": (table,)}
        return [
            zero_shot_cell(self.profile, name, seed, self.hash, prompt=prompt, **shared)
            for name in datasets
            for prompt in PROMPTS
        ]

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        """Their records; what has none is run."""
        return run_cells(cells, self.profile.name, executor(self.profile))


def tuning(profile: Profile) -> tuple[Tuning, str]:
    """The profile's tuning, and why nothing can be generated here, or ""."""
    plan = Tuning(profile)
    for name in plan.general:
        open_dataset(name)  # one that is not here is said now, not after hours
    try:
        from samtune.study.generated import adversarial_cells  # not above: it brings diffusers, seconds

        made = adversarial_cells(profile)
    except InputError as error:
        return plan, str(error).splitlines()[0]
    plan.generated = {method: made[method] for method in ON_GENERATED}
    return plan, ""


def run_main(profile: Profile, datasets: Sequence[str], seeds: Sequence[int]) -> list[Record]:
    """Table `asam_main`: SAM, ASAM and its rivals at equal steps. Where nothing can be generated, those without it."""
    plan, lacking = tuning(profile)
    methods = (*ON_CLEAN, *plan.generated)
    if lacking:
        print(f"not run: {', '.join(ON_GENERATED)}: {lacking}")
    plan.choose_rates([(method, {}) for method in methods])
    cells: list[EvaluationCell] = []
    for seed in seeds:
        cells += plan.zero_shot(datasets, seed, MAIN)
        for method in methods:
            cells += plan.measured(plan.training(method, seed), datasets, MAIN)
    return plan.run(cells)


def run_ablations(
    profile: Profile, datasets: Sequence[str], seeds: Sequence[int], groups: Sequence[str] = ()
) -> list[Record]:
    """Table `asam_ablation`, the `groups` asked for (none: all), with the first of `seeds`, at ASAM's own rate.

    What needs generated pictures is not run where they cannot be made; "tokens", "pictures" and "forgetting" then vary
    clean tuning.
    """
    groups = list(groups) or group_names()
    plan, lacking = tuning(profile)
    if lacking:
        left = [group for group in groups if group in PICTURES]
        print(f"not run: {', '.join(['asam', *left])}: {lacking}")
    whole = {"tuned": "decoder"}  # trains four thousand times as many parameters: at a rate of its own
    base = "clean_tuning" if lacking else "asam"
    arms = [(base, {})] + [(base, whole)] * ("tokens" in groups) + [("pgd", {})] * ("rivals" in groups)
    if "forgetting" in groups:
        arms += [(method, {}) for method in (*ON_CLEAN, *plan.generated)]
    plan.choose_rates(_distinct(arms))
    seed = seeds[0]
    cells: list[Cell] = plan.measured(plan.training(base, seed), datasets, f"{ABLATION}:{METHODS[base].title}")
    cells += plan.zero_shot(datasets, seed, f"{ABLATION}:SAM")
    for group, method in (("tokens", base), ("rivals", "pgd")):
        for variant, changes in GROUPS[group].items() if group in groups else ():
            cells += plan.measured(plan.training(method, seed, **changes), datasets, f"{ABLATION}:{variant}")
    for share in SHARES if "pictures" in groups else ():
        training = plan.training(base, seed, train_share=share)
        cells += plan.measured(training, datasets, f"{ABLATION}:{share:.0%} of the pictures")
    if "forgetting" in groups:
        cells += plan.zero_shot(plan.general, seed, f"{ABLATION}:forgetting")
        for method in (*ON_CLEAN, *plan.generated):
            cells += plan.measured(plan.training(method, seed), plan.general, f"{ABLATION}:forgetting")
    if not lacking:
        cells += picture_cells(plan, datasets, seed, [group for group in groups if group in PICTURES])
    return plan.run(cells)


def picture_cells(plan: Tuning, datasets: Sequence[str], seed: int, groups: Sequence[str]) -> list[EvaluationCell]:
    """ASAM tuned on a few adversarial pictures made in other ways, from stored inversions."""
    from samtune.study.generated import Generation

    made, few = Generation(plan.profile), plan.profile.generation.ablation_pictures
    cells = []
    for group in groups:
        for variant, (inverted, attacked) in ({f"{few} pictures": ({}, {})} | PICTURES[group]).items():
            cell = made.attack(made.inversion(pictures=few, **inverted), **attacked)
            cells += plan.measured(plan.training("asam", seed, made=cell), datasets, f"{ABLATION}:{variant}")
    return cells


def _distinct(arms: Sequence[tuple[str, dict]]) -> list[tuple[str, dict]]:
    return list({(method, tuple(changes.items())): (method, changes) for method, changes in arms}.values())
