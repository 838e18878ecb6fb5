"""What running a cell means, and the plan that a study makes its cells by: one learning rate a method and data set."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from samtune.cells import Cell, EvaluationCell, TrainingCell, cell_from_json
from samtune.data.registry import describe, open_dataset
from samtune.embeddings import EmbeddingCache
from samtune.errors import unknown
from samtune.evaluation import (
    EvaluationConfig,
    evaluate,
    predict_classical,
    predict_everything,
    predict_truth,
    predict_with,
)
from samtune.experiment import Execute, Result, checkpoint_folder, run_cell, run_cells
from samtune.false_alarms import false_alarms
from samtune.methods import METHODS, Method, build_method, options_in_key
from samtune.metrics import METRICS
from samtune.paths import results_root
from samtune.profile import Profile
from samtune.prompts import parse_kind
from samtune.provenance import choose_precision
from samtune.records import Record, read_records
from samtune.sam.checkpoints import load_sam, save_safetensors, weights_hash
from samtune.tables import NO_BACKBONE
from samtune.training import TrainingConfig, train, usable_device

TUNED = "trainable.safetensors"
CLASSICAL = ("ellipse", "grabcut")
TRUTH = "truth"  # the yardstick of `predict_truth`, in the place of a method
WITHOUT_SAM = (*CLASSICAL, "unet")
BOX_AND_POINTS = ",".join(Method.prompts)
EPOCHS, UNPROMPTED_EPOCHS = 16, 160  # SPT's; and for SAM-SP, of SAMed's 200, where its schedule is stopped
SCORE_TIE = 0.005  # of mean IoU on validation
ON_BOXES = "trained on boxes"
NOTHING = "nothing"  # the target of a cell that counts false alarms on pictures without an object
TRAINING_OPTIONS = {field.name for field in fields(TrainingConfig)}
EVALUATION_OPTIONS = {field.name for field in fields(EvaluationConfig)}


def executor(profile: Profile, results: Path | None = None) -> Execute:
    """How this profile runs a cell on this machine: device, precision and batch size are its, all else the cell's.

    Raises `InputError` on a prompt or metric of the profile that is not known: before the first training, not after it.
    """
    asked = profile.evaluation
    for prompt in asked.prompts:
        parse_kind(prompt)
    for metric in (*asked.metrics, *asked.medical_metrics, *asked.camouflage_metrics):
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
    device = usable_device(profile.device)
    precision = choose_precision(profile.precision, device)
    cache = EmbeddingCache((results or results_root(profile.name)) / "cache")
    # Of the trained method that was measured last, so that one kind of prompt after another finds its embeddings.
    known: dict[tuple, dict[str, Tensor]] = {}

    def execute(cell: Cell, folder: Path | None) -> Result:
        if isinstance(cell, TrainingCell):
            return _train(cell, folder)
        return _evaluate(cell, folder)

    def _train(cell: TrainingCell, folder: Path) -> Result:
        method = cell_method(cell)
        options = {name: value for name, value in cell.hyper if name in TRAINING_OPTIONS}
        config = TrainingConfig(
            images=cell.images,
            prompts=tuple(cell.prompt.split(",")),
            target=cell.target,
            preprocess=cell.preprocess,
            seed=cell.seed,
            device=device,
            precision=precision,
            **{"batch_size": profile.batch_size, "learning_rate": method.learning_rate} | options,
        )
        sources = [(open_dataset(name), "train") for name in cell.train_datasets]
        result = train(method, sources, config, folder, cache)
        save_safetensors(method.trainable_state(), folder / TUNED, torch.float32, {"cell": cell.key()})
        extras = {
            "trainable_parameters": method.count_trainable(),
            "dropped": {"images without an object after preprocessing": result.dropped},
            "counts": dict(method.counts),
        }
        return Result(curve=result.curve, precision=result.precision, seconds=result.seconds, extras=extras)

    def _evaluate(cell: EvaluationCell, folder: Path | None) -> Result:
        nothing = {"defect_free": True} if cell.target == NOTHING else {}
        dataset = open_dataset(cell.dataset, **nothing)
        options = {name: value for name, value in cell.options if name in EVALUATION_OPTIONS}
        method = None if cell.method in (*CLASSICAL, TRUTH) else cell_method(cell, folder)
        if method is not None:
            options["mask_size"] = method.sam.mask_size
        measured = profile.evaluation
        by_domain = {"medical": measured.medical_metrics, "camouflage": measured.camouflage_metrics}
        metrics = measured.metrics + by_domain.get(describe(cell.dataset).domain, ())
        config = EvaluationConfig(
            cell.split, cell.target, cell.prompt, cell.preprocess, metrics + (method.metrics if method else ()),
            cell.seed, cell.max_images, measured.batch_size, device=device, precision=precision, **options,
        )  # fmt: skip
        place = (cell.training, cell.dataset, cell.split, cell.preprocess)
        if cell.training is not None and place not in known:
            known.clear()
            known[place] = {}
        if cell.method == TRUTH:
            predict = predict_truth(config)
        elif method is None:
            predict = predict_classical(cell.method)
        elif config.everything:
            predict = predict_everything(method, config)
        else:
            predict = predict_with(method, config, cache, known.get(place))
        measure = false_alarms if nothing else evaluate
        objects, dropped = measure(predict, dataset, config, name=f"{cell.method} on {cell.dataset}")
        extras = {"dropped": dropped} | ({"counts": dict(method.counts)} if method else {})
        return Result(objects=objects, precision=precision, extras=extras)

    return execute


def cell_method(cell: Cell, folder: Path | None = None) -> Method:
    """The method of a cell on its backbone; with `folder`, as trained there.

    An evaluation's options that are none of the evaluation's are the method's (SAM-SP's `iterations` at test time).
    """
    training = cell if isinstance(cell, TrainingCell) else cell.training
    hyper = () if training is None else training.hyper
    if isinstance(cell, EvaluationCell):
        hyper = (*hyper, *((name, value) for name, value in cell.options if name not in EVALUATION_OPTIONS))
    sam = None if cell.backbone == NO_BACKBONE else load_sam(cell.backbone)
    torch.manual_seed(cell.seed)  # a method's new weights (LoRA's A) must not depend on what ran before
    before = METHODS[cell.method].options_before  # what a cell does not name was so
    method = build_method(cell.method, sam, **{**before, **{k: v for k, v in hyper if k not in TRAINING_OPTIONS}})
    if isinstance(cell, EvaluationCell) and folder is not None:
        method.load_trainable_state(load_file(folder / TUNED), str(folder / TUNED))
    return method


def cell_of(record: Record) -> Cell:
    """The cell that a record is of."""
    values = {"kind": record.kind, "cell": dict(record.cell), "tables": list(record.tables)}
    return cell_from_json(json.dumps(values))


def trained_method(record: Record, profile: Profile) -> Method:
    """The method of an evaluation record as it was trained: trained again where its checkpoint is not here.

    Records are committed and most checkpoints are not, so that a fresh clone has the one without the other.
    """
    cell = cell_of(record)
    if cell.training is None:
        return cell_method(cell)
    results = results_root(profile.name)
    run_cell(cell.training, results, executor(profile))
    return cell_method(cell, checkpoint_folder(results, cell.training))


def trainings_of(records: Iterable[Record], results: Path) -> list[Record]:
    """The training records behind evaluation records, each once."""
    keys = dict.fromkeys(cell.training.key() for cell in map(cell_of, records) if cell.training)
    known = {record.key: record for record in read_records(results / "records")}
    return [known[key] for key in keys if key in known]


def main_records(records: Iterable[Record], table: str, dataset: str, prompt: str, seed: int) -> dict[str, Record]:
    """By method, the evaluations on `dataset` that `table` shows without a variant, trained there or not at all.

    Of several backbones the first one's.
    """
    return {
        record.method: record
        for record in reversed(list(records))
        if "" in record.variants(table)
        and record.dataset == dataset
        and set(record.train_datasets) <= {dataset}
        and (record.cell["prompt"], record.seed) == (prompt, seed)
    }


def backbone_hash(backbone: str) -> str:
    """The hash of the weights that `backbone` stands for: part of every cell."""
    return weights_hash(load_sam(backbone))


Place = tuple[str, str, tuple[tuple[str, object], ...]]


def place_of(dataset: str, method: str, options: Mapping[str, object] = MappingProxyType({})) -> Place:
    """Where a learning rate holds: a data set (or a union "a+b"), a method and its options."""
    return dataset, method, tuple(sorted(options.items()))


def choose_learning_rates(
    profile: Profile, places: Sequence[Place], hash: str, trained_with: str = BOX_AND_POINTS
) -> dict[Place, float]:
    """By place, the smallest rate of the profile's grid within half a point of the best mean IoU on validation.

    One rule for every method and baseline: whole trainings of seed 0 (the chosen is the main table's; shorter ones
    would favour large rates), at the method's own rate, then at the one above the chosen so far, then at the one below,
    until it has been compared with both; the mean is over the prompts trained with (and over the sets of a union,
    "a+b"): on others, such as a single click, a rate so large that the model ignores its prompt would win. One seed
    cannot tell rates apart that are within half a point, and a smaller one stays nearer to SAM. A rate whose loss ends
    in no number is never chosen. Shown in the table `learning_rates`. A grid of one rate is not run; without a grid
    each method has its own rate.
    """
    grid = sorted(profile.learning_rates)
    own = {place: METHODS[place[1]].learning_rate for place in places}
    if len(grid) <= 1:
        return {place: grid[0] if grid else own[place] for place in places}
    chosen = {place: min(grid, key=lambda rate: abs(np.log(rate / own[place]))) for place in places}
    scores: dict[tuple[Place, float], float] = {}

    def untried(place: Place) -> list[tuple[Place, float]]:
        index = grid.index(chosen[place])
        nearest = [grid[index], *grid[index + 1 : index + 2], *grid[max(index - 1, 0) : index]]
        return [(place, rate) for rate in nearest if (place, rate) not in scores][:1]

    while wanted := [tried for place in places for tried in untried(place)]:
        cells = [rate_cells(profile, *tried, hash, trained_with) for tried in wanted]
        with suppress(FloatingPointError):  # a rate too large; the others of this round are run all the same
            run_cells([cell for one in cells for cell in one], profile.name, executor(profile))
        for tried, one in zip(wanted, cells, strict=True):
            try:
                records = run_cells(one, profile.name, executor(profile), say=lambda line: None)
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
    without_sam = method in WITHOUT_SAM
    hyper = options_in_key(method, hyper)
    accumulated = {"accumulate": profile.accumulate} if profile.accumulate > 1 else {}
    return TrainingCell(
        method,
        tuple(dataset.split("+")),
        NO_BACKBONE if without_sam else profile.backbone,
        seed,
        max(images or images_seen(profile, prompt, dataset), profile.batch_size),
        profile.preprocess,
        prompt,
        "union",
        {"learning_rate": rate, "batch_size": profile.batch_size} | accumulated | hyper,
        "" if without_sam else hash,
    )


def zero_shot_cell(profile: Profile, dataset: str, seed: int, hash: str, **options: object) -> EvaluationCell:
    """The profile's backbone as it is, measured on `dataset`; the seed draws prompts."""
    return EvaluationCell(
        "zero_shot", profile.backbone, dataset, preprocess=profile.preprocess, seed=seed, weights_hash=hash, **options
    )


