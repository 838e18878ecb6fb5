"""Which cells notebooks 30 and 31 ask for: ASAM's tuning against its rivals' and its ablations.

Everything is tuned once, on the same few general pictures as they are or changed (the profile's `generation`), in as
many steps, and measured zero-shot, object by object, on sets of other fields. Every method has a learning rate of its
own, and so has a row that changes what trains or its prompts. A row that changes the pictures alone has its method's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from samtune.common.errors import InputError, first_line
from samtune.data.generated import chosen_pictures
from samtune.data.registry import open_dataset
from samtune.methods import METHODS
from samtune.methods.asam import ASAM
from samtune.study.cells import Cell, EvaluationCell, GenerationCell, TrainingCell
from samtune.study.execute import executor
from samtune.study.plan import Place, Plan, choose_learning_rates, training_cell, zero_shot_cell
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import run_cells

MAIN, ABLATION, CHOICES = "asam_main", "asam_ablation", "asam_choices"
SEEN = "seen set"  # the main table's rows of sets that were tuned on; its means are of the others
INSTANCES = "instances"
TRAINED_WITH = ",".join(ASAM.prompts)
ON_CLEAN = ("clean_tuning", "classical_augmentation", "pgd")  # need no generated pictures
ON_GENERATED = ("dat", "generated", "reconstructed", "asam")
WITHOUT, FEW, WHOLE_DECODER = "without ControlNet", "few pictures", "whole decoder"
ADVERSARIAL, RECONSTRUCTED, FROM_NOISE = "adversarial pictures", "reconstructed pictures", "pictures from noise"
MADE_FOR = {ADVERSARIAL: "asam", RECONSTRUCTED: "reconstructed", FROM_NOISE: "generated"}  # SAM is measured on them
ALL_STEPS = 1000  # of denoising: there are never more
LARGER, LARGER_UPDATES = "updates of 0.05, momentum 0.9", {"step_size": 0.05, "momentum": 0.9}
# Options of ASAM by group and row; "rivals" are those of PGD. They run without a diffusion model where ASAM cannot: the
# rows of "tokens" and "pictures" are then those of clean tuning.
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    "tokens": {
        "mask tokens alone": {"tuned": "mask_tokens"},
        "IoU token alone": {"tuned": "iou_token"},
        WHOLE_DECODER: {"tuned": "decoder"},
    },
    "pictures": {f"{share:.0%} of the pictures": {"train_share": share} for share in (0.1, 0.25, 0.5)},
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
    "eps": {
        **{f"eps {eps:g}": ({}, {"eps": eps}) for eps in (0.05, 0.1)},
        "eps 0.4, updates of 0.04": ({}, {"eps": 0.4, "step_size": 0.04}),  # ten updates of 0.02 reach 0.2 at most
    },
    "guidance": {f"guidance {weight:g}": ({"guidance": weight}, {}) for weight in (1.0, 3.0)},
    "embedding": {"embedding loss 0.5": ({}, {"embedding": 0.5})},
    # beta, the weight of the distance to the original: 0.5 in ASAM's later code.
    "distance": {f"beta {beta:g}": ({}, {"distance": beta}) for beta in (0.5, 0.0)},
    # The very last step, at t = 0, leaves the latent as it is: one step more is one that changes it. The true gradient
    # through all steps turns from update to update: hence more momentum, and larger updates within the same eps.
    # These values were found on nine of the training pictures.
    "gradient": {
        **{f"through the last {steps} steps": ({}, {"last_steps": steps + 1}) for steps in (1, 3)},
        LARGER: ({}, LARGER_UPDATES),
        f"through all steps, {LARGER}": ({}, {"last_steps": ALL_STEPS, **LARGER_UPDATES}),
    },
    "attacked prompt": {"attacked with ten clicks": ({}, {"prompt": "point10"})},
}
# What may help in a small model, one change each. Its autoencoder loses detail: what the attack changed is added to the
# originals. No clean picture is seen: those too. Clicks and masks draw the tokens away from boxes: boxes alone.
REMEDIES = "remedies"
CHANGE, MIXED, BOXES = "adversarial change on the originals", "clean pictures too", "tuned with boxes"
FORGETTING, SECOND_VICTIM = "forgetting", "second victim"
SECOND_VICTIMS = {
    "nano": "nano_mobile",
    "vit_b": "mobile_sam",
}  # by backbone: to which attack and tuning are transferred

# For the tables' columns `option` and `value` (`study.varied`).
USUAL = {"prompt": TRAINED_WITH, "target": INSTANCES, **ASAM.recipe}
ALONG: dict[str, dict[str, object]] = {
    FEW: {"controlnet": True},  # beside `WITHOUT`
    ADVERSARIAL: {"pictures": "adversarial"},
    RECONSTRUCTED: {"pictures": "reconstructed"},
    FROM_NOISE: {"pictures": "from noise"},
    CHANGE: {"pictures": "originals with the change"},
    MIXED: {"pictures": "clean and adversarial"},
}
ALONG |= {
    variant: {**made, **{f"attack_{name}": value for name, value in attacked.items()}}
    for rows in PICTURES.values()
    for variant, (made, attacked) in rows.items()
}
LENGTHS: tuple[str, ...] = ()


def group_names() -> list[str]:
    """The groups of ablations that notebook 31 can be asked for."""
    return [*GROUPS, *PICTURES, REMEDIES, FORGETTING, SECOND_VICTIM]


@dataclass(frozen=True)
class Arm:
    """One thing to tune.

    `variant`: its row in a table, "" for the method as it is; `changes`: options of the method or its training; `made`:
    the cell that makes the pictures; None: those of its method; `clean`: and the general pictures as they are;
    `prompts`: in training and in the choice of the learning rate; `own_rate`: False: its learning rate is its method's.
    """

    method: str
    variant: str = ""
    changes: Mapping[str, object] = field(default_factory=dict)
    made: GenerationCell | None = None
    clean: bool = False
    prompts: tuple[str, ...] = ASAM.prompts
    own_rate: bool = True

    @property
    def place(self) -> Place:
        """What its learning rate is chosen for."""
        return self.variant if self.own_rate else "", self.method, ()


class Tuning:
    """The cells of one profile: trainings on the same general pictures or made of them, measured zero-shot on any set.

    Attributes:
        sets: that the pictures are from.
        generated: by method, the cell that makes its pictures; empty where none can be made.
        images: that each training sees.
    """

    def __init__(self, profile: Profile, generated: Mapping[str, GenerationCell] | None = None) -> None:
        self.profile, self.hash = profile, Plan(profile).hash
        self.sets, self.pictures = profile.generation.sets, profile.generation.pictures
        if (images := profile.images) is None:  # there may be fewer pictures than are asked for
            images = ASAM.epochs * len(chosen_pictures("+".join(self.sets), "train", self.pictures, open_dataset))
        self.images = images
        self.generated = dict(generated or {})
        self.rates: dict[Place, float] = {}

    def arms(self) -> list[Arm]:
        """ASAM and its rivals, as far as their pictures can be made."""
        return [Arm(method) for method in (*ON_CLEAN, *ON_GENERATED) if method in {*ON_CLEAN, *self.generated}]

    def training(self, arm: Arm, seed: int, rate: float = 0.0) -> TrainingCell:
        """The tuning of an arm: its own pictures, or the general ones that all others are made of."""
        made = arm.made or self.generated.get(arm.method)
        hyper = dict(METHODS[arm.method].recipe) | dict(arm.changes)
        if len(arm.prompts) == 1:
            del hyper["prompt_for_each"]  # there is nothing to draw
        steps = self.profile.generation.attack_steps
        if arm.method == "pgd" and steps != Profile.model_fields["generation"].default.attack_steps:
            hyper["steps"] = steps  # as many as ASAM's attack has
        if self.profile.generation.accumulate:
            hyper["accumulate"] = self.profile.generation.accumulate
        rate = rate or self.rates[arm.place]
        sets, prompts = "+".join(self.sets), ",".join(arm.prompts)
        cell = training_cell(self.profile, arm.method, sets, seed, rate, self.hash, self.images, prompts, **hyper)
        on = {"pictures": self.pictures} if made is None or arm.clean else {}
        if made is not None:
            on |= {"train_datasets": (made.name, *self.sets) if arm.clean else (made.name,), "generated": made}
        return replace(cell, target=INSTANCES, **on)

    def choose_rates(self, arms: Sequence[Arm], seeds: Sequence[int] = ()) -> None:
        """By the one rule, on validation pictures of the general sets, whatever is trained on.

        What has a rate keeps it. `seeds`: with which all of these are trained.
        """
        known = {arm.place: arm if arm.own_rate else Arm(arm.method) for arm in arms if arm.place not in self.rates}

        def cells_of(place: Place, rate: float) -> list[EvaluationCell]:
            arm = known[place]
            shown = f"learning_rates:{rate:g}" + (f", {arm.variant}" if arm.variant else "")
            return self.validated(arm, rate, shown)

        self.rates |= choose_learning_rates(self.profile, list(known), self.hash, TRAINED_WITH, cells_of, seeds)

    def measured(
        self, training: TrainingCell, datasets: Sequence[str], table: str, prompts: Sequence[str] = ()
    ) -> list[EvaluationCell]:
        """The test part of each set, by each of `prompts`; none: the profile's."""
        most = self.profile.evaluation.max_images
        return [
            training.evaluation(name, prompt=prompt, max_images=most, tables=(self._shown(table, name),))
            for name in datasets
            for prompt in prompts or self.profile.evaluation.prompts
        ]

    def validated(self, arm: Arm, rate: float, table: str) -> list[EvaluationCell]:
        """The measurements that choose the learning rate of an arm: seed 0, validation pictures of the general sets."""
        cells = self.measured(self.training(arm, 0, rate), self.sets, table, arm.prompts)
        return [replace(cell, split="val") for cell in cells]

    def zero_shot(
        self, datasets: Sequence[str], seed: int, table: str, prompts: Sequence[str] = ()
    ) -> list[EvaluationCell]:
        """The same of the backbone as it is."""
        shared = {"max_images": self.profile.evaluation.max_images, "target": INSTANCES}
        return [
            zero_shot_cell(
                self.profile, name, seed, self.hash, prompt=prompt, tables=(self._shown(table, name),), **shared
            )
            for name in datasets
            for prompt in prompts or self.profile.evaluation.prompts
        ]

    def fooled(self, seed: int) -> list[EvaluationCell]:
        """The backbone as it is on ASAM's pictures, on what they were before the attack, and on those from noise,
        prompted as in the attack."""
        attack, made_for = self.generated["asam"], {row: self.generated[method] for row, method in MADE_FOR.items()}
        return [
            zero_shot_cell(
                self.profile, made.name, seed, self.hash, split=made.split, target=INSTANCES, prompt=attack.prompt,
                generated=made, tables=(f"{ABLATION}:{variant}",),
            )
            for variant, made in made_for.items()
        ]  # fmt: skip

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        """Their records; what has none is run."""
        return run_cells(cells, self.profile.name, executor(self.profile))

    def _shown(self, table: str, dataset: str) -> str:
        return f"{table}:{SEEN}" if table == MAIN and dataset in self.sets else table


