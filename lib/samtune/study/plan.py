"""The plan by which a study makes its cells: one learning rate for each method and data set, chosen on validation."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from samtune.common.errors import InputError, counted, unknown
from samtune.common.paths import data_root, results_root
from samtune.data.generated import PREFIX
from samtune.data.registry import open_dataset
from samtune.methods import METHODS, Method
from samtune.sam.build import new_sam
from samtune.sam.checkpoints import load_sam, must_be_downloaded, weights_hash
from samtune.study.cells import NO_BACKBONE, EvaluationCell, TrainingCell
from samtune.study.execute import NOTHING, TRUTH, executor
from samtune.study.own_row import own_variant
from samtune.study.profile import Profile
from samtune.study.records import Record
from samtune.study.runner import is_only_planned, missing_cells, run_cells

BOX_AND_POINTS = ",".join(Method.prompts)
SCORE_TIE = 0.005  # of mean IoU on validation
ON_BOXES = "trained on boxes"


def backbone_hash(backbone: str) -> str:
    """The hash of the weights of `backbone`, which is part of every cell."""
    return weights_hash(load_sam(backbone))


Place = tuple[str, str, tuple[tuple[str, object], ...]]


def place_of(dataset: str, method: str, options: Mapping[str, object] = MappingProxyType({})) -> Place:
    """What a learning rate is chosen for: a data set (or a union "a+b"), a method and its options."""
    return dataset, method, tuple(sorted(options.items()))


def choose_learning_rates(
    profile: Profile,
    places: Sequence[Place],
    hash: str,
    trained_with: str = BOX_AND_POINTS,
    cells_of: Callable[[Place, float], list[EvaluationCell]] | None = None,
    seeds: Sequence[int] = (),
) -> dict[Place, float]:
    """For each place, the smallest rate tried within half a point of the best mean IoU on validation.

    The rule is the same for every method and baseline. For each place the method's own rate is trained first; then the
    rate above the choice so far, then the one below, until both neighbours of the choice are known. Each is a whole
    training with seed 0, because short trainings favour large rates; that of the chosen rate is used in the main table.

    The mean is over the prompts trained with, and over the sets of a union. On another prompt, such as a single click,
    a rate would win that is so large that the model ignores its prompt. One seed cannot separate rates within half a
    point, and of these the smallest changes SAM least. A rate is never chosen if its loss becomes infinite or not a
    number, or if its training with another of the study's seeds ends with empty masks (the smallest, if all are so).

    Args:
        profile: its grid. With one rate nothing is trained; with none each method has the rate of `profile.rates`, or
            its own.
        places: see `place_of`.
        hash: of the backbone's weights.
        trained_with: kinds of prompts in training, joined by ",".
        cells_of: the evaluation cells of a place and a rate, in place of `rate_cells`.
        seeds: with which the places are trained in the study: the profile's, whatever a notebook is asked for, so that
            the choice does not depend on it.

    The table `learning_rates` shows the scores.
    """
    cells_of = cells_of or (lambda place, rate: rate_cells(profile, place, rate, hash, trained_with))
    for name in profile.rates:
        if name not in METHODS:
            raise unknown("method in the profile's rates", name, METHODS)
    grid = sorted(profile.learning_rates)
    own = {place: profile.rates.get(place[1], METHODS[place[1]].learning_rate) for place in places}
    if len(grid) <= 1:
        return {place: grid[0] if grid else own[place] for place in places}
    first = {place: min(grid, key=lambda rate: abs(np.log(rate / own[place]))) for place in places}
    left_out: set[tuple[Place, float]] = set()
    while True:
        chosen = _best_rates(profile, grid, first, cells_of, left_out)
        failed = _failed_with_another_seed(profile, chosen, cells_of, seeds)
        if failed <= left_out:
            return chosen
        left_out |= failed


def _best_rates(
    profile: Profile,
    grid: Sequence[float],
    first: Mapping[Place, float],
    cells_of: Callable[[Place, float], list[EvaluationCell]],
    left_out: Collection[tuple[Place, float]],
) -> dict[Place, float]:
    """The rule with seed 0: from each place's `first` rate on, and without the rates `left_out`."""
    chosen = dict(first)
    scores: dict[tuple[Place, float], float] = dict.fromkeys(left_out, -np.inf)

    def untried(place: Place) -> list[tuple[Place, float]]:
        index = grid.index(chosen[place])
        nearest = [grid[index], *grid[index + 1 : index + 2], *grid[max(index - 1, 0) : index]]
        if (place, chosen[place]) in left_out:  # search on until one is left
            nearest = sorted(grid, key=lambda rate: (abs(grid.index(rate) - index), -rate))
        return [(place, rate) for rate in nearest if (place, rate) not in scores][:1]

    while wanted := [tried for place in chosen for tried in untried(place)]:
        cells = [cells_of(*tried) for tried in wanted]
        for one in cells:
            if not is_only_planned() and missing_cells(one, results_root(profile.name)):
                _check_parts(one)
        with suppress(FloatingPointError):  # the rate is too large; the other rates are run nevertheless
            run_cells([cell for one in cells for cell in one], profile.name, executor(profile))
        for tried, one in zip(wanted, cells, strict=True):
            try:
                records = run_cells(one, profile.name, executor(profile), say=lambda line: None)
                if is_only_planned() and len(records) < len(one):  # assume that the first rate is the best
                    scores[tried] = float(tried[1] == first[tried[0]])
                    continue
                scores[tried] = float(np.mean([mean_iou(record) for record in records]))
            except FloatingPointError:  # the same error again, soon after its last checkpoint
                scores[tried] = -np.inf
        for place in chosen:
            rates = [rate for rate in grid if (place, rate) in scores]
            least = max(scores[place, rate] for rate in rates) - SCORE_TIE
            chosen[place] = min(rate for rate in rates if scores[place, rate] >= least)
    return chosen