def images_seen(profile: Profile, prompts: str, dataset: str) -> int:
    """Images that a training with `prompts` sees: the profile's number, or, where that is null, the paper's epochs."""
    if profile.images is not None:
        return profile.images
    epochs = UNPROMPTED_EPOCHS if prompts == "none" else EPOCHS
    return epochs * sum(len(open_dataset(name).ids("train")) for name in dataset.split("+"))


class Plan:
    """The cells of one paper in one profile, and the learning rates, chosen on validation.

    `trained_with`: the prompts drawn in training, evenly; `prompts` those of the tables, the profile's unless given;
    `options` of the method or its training that hold for every cell. Each of `methods`, and each of `variants` (a
    method with some changes), gets its own rate on each data set; other changes take that of the method as it is.
    """

    def __init__(
        self,
        profile: Profile,
        datasets: Sequence[str],
        methods: Sequence[str],
        trained_with: str = BOX_AND_POINTS,
        prompts: Sequence[str] = (),
        variants: Sequence[tuple[str, Mapping[str, object]]] = (),
        **options: object,
    ) -> None:
        sam = load_sam(profile.backbone)
        self.profile, self.hash = profile, weights_hash(sam)
        self.image_size, self.mask_size = sam.image_size, sam.mask_size
        self.trained_with, self.options = trained_with, options
        self.prompts = tuple(prompts) or profile.evaluation.prompts
        arms = [*((method, {}) for method in methods), *variants]
        places = [
            place_of(name, method, self.all_options(method, changes)) for name in datasets for method, changes in arms
        ]
        self.rates = choose_learning_rates(profile, places, self.hash, trained_with)

    def all_options(self, method: str, changes: Mapping[str, object]) -> dict[str, object]:
        """What holds for every cell, and `changes`; a U-Net's pictures are as large as the backbone's."""
        return self.options | ({"image_size": self.image_size} if method == "unet" else {}) | changes

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
