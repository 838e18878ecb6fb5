"""The plan that a study makes its cells by: one learning rate a method and data set, chosen on validation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

import numpy as np
import torch

from samtune.data.registry import open_dataset
from samtune.methods import METHODS, Method, options_in_key
from samtune.sam.build import new_sam
from samtune.sam.checkpoints import load_sam, must_be_downloaded, weights_hash
from samtune.study.cells import NO_BACKBONE, EvaluationCell, TrainingCell
from samtune.study.execute import TRUTH, executor
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import is_only_planned, run_cells

BOX_AND_POINTS = ",".join(Method.prompts)
SCORE_TIE = 0.005  # of mean IoU on validation
ON_BOXES = "trained on boxes"


def backbone_hash(backbone: str) -> str:
    """The hash of the weights that `backbone` stands for: part of every cell."""
    return weights_hash(load_sam(backbone))


Place = tuple[str, str, tuple[tuple[str, object], ...]]


def place_of(dataset: str, method: str, options: Mapping[str, object] = MappingProxyType({})) -> Place:
    """Where a learning rate holds: a data set (or a union "a+b"), a method and its options."""
    return dataset, method, tuple(sorted(options.items()))


def choose_learning_rates(
    profile: Profile,
    places: Sequence[Place],
    hash: str,
    trained_with: str = BOX_AND_POINTS,
    cells_of: Callable[[Place, float], list[EvaluationCell]] | None = None,
) -> dict[Place, float]:
    """By place, the smallest rate of the profile's grid within half a point of the best mean IoU on validation.

    One rule for every method and baseline. At each place the method's own rate is trained first, then the rate above
    the one chosen so far, then the one below, until the chosen one has been compared with both. All are whole trainings
    of seed 0, as short ones would favour large rates; the chosen one is the main table's. The mean is over the prompts
    trained with (and over the sets of a union "a+b"): measured on another prompt, such as a single click, a rate so
    large that the model ignores its prompt would win. One seed cannot tell apart rates that are within half a point,
    and a smaller rate stays nearer to SAM. A rate whose loss ends in no number is never chosen.

    `cells_of` makes the cells of a place and a rate where `rate_cells` is not what is wanted.

    Shown in the table `learning_rates`. A grid of one rate is not run; without a grid each method has its own rate.
    """
    cells_of = cells_of or (lambda place, rate: rate_cells(profile, place, rate, hash, trained_with))
    grid = sorted(profile.learning_rates)
    own = {place: METHODS[place[1]].learning_rate for place in places}
    if len(grid) <= 1:
        return {place: grid[0] if grid else own[place] for place in places}
    chosen = {place: min(grid, key=lambda rate: abs(np.log(rate / own[place]))) for place in places}
    first = dict(chosen)
    scores: dict[tuple[Place, float], float] = {}

    def untried(place: Place) -> list[tuple[Place, float]]:
        index = grid.index(chosen[place])
        nearest = [grid[index], *grid[index + 1 : index + 2], *grid[max(index - 1, 0) : index]]
        return [(place, rate) for rate in nearest if (place, rate) not in scores][:1]

    while wanted := [tried for place in places for tried in untried(place)]:
        cells = [cells_of(*tried) for tried in wanted]
        with suppress(FloatingPointError):  # a rate too large; the others of this round are run all the same
            run_cells([cell for one in cells for cell in one], profile.name, executor(profile))
        for tried, one in zip(wanted, cells, strict=True):
            try:
                records = run_cells(one, profile.name, executor(profile), say=lambda line: None)
                if is_only_planned() and len(records) < len(one):  # suppose that the first rate is the best
                    scores[tried] = float(tried[1] == first[tried[0]])
                    continue
                scores[tried] = float(np.mean([mean_iou(record) for record in records]))
            except FloatingPointError:  # again, soon after its last checkpoint
                scores[tried] = -np.inf
        for place in places:
            rates = [rate for rate in grid if (place, rate) in scores]
            least = max(scores[place, rate] for rate in rates) - SCORE_TIE
            chosen[place] = min(rate for rate in rates if scores[place, rate] >= least)
    return chosen


def rate_cells(profile: Profile, place: Place, rate: float, hash: str, trained_with: str) -> list[EvaluationCell]:
    """One learning rate on the validation pictures of a place's set (of each of "a+b"), by prompt trained with."""
    dataset, method, options = place
    training = training_cell(profile, method, dataset, 0, rate, hash, prompt=trained_with, **dict(options))
    variant = "".join(f", {name} {value}" for name, value in options)
    shared = {"split": "val", "tables": (f"learning_rates:{rate:g}{variant}",)}
    prompts = trained_with.split(",")
    return [training.evaluation(one, prompt=prompt, **shared) for one in dataset.split("+") for prompt in prompts]


def training_cell(
    profile: Profile,
    method: str,
    dataset: str,
    seed: int,
    rate: float,
    hash: str,
    images: int = 0,
    prompt: str = BOX_AND_POINTS,
    **hyper: object,
) -> TrainingCell:
    """The profile's training of `method` on `dataset`, or on the union "a+b" of several, with prompts of `prompt`."""
    needs_sam = METHODS[method].needs_sam
    hyper = options_in_key(method, hyper)
    accumulated = {"accumulate": profile.accumulate} if profile.accumulate > 1 else {}
    return TrainingCell(
        method,
        tuple(dataset.split("+")),
        profile.backbone if needs_sam else NO_BACKBONE,
        seed,
        max(images or images_seen(profile, prompt, dataset), profile.batch_size),
        profile.preprocess,
        prompt,
        "union",
        {"learning_rate": rate, "batch_size": profile.batch_size} | accumulated | hyper,
        hash if needs_sam else "",
    )