def _check_parts(cells: Sequence[EvaluationCell]) -> None:
    """Raises `InputError` where a set has nothing to train on, or nothing to choose a learning rate by."""
    trained_on = {name for cell in cells for name in cell.training.train_datasets if not name.startswith(PREFIX)}
    for split, names in (("train", trained_on), ("val", {cell.dataset for cell in cells})):
        for name in sorted(names):
            if not open_dataset(name).ids(split):
                raise InputError(f"{name} has no {split} pictures: it can be measured, but nothing can be tuned on it")


def _failed_with_another_seed(
    profile: Profile,
    chosen: Mapping[Place, float],
    cells_of: Callable[[Place, float], list[EvaluationCell]],
    seeds: Sequence[int],
) -> set[tuple[Place, float]]:
    """The chosen rates at which a training with one of `seeds` diverges, or ends with empty masks; such a one is then
    measured, too.
    """
    trained = {
        (place, seed): [
            replace(cell, training=replace(cell.training, seed=seed), seed=seed) for cell in cells_of(place, rate)
        ]
        for place, rate in chosen.items()
        for seed in seeds
    }
    failed: set[tuple[Place, float]] = set()
    with suppress(FloatingPointError):  # one that diverges is found below, when the others are run
        run_cells([cells[0].training for cells in trained.values()], profile.name, executor(profile))
    for (place, _), cells in trained.items():
        try:
            records = run_cells([cells[0].training], profile.name, executor(profile), say=lambda line: None)
        except FloatingPointError:
            failed.add((place, chosen[place]))
            continue
        if any(map(_ends_empty, records)):
            run_cells(cells, profile.name, executor(profile))
            failed.add((place, chosen[place]))
    return failed