def tuning(profile: Profile, datasets: Sequence[str]) -> tuple[Tuning, str]:
    """The profile's tuning, and why nothing can be generated here, or "". `datasets`: to be measured on."""
    plan = Tuning(profile)
    for name in dict.fromkeys([*plan.sets, *datasets]):
        open_dataset(name)  # one that is not here is said now, not after hours
    try:
        from samtune.study.generated import adversarial_cells  # not above: it brings diffusers, seconds

        made = adversarial_cells(profile)
    except InputError as error:
        return plan, first_line(error)
    plan.generated = {method: made[method] for method in ON_GENERATED}
    return plan, ""


def run_main(profile: Profile, datasets: Sequence[str], seeds: Sequence[int]) -> list[Record]:
    """Table `asam_main`: SAM, ASAM and its rivals at equal steps. Where nothing can be generated, those without it."""
    plan, lacking = tuning(profile, datasets)
    if lacking:
        print(f"not run: {', '.join(ON_GENERATED)}: {lacking}")
    plan.choose_rates(plan.arms(), profile.seeds)
    cells: list[Cell] = [] if lacking else plan.fooled(seeds[0])
    for seed in seeds:
        cells += plan.zero_shot(datasets, seed, MAIN)
        for arm in plan.arms():
            cells += plan.measured(plan.training(arm, seed), datasets, MAIN)
    return plan.run(cells)