def zero_shot_cell(profile: Profile, dataset: str, seed: int, hash: str, **options: object) -> EvaluationCell:
    """The profile's backbone as it is, measured on `dataset`; the seed draws prompts."""
    return EvaluationCell(
        "zero_shot", profile.backbone, dataset, preprocess=profile.preprocess, seed=seed, weights_hash=hash, **options
    )


def images_seen(profile: Profile, prompts: str, dataset: str) -> int:
    """Images that a training with `prompts` sees: the profile's number, or, where that is null, the paper's epochs.

    All methods of a table see as many: trained without prompts SAM-SP's epochs, else SPT's.
    """
    if profile.images is not None:
        return profile.images
    epochs = METHODS["sam_sp" if prompts == "none" else "spt"].epochs
    return epochs * sum(len(open_dataset(name).ids("train")) for name in dataset.split("+"))


class Plan:
    """The cells of one paper in one profile. Making one is cheap: it is `choose_rates` that trains.

    Args:
        profile: of which backbone, length of training and prompts are taken.
        trained_with: the prompts drawn in training, evenly, joined by ",".
        prompts: of the tables; none: the profile's.
        options: of the method or its training, that hold for every cell.
    """

    def __init__(
        self, profile: Profile, trained_with: str = BOX_AND_POINTS, prompts: Sequence[str] = (), **options: object
    ) -> None:
        self.profile = profile
        if is_only_planned() and must_be_downloaded(profile.backbone):
            with torch.device("meta"):  # without weights no cell has a record, but all can be counted
                sam, self.hash = new_sam(profile.backbone), ""
        else:
            sam = load_sam(profile.backbone)
            self.hash = weights_hash(sam)
        self.image_size, self.mask_size = sam.image_size, sam.mask_size
        self.trained_with, self.options = trained_with, options
        self.prompts = tuple(prompts) or profile.evaluation.prompts
        self.rates: dict[Place, float] = {}

    def choose_rates(
        self,
        datasets: Sequence[str],
        methods: Sequence[str] = (),
        variants: Sequence[tuple[str, Mapping[str, object]]] = (),
    ) -> "Plan":
        """Choose the learning rate of each of `methods`, and of each of `variants`, on each of `datasets`.

        A variant is a method with some changes; other changes take the rate of the method as it is. Gives the plan.
        """
        arms = [*((method, {}) for method in methods), *variants]
        places = [
            place_of(name, method, self.all_options(method, changes)) for name in datasets for method, changes in arms
        ]
        self.rates |= choose_learning_rates(self.profile, places, self.hash, self.trained_with)
        return self

    def all_options(self, method: str, changes: Mapping[str, object]) -> dict[str, object]:
        """What holds for every cell, and `changes`; a U-Net's pictures are as large as the backbone's."""
        return self.options | ({} if METHODS[method].needs_sam else {"image_size": self.image_size}) | changes

    def training(self, method: str, dataset: str, seed: int, images: int = 0, **changes: object) -> TrainingCell:
        """`method` trained on `dataset`; `changes` are options of the method or its training, or the `prompt`."""
        options = self.all_options(method, changes)
        usual = place_of(dataset, method, self.all_options(method, {}))
        rate = self.rates.get(place_of(dataset, method, options)) or self.rates[usual]
        options = {"prompt": self.trained_with} | options
        return training_cell(self.profile, method, dataset, seed, rate, self.hash, images, **options)

    def measured(self, training: TrainingCell, dataset: str, *tables: str, **options: object) -> list[EvaluationCell]:
        """The test part of `dataset` under every prompt of the profile, shown in `tables`."""
        shared = {"max_images": self.profile.evaluation.max_images, "tables": tables} | options
        return [training.evaluation(dataset, **{"prompt": prompt} | shared) for prompt in self.prompts]

    def zero_shot(self, dataset: str, seed: int, *tables: str, **options: object) -> list[EvaluationCell]:
        """The same for the backbone as it is."""
        shared = {"max_images": self.profile.evaluation.max_images, "tables": tables} | options
        cells = (zero_shot_cell(self.profile, dataset, seed, self.hash, prompt=p, **shared) for p in self.prompts)
        return list(cells)

    def truth(self, dataset: str, seed: int, *tables: str) -> list[EvaluationCell]:
        """The same for the truth itself, drawn as finely as the backbone draws masks (`predict_truth`)."""
        shared = {"max_images": self.profile.evaluation.max_images, "tables": tables, "seed": seed}
        shared |= {"preprocess": self.profile.preprocess, "options": {"mask_size": self.mask_size}}
        return [EvaluationCell(TRUTH, NO_BACKBONE, dataset, prompt=prompt, **shared) for prompt in self.prompts]

    def run(self, cells: Sequence[EvaluationCell]) -> list[Record]:
        """Their records; what has none is run."""
        return run_cells(cells, self.profile.name, executor(self.profile))


def mean_iou(record: Record, output: str = "final") -> float:
    """IoU of one record: mean over an image's objects, then over images."""
    objects = record.objects[record.objects["output"] == output]
    return float(objects.groupby("image")["iou"].mean().mean())
