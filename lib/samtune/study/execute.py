"""What running a cell means: a training leaves weights and a curve, an evaluation rows, a generation pictures."""

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samtune.common.devices import choose_precision, usable_device
from samtune.common.errors import unknown
from samtune.common.paths import results_root
from samtune.data.generated import PREFIX, chosen_sets
from samtune.data.registry import describe, open_dataset
from samtune.data.sample import CACHED_BYTES, CachedDataset
from samtune.embeddings import EmbeddingCache
from samtune.evaluation import (
    CLASSICAL,
    EvaluationConfig,
    evaluate,
    predict_classical,
    predict_everything,
    predict_truth,
    predict_with,
)
from samtune.methods import METHODS, Method, build_method
from samtune.methods.asam import PGD
from samtune.metrics import METRICS
from samtune.prompts import parse_kind
from samtune.sam.checkpoints import load_sam, read_state, save_safetensors
from samtune.study.attacked import AttackedDataset
from samtune.study.cells import NO_BACKBONE, Cell, EvaluationCell, GenerationCell, TrainingCell
from samtune.study.false_alarms import false_alarms
from samtune.study.profile import Profile
from samtune.study.records import Record, cell_of
from samtune.study.runner import Execute, Result, files_folder, needed_cells, run_cell
from samtune.training import train
from samtune.training_config import TrainingConfig

WEIGHTS = "trainable.safetensors"
TRUTH = "truth"  # the yardstick of `predict_truth`, in the place of a method
NOTHING = "nothing"  # the target of a cell that counts false alarms on pictures without an object
TRAINING_OPTIONS = {field.name for field in fields(TrainingConfig)}
EVALUATION_OPTIONS = {field.name for field in fields(EvaluationConfig)}


def executor(profile: Profile) -> Execute:
    """How this profile runs a cell on this machine: device, precision and batch size are its, all else the cell's.

    Raises `InputError` on a prompt or metric of the profile that is not known: before the first training, not after it.
    """
    asked = profile.evaluation
    for prompt in asked.prompts:
        parse_kind(prompt)
    for metric in (*asked.metrics, *asked.medical_metrics, *asked.camouflage_metrics):
        if metric not in METRICS:
            raise unknown("metric of masks", metric, METRICS)
    device = usable_device(profile.device)
    precision = choose_precision(profile.precision, device)
    torch.backends.cudnn.allow_tf32 = False  # or convolutions on a card would not be the fp32 that records name
    # Embeddings of the trained method and data set measured last, so that the next kind of prompt need not encode.
    known: dict[tuple, dict[str, Tensor]] = {}
    models: dict[tuple[str, str | None], Any] = {}  # the diffusion model that was used last
    # One cell after another reads the same sets. Each process that loads images has a copy of what is kept.
    most = CACHED_BYTES // (1 + profile.workers)
    opened_set = lru_cache(maxsize=4)(lambda name, **options: CachedDataset(open_dataset(name, **options), most))

    def execute(cell: Cell, results: Path) -> Result:
        if cell.kind != "generation":
            models.clear()  # Stable Diffusion takes 5.7 GB of a card
        run = {"training": run_training, "evaluation": run_evaluation, "generation": run_generation}
        return run[cell.kind](cell, results)

    def run_training(cell: TrainingCell, results: Path) -> Result:
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
            save_memory=profile.save_memory,
            workers=0 if isinstance(method, PGD) else profile.workers,  # no attack on a card in a forked process
            **{"batch_size": profile.batch_size, "learning_rate": method.learning_rate} | options,
        )
        real = [name for name in cell.train_datasets if not name.startswith(PREFIX)]
        opened = [opened_set(name) for name in cell.train_datasets if name.startswith(PREFIX)]
        if cell.pictures:
            opened += chosen_sets("+".join(real), "train", cell.pictures, opened_set)
        else:
            opened += [opened_set(name) for name in real]
        if isinstance(method, PGD):
            opened = [AttackedDataset(one, method, results / "cache" / "attacked", device) for one in opened]
        sources = [(dataset, "train") for dataset in opened]
        folder = files_folder(results, cell)
        result = train(method, sources, config, folder, EmbeddingCache(results / "cache"))
        save_safetensors(method.trainable_state(), folder / WEIGHTS, torch.float32, {"cell": cell.key()})
        extras = {
            "trainable_parameters": method.count_trainable(),
            "dropped": {"views without an object after preprocessing": result.dropped},
            "counts": dict(method.counts),
        }
        return Result(curve=result.curve, precision=result.precision, seconds=result.seconds, extras=extras)

    def run_evaluation(cell: EvaluationCell, results: Path) -> Result:
        nothing = {"defect_free": True} if cell.target == NOTHING else {}
        dataset = opened_set(cell.dataset, **nothing)
        options = {name: value for name, value in cell.options if name in EVALUATION_OPTIONS}
        method = None if cell.method in (*CLASSICAL, TRUTH) else cell_method(cell, results)
        if method is not None:
            options["mask_size"] = method.mask_size
        measured = profile.evaluation
        by_domain = {"medical": measured.medical_metrics, "camouflage": measured.camouflage_metrics}
        metrics = measured.metrics + by_domain.get(describe(cell.dataset).domain, ())
        config = EvaluationConfig(
            cell.split, cell.target, cell.prompt, cell.preprocess, metrics + (method.metrics if method else ()),
            cell.seed, cell.max_images, measured.batch_size, device=device, precision=precision,
            workers=profile.workers, **options,
        )  # fmt: skip
        place = (cell.training, cell.dataset, cell.split, cell.preprocess)
        if cell.training is not None and place not in known:
            known.clear()
            known[place] = {}
        used = "fp32"
        if cell.method == TRUTH:
            predict = predict_truth(config)
        elif method is None:
            predict = predict_classical(cell.method)
        elif config.everything:
            predict = predict_everything(method, config)
        else:
            used = precision
            predict = predict_with(method, config, EmbeddingCache(results / "cache"), known.get(place))
        measure = false_alarms if nothing else evaluate
        objects, dropped = measure(predict, dataset, config, name=f"{cell.method} on {cell.dataset}")
        extras = {"dropped": dropped} | ({"counts": dict(method.counts)} if method else {})
        return Result(objects=objects, precision=used, extras=extras)

    def run_generation(cell: GenerationCell, results: Path) -> Result:
        # Not above: they bring diffusers, seconds.
        from samtune.diffusion.pipeline import load_diffusion
        from samtune.study.pictures import make_pictures

        source = (cell.diffusion, cell.controlnet or None)
        if source not in models:
            models.clear()
            models[source] = load_diffusion(*source).to(device)
        victim = None if cell.backbone == NO_BACKBONE else cell_method(cell).to(device).eval()
        return make_pictures(cell, results, models[source], victim, profile.generation.batch)

    return execute