def _ends_empty(training: Record) -> bool:
    """Is the mean IoU with the batch's masks 0 over the last tenth of a training?"""
    curve = [step["iou_final"] for step in training.curve]
    return bool(curve) and not any(curve[-max(1, len(curve) // 10) :])


def rate_cells(profile: Profile, place: Place, rate: float, hash: str, trained_with: str) -> list[EvaluationCell]:
    """Measurements of one learning rate on validation, for each set of the place and each prompt trained with."""
    dataset, method, options = place
    training = training_cell(profile, method, dataset, 0, rate, hash, prompt=trained_with, **dict(options))
    variant = "".join(f", {name} {value}" for name, value in options)
    shared = {"split": "val", "tables": (f"learning_rates:{rate:g}{variant}",)}
    prompts = trained_with.split(",")
    return [training.evaluation(one, prompt=prompt, **shared) for one in dataset.split("+") for prompt in prompts]


def options_in_key(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options that go into a training cell's key, see `Method.named_options`; `given` differ from the
    defaults.
    """
    method = METHODS[name]
    parameters = inspect.signature(method).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    before = defaults | dict(method.options_before)
    return {
        option: value
        for option, value in (defaults | given).items()
        if option in method.named_options or option not in before or value != before[option]
    }


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
    """The profile's training of `method`.

    Args:
        profile: backbone, batch size and so on.
        method: its name.
        dataset: a data set, or a union "a+b".
        seed: of the run.
        rate: learning rate.
        hash: of the backbone's weights.
        images: seen in training; 0: as many as `images_seen` says.
        prompt: kinds of prompts in training, joined by ",".
        hyper: options of the method or its training.
    """
    needs_sam = METHODS[method].needs_sam
    hyper = options_in_key(method, hyper)
    accumulated = {"accumulate": profile.accumulate} if profile.accumulate > 1 else {}
    batch_size = max(profile.batch_size, METHODS[method].least_batch)
    return TrainingCell(
        method,
        tuple(dataset.split("+")),
        profile.backbone if needs_sam else NO_BACKBONE,
        seed,
        max(images or images_seen(profile, prompt, dataset), batch_size),
        profile.preprocess,
        prompt,
        "union",
        {"learning_rate": rate, "batch_size": batch_size} | accumulated | hyper,
        hash if needs_sam else "",
    )


def zero_shot_cell(profile: Profile, dataset: str, seed: int, hash: str, **options: object) -> EvaluationCell:
    """The profile's backbone without tuning, measured on `dataset`; the seed is that of the prompts."""
    return EvaluationCell(
        "zero_shot", profile.backbone, dataset, preprocess=profile.preprocess, seed=seed, weights_hash=hash, **options
    )


def images_seen(profile: Profile, prompts: str, dataset: str) -> int:
    """Images that a training sees: the profile's number, or, where that is null, those of the paper's epochs.

    All methods of a table see the same number: SAM-SP's epochs when trained without prompts, else SPT's.
    """
    if profile.images is not None:
        return profile.images
    epochs = METHODS["sam_sp" if prompts == "none" else "spt"].epochs
    return epochs * sum(_training_images(name, data_root()) for name in dataset.split("+"))


@cache
def _training_images(dataset: str, root: Path) -> int:
    """How many training images a set has in the data folder `root`: to open one may take long."""
    return len(open_dataset(dataset).ids("train"))


class Plan:
    """The cells of one paper in one profile. Making a plan trains nothing; `choose_rates` does.

    Args:
        profile: its backbone, length of training and prompts are used.
        trained_with: kinds of prompts in training, joined by ",".
        prompts: in the measurements; none: the profile's.
        options: of the methods or their training, for every cell.
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
        seeds: Sequence[int] = (),
    ) -> "Plan":
        """Choose the learning rates of all `methods` and `variants` on all `datasets`; returns the plan.

        Args:
            datasets: sets, or unions "a+b".
            methods: names.
            variants: methods with changed options that get a learning rate of their own; a change that is not named
                here takes the method's rate.
            seeds: with which all of these are trained.
        """
        arms = [*((method, {}) for method in methods), *variants]
        places = [
            place_of(name, method, self.all_options(method, changes)) for name in datasets for method, changes in arms
        ]
        self.rates |= choose_learning_rates(self.profile, places, self.hash, self.trained_with, seeds=seeds)
        return self

    def all_options(self, method: str, changes: Mapping[str, object]) -> dict[str, object]:
        """The plan's options, then `changes`; a U-Net's images are as large as the backbone's."""
        return self.options | ({} if METHODS[method].needs_sam else {"image_size": self.image_size}) | changes

    def training(self, method: str, dataset: str, seed: int, images: int = 0, **changes: object) -> TrainingCell:
        """The training of `method` on `dataset`; `changes` are options of the method or its training,
        or its `prompt`.
        """
        options = self.all_options(method, changes)
        usual = place_of(dataset, method, self.all_options(method, {}))
        rate = self.rates.get(place_of(dataset, method, options)) or self.rates[usual]
        options = {"prompt": self.trained_with} | options
        return training_cell(self.profile, method, dataset, seed, rate, self.hash, images, **options)

    def measured(self, training: TrainingCell, dataset: str, *tables: str, **options: object) -> list[EvaluationCell]:
        """Measurements on the test split of `dataset` with every prompt of the plan, shown in `tables`."""
        shared = {"max_images": self.profile.evaluation.max_images, "tables": tables} | options
        return [training.evaluation(dataset, **{"prompt": prompt} | shared) for prompt in self.prompts]

    def changed(
        self, method: str, changes: Mapping[str, object], datasets: Sequence[str], seeds: Sequence[int]
    ) -> list[TrainingCell]:
        """Trainings of `method` with `changes`, at learning rates of their own unless these name one; none without
        changes.
        """
        if not own_variant(method, changes):
            return []
        if "learning_rate" not in changes:
            self.choose_rates(datasets, variants=[(method, changes)], seeds=self.profile.seeds)
        return [self.training(method, dataset, seed, **changes) for dataset in datasets for seed in seeds]

    def zero_shot(self, dataset: str, seed: int, *tables: str, **options: object) -> list[EvaluationCell]:
        """The same for the backbone without tuning."""
        shared = {"max_images": self.profile.evaluation.max_images, "tables": tables} | options
        cells = (zero_shot_cell(self.profile, dataset, seed, self.hash, prompt=p, **shared) for p in self.prompts)
        return list(cells)

    def truth(self, dataset: str, seed: int, *tables: str) -> list[EvaluationCell]:
        """The same for the true masks at the resolution of the backbone's masks (see `predict_truth`)."""
        shared = {"max_images": self.profile.evaluation.max_images, "tables": tables, "seed": seed}
        shared |= {"preprocess": self.profile.preprocess, "options": {"mask_size": self.mask_size}}
        return [EvaluationCell(TRUTH, NO_BACKBONE, dataset, prompt=prompt, **shared) for prompt in self.prompts]

    def run(self, cells: Sequence[EvaluationCell]) -> list[Record]:
        """The records of `cells`; cells without one are run. Says where a record lacks a metric that the profile asks
        for by now.
        """
        records = run_cells(cells, self.profile.name, executor(self.profile))
        for metric in () if is_only_planned() else self.profile.evaluation.metrics:
            lacking = [one for one in records if one.objects is not None and metric not in one.objects.columns]
            lacking = [one.key for one in lacking if one.cell["target"] != NOTHING]
            if lacking:
                print(
                    f"{counted(len(lacking), 'record')} without {metric}, which the profile did not ask for then; to "
                    f"measure anew, remove from records/: {', '.join(lacking)}"
                )
        return records


def mean_iou(record: Record) -> float:
    """Mean IoU of one record: over the objects of an image, then over images."""
    objects = record.objects[record.objects["output"] == "final"]
    return float(objects.groupby("image")["iou"].mean().mean())
