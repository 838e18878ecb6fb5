"""What a method costs: seconds of a training step and of a prediction, methods timed in turns in one run.

Random weights cost what trained ones do, so that no checkpoint is needed.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from samtune.common.provenance import choose_precision
from samtune.data.registry import open_dataset
from samtune.data.sample import target_masks
from samtune.methods import build_method
from samtune.prompts import make_prompts
from samtune.sam.build import new_sam
from samtune.sam.preprocess import Preprocess
from samtune.study.cells import Cell, EvaluationCell, TrainingCell
from samtune.study.records import Record
from samtune.study.runner import Result, run_cells
from samtune.training import usable_device

DATASET = "synthetic-medical"  # its first picture, again and again
VARIANT = "random weights"


def run_speed(
    results: str | Path,
    backbone: str,
    methods: Sequence[str],
    prompt: str = "none",
    images: int = 5,
    device: str = "cpu",
    precision: str = "fp32",
) -> list[Record]:
    """Table `speed`: each method's training step and prediction, a picture at a time with its masks' prompts.

    The median of `images` rounds after one that warms up, in seconds an image; in a round each method has its turn, so
    that a machine that slows down does so for all. What has a record is read; where one is missing, all are timed.
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
    timed: dict[str, Result] = {}

    def execute(cell: Cell, _: Path | None) -> Result:
        if not timed:
            timed.update(_time(cells, images, device, precision))
        return timed[cell.key()]

    return run_cells(cells, results, execute)


def _time(cells: Sequence[Cell], images: int, device: str, precision: str) -> dict[str, Result]:
    """The result of every cell, by its key."""
    prepared = {cell.key(): _prepare(cell, images, device, precision) for cell in cells}
    medians = _median_seconds([step for step, _ in prepared.values()], images, device)
    for (_, result), seconds in zip(prepared.values(), medians, strict=True):
        result.seconds = seconds * images
    return {key: result for key, (_, result) in prepared.items()}


def _prepare(cell: Cell, images: int, device: str, precision: str) -> tuple[Callable[[], object], Result]:
    """One training step or prediction, to be called again and again, and its result but for the seconds."""
    torch.manual_seed(0)
    method = build_method(cell.method, new_sam(cell.backbone)).to(device)
    sample = open_dataset(DATASET).load(open_dataset(DATASET).ids("train")[0])
    preprocess = Preprocess(method.image_size, cell.preprocess)
    masks = target_masks(sample, cell.target)
    prompts = preprocess.prompts(make_prompts(cell.prompt, masks, sample.id), sample.image.shape[:2]).to(device)
    image = preprocess.image(sample.image)[None].to(device)
    target = preprocess.masks(masks, preprocess.size).to(device)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")

    @torch.no_grad()
    def prediction() -> None:
        with autocast:
            method(image, prompts)

    if isinstance(cell, EvaluationCell):
        method.eval()
        measured = pd.DataFrame({"image": [f"{sample.id} {n}" for n in range(images)], "output": "final"})
        return prediction, Result(measured, precision=precision)
    optimiser = torch.optim.AdamW(method.trainable().values(), lr=1e-4)

    def training_step() -> None:
        with autocast:
            loss = method.loss(method(image, prompts), target, torch.Generator(device).manual_seed(0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return training_step, Result(precision=precision, extras={"trainable_parameters": method.count_trainable()})


def _median_seconds(steps: Sequence[Callable[[], object]], rounds: int, device: str) -> list[float]:
    """The median duration of each step, in turns, over `rounds` after the first."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds + 1):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in times]