def cell_method(cell: TrainingCell | EvaluationCell | GenerationCell, results: Path | None = None) -> Method:
    """The method of a cell on its backbone; an evaluation's as trained, with `results`, where the training's files are.

    An evaluation's options that are none of the evaluation's are the method's (SAM-SP's `iterations` at test time).
    A generation's is its victim.
    """
    if isinstance(cell, GenerationCell):
        return build_method("zero_shot", load_sam(cell.backbone))
    training = cell if isinstance(cell, TrainingCell) else cell.training
    given = {} if training is None else {k: v for k, v in training.hyper if k not in TRAINING_OPTIONS}
    if training is not cell:
        given |= {name: value for name, value in cell.options if name not in EVALUATION_OPTIONS}
    sam = None if cell.backbone == NO_BACKBONE else load_sam(cell.backbone)
    torch.manual_seed(cell.seed)  # a method's new weights (LoRA's A) must not depend on what ran before
    # What a cell does not name was as `options_before` says.
    method = build_method(cell.method, sam, **{**METHODS[cell.method].options_before, **given})
    if training is not cell and training is not None and results is not None:
        weights = files_folder(results, training) / WEIGHTS
        method.load_trainable_state(read_state(weights), str(weights))
    return method


def trained_method(record: Record, profile: Profile) -> Method:
    """The method of an evaluation record as it was trained: trained again where its checkpoint is not here.

    Records are committed and most checkpoints are not, so that a fresh clone has the one without the other.
    """
    cell, results = cell_of(record), results_root(profile.name)
    for need in needed_cells(cell, results):
        print(f"{need.describe()}: its files are not on this machine, so it is run again", flush=True)
        run_cell(need, results, executor(profile))
    return cell_method(cell, results)