def run_ablations(
    profile: Profile, datasets: Sequence[str], seeds: Sequence[int], groups: Sequence[str] = ()
) -> list[Record]:
    """Table `asam_ablation`, the `groups` asked for (none: all), on the sets that were not tuned on.

    What claims rest on (ASAM, the whole decoder, the second victim) has all `seeds`, else the profile's few. What needs
    generated pictures is not run where they cannot be made; clean tuning then stands for ASAM. Table `asam_choices` has
    the remedies on validation, beside SAM, ASAM and clean tuning.
    """
    groups = list(groups) or group_names()
    plan, lacking = tuning(profile, datasets)
    if lacking:
        left = [group for group in groups if group in (*PICTURES, REMEDIES)]
        print(f"not run: {', '.join(['asam', *left])}: {lacking}")
    held_out = [name for name in datasets if name not in plan.sets] or list(datasets)
    if left := sorted(set(datasets) - set(held_out)):
        print(f"not in the ablations, as they were tuned on: {', '.join(left)}")
    base = Arm("clean_tuning" if lacking else "asam")
    usual = [Arm("pgd")] if "rivals" in groups else []  # beside PGD's options
    arms = [base, *usual, *option_arms(base.method, groups), *([] if lacking else picture_arms(profile, groups))]
    remedies = remedy_arms(profile) if REMEDIES in groups and not lacking else []
    arms += remedies
    rivals = plan.arms() if FORGETTING in groups else []
    few = profile.ablation_seeds
    every = list(dict.fromkeys([*few, *seeds]))
    # What the main table has too is chosen as there, with all seeds, whatever groups are asked for.
    shared = [Arm(arm.method) for arm in arms if not (arm.own_rate and arm.variant)]
    whole = [arm for arm in arms if arm.variant == WHOLE_DECODER]
    plan.choose_rates([base, *rivals, *shared, *whole], profile.seeds)
    plan.choose_rates(arms)
    cells: list[Cell] = [cell for seed in every for cell in plan.zero_shot(held_out, seed, f"{ABLATION}:SAM")]
    for arm in arms:
        table = f"{ABLATION}:{arm.variant or METHODS[arm.method].title}"
        cells += [replace(arm.made, tables=(table,))] if arm.made else []
        for seed in every if arm.variant in ("", WHOLE_DECODER) else few:
            cells += plan.measured(plan.training(arm, seed), held_out, table)
    cells += [] if lacking else plan.fooled(few[0])
    if remedies:
        untuned = plan.zero_shot(plan.sets, 0, CHOICES, ASAM.prompts)
        cells += [replace(cell, split="val") for cell in untuned]
    for arm in remedies and (base, *remedies):
        table = f"{CHOICES}:{arm.variant}" if arm.variant else CHOICES
        cells += plan.validated(arm, plan.rates[arm.place], table)
    for seed in few if FORGETTING in groups else ():
        cells += forgetting_cells(plan, rivals, seed)
    records = plan.run(cells)
    return records + (run_second_victim(plan, base, held_out, every) if SECOND_VICTIM in groups else [])


