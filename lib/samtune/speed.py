"""What a method costs: seconds of a training step and of a prediction, measured one method after another in one run.

Random weights cost what trained ones do, so that no checkpoint is needed.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from samtune.cells import Cell, EvaluationCell, TrainingCell
from samtune.data.registry import open_dataset
from samtune.data.sample import target_masks
from samtune.experiment import Result, run_cells
from samtune.methods import build_method
from samtune.prompts import make_prompts
from samtune.provenance import choose_precision
from samtune.records import Record
from samtune.sam.build import new_sam
from samtune.sam.preprocess import Preprocess
from samtune.training import usable_device

DATASET = "synthetic-medical"  # its first picture, again and again
VARIANT = "random weights"


def run_speed(
    results: str | Path,
    backbone: str,
    methods: Sequence[str],
    prompt: str = "none",
    images: int = 3,
    device: str = "cpu",
    precision: str = "fp32",
) -> list[Record]:
    """Table `speed`: each method's training step and prediction, a picture at a time with its masks' prompts.

    The median of `images` repetitions after one that warms up, in seconds an image; what has a record is read.
    """
    cells: list[Cell] = []
    for method in methods:
        shared = {"backbone": backbone, "prompt": prompt, "tables": (f"speed:{VARIANT}",)}
        cells.append(TrainingCell(method, (DATASET,), images=images, hyper={"weights": "random"}, **shared))
        cells.append(
            EvaluationCell(method, dataset=DATASET, options={"weights": "random"}, max_images=images, **shared)
        )
    device = usable_device(device)
    precision = choose_precision(precision, device)
    return run_cells(cells, results, lambda cell, _: _time(cell, device, precision))


def _time(cell: Cell, device: str, precision: str) -> Result:
    torch.manual_seed(0)
    method = build_method(cell.method, new_sam(cell.backbone)).to(device)
    sample = open_dataset(DATASET).load(open_dataset(DATASET).ids("train")[0])
    preprocess = Preprocess(method.sam.image_size, cell.preprocess)
    masks = target_masks(sample, cell.target)
    prompts = preprocess.prompts(make_prompts(cell.prompt, masks, sample.id), sample.image.shape[:2]).to(device)
    image = preprocess.image(sample.image)[None].to(device)
    target = preprocess.masks(masks, preprocess.size).to(device)
    optimiser = torch.optim.AdamW(method.trainable().values(), lr=1e-4)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")

    def training_step() -> None:
        with autocast:
            loss = method.loss(method(image, prompts), target, torch.Generator(device).manual_seed(0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    @torch.no_grad()
    def prediction() -> None:
        with autocast:
            method(image, prompts)

    if isinstance(cell, TrainingCell):
        seconds = _median_seconds(training_step, cell.images, device)
        extras = {"trainable_parameters": method.count_trainable()}
        return Result(precision=precision, seconds=seconds * cell.images, extras=extras)
    method.eval()
    seconds = _median_seconds(prediction, cell.max_images, device)
    measured = pd.DataFrame({"image": [f"{sample.id} {n}" for n in range(cell.max_images)], "output": "final"})
    return Result(measured, precision=precision, seconds=seconds * cell.max_images)


def _median_seconds(step: Callable[[], None], repetitions: int, device: str) -> float:
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
