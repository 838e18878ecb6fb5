"""What a method marks in images without an object. The papers score only images with a defect, which hides false
alarms.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from samtune.common.errors import InputError
from samtune.data.sample import Dataset, Sample
from samtune.evaluation import EvaluationConfig, Predict
from samtune.prompts import Prompts, object_generator

SIDES = (0.1, 0.5)  # of the picture's: about what the boxes around real defects measure


def false_alarms(
    predict: Predict, dataset: Dataset, config: EvaluationConfig, progress: bool = True, name: str = ""
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Prompt every image without an object with a random box, and measure what is marked.

    Args:
        predict: made by one of `evaluation`'s `predict_...` functions.
        dataset: the data set.
        config: its split, max_images, batch_size and seed are used.
        progress: show a progress bar.
        name: of the method, for the bar.

    Returns:
        A table with one row for each image and output, and what was left out, by reason. Column `false_alarm_area`: the
            share of the IMAGE that is marked; `box_area`: the box's share, which a method that fills every box reaches.

    Raises `InputError` when every image has an object.
    """
    ids = dataset.ids(config.split)[: config.max_images or None]
    rows, dropped = [], {"images with an object": 0}
    for samples in tqdm(_batches(dataset, ids, config.batch_size, dropped), f"false alarms of {name}", leave=False,
                        disable=not progress):  # fmt: skip
        prompts = [_random_box(sample, f"{dataset.name}/{sample.id}", config.seed) for sample in samples]
        for sample, prompt, outputs in zip(samples, prompts, predict(samples, prompts), strict=True):
            x0, y0, x1, y1 = prompt.boxes[0].tolist()
            width, height = int(x1 - x0 + 1), int(y1 - y0 + 1)
            shared = {"image": sample.id, "group": sample.group, "object": 0, "object_class": "", "area": 0}
            shared |= {"box_w": width, "box_h": height}
            for output, logits in outputs.items():
                only = logits[0][0]  # not [0, 0]: masks of a very large picture come one by one
                marked = float((only > 0).float().mean())
                share = width * height / only.numel()
                rows.append(shared | {"output": output, "false_alarm_area": marked, "box_area": share})
    if not rows:
        raise InputError(f"{dataset.name} {config.split}: every picture has an object")
    return pd.DataFrame(rows), dropped


def _batches(dataset: Dataset, ids: list[str], size: int, dropped: dict[str, int]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for id in ids:
        sample = dataset.load(id)
        if sample.masks.any():
            dropped["images with an object"] += 1
            continue
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _random_box(sample: Sample, key: str, seed: int) -> Prompts:
    """A random box, maxima inclusive: each side is log-uniform in `SIDES` of the image's and rounded; anywhere in the
    image.
    """
    height, width = sample.image.shape[:2]
    generator = object_generator(seed, key, "box", 0)
    sides = np.maximum(1, np.round(np.exp(generator.uniform(*np.log(SIDES), 2)) * (width, height)))
    first = np.floor(generator.uniform(0, 1, 2) * ((width, height) - sides + 1))
    boxes = torch.from_numpy(np.concatenate([first, first + sides - 1])[None]).float()
    return Prompts(torch.zeros(1, dtype=torch.int64), boxes=boxes)