def option_arms(base: str, groups: Sequence[str]) -> list[Arm]:
    """The rows of `GROUPS`: the method `base`, or PGD, with an option changed."""
    return [
        Arm("pgd" if group == "rivals" else base, variant, changes, own_rate=group == "tokens")
        for group in groups
        for variant, changes in GROUPS.get(group, {}).items()
    ]


def picture_arms(profile: Profile, groups: Sequence[str]) -> list[Arm]:
    """ASAM on a few adversarial pictures made in other ways, from stored inversions; and made as usual, beside them."""
    from samtune.study.generated import GenerationPlan

    if (unguided := profile.generation.recipe == "negative_prompt") and "guidance" in groups:
        print("not run: guidance: the profile's inversion, negative_prompt, has none")
    asked = [group for group in groups if not (group == "guidance" and unguided)]
    rows = {variant: how for group in asked for variant, how in PICTURES.get(group, {}).items()}
    if not rows:
        return []
    made, few = GenerationPlan(profile), profile.generation.ablation_pictures
    return [
        Arm("asam", variant, made=made.attack(made.inversion(pictures=few, **inverted), **attacked), own_rate=False)
        for variant, (inverted, attacked) in ({FEW: ({}, {})} | rows).items()
    ]


def remedy_arms(profile: Profile) -> list[Arm]:
    """What may help adversarial tuning in a small model; and clean tuning, which it must be compared with."""
    from samtune.study.generated import GenerationPlan, adversarial_cells

    change = GenerationPlan(profile).change(adversarial_cells(profile)["asam"])
    return [
        Arm("asam", CHANGE, made=change, own_rate=False),
        Arm("asam", MIXED, clean=True, own_rate=False),
        *(Arm(method, BOXES, prompts=("box",)) for method in ("asam", "clean_tuning")),
        Arm("clean_tuning"),
    ]


def forgetting_cells(plan: Tuning, arms: Sequence[Arm], seed: int) -> list[EvaluationCell]:
    """SAM and each tuning on the very pictures that SAM was trained on; few of them were tuned on too."""
    table, known = f"{ABLATION}:{FORGETTING}", plan.profile.pretraining.sets
    cells = plan.zero_shot(known, seed, table)
    for arm in arms:
        cells += plan.measured(plan.training(arm, seed), known, table)
    return [replace(cell, split="train") for cell in cells]


def run_second_victim(plan: Tuning, base: Arm, datasets: Sequence[str], seeds: Sequence[int]) -> list[Record]:
    """Pictures made to fool the profile's backbone: do they fool another SAM, and does tuning on them help that one?"""
    backbone = SECOND_VICTIMS.get(plan.profile.backbone, "")
    try:
        if not backbone:
            raise InputError(f"none is known for {plan.profile.backbone}")
        second = Tuning(plan.profile.model_copy(update={"backbone": backbone}), plan.generated)
    except InputError as error:
        print(f"not run: {SECOND_VICTIM}: {first_line(error)}")
        return []
    arms = [Arm("clean_tuning"), base] if base.method == "asam" else [base]
    second.choose_rates(arms, plan.profile.seeds)
    cells: list[Cell] = second.fooled(seeds[0]) if second.generated else []
    for seed in seeds:
        cells += second.zero_shot(datasets, seed, f"{ABLATION}:SAM")
        for arm in arms:
            table = f"{ABLATION}:{METHODS[arm.method].title}"
            cells += second.measured(second.training(arm, seed), datasets, table)
    return second.run(cells)
