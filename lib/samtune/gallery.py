"""Pictures of predictions, for the notebooks: which cases, with which prompt, what each method makes of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from samtune.data.composites import Picture, training_scene
from samtune.data.sample import Dataset, Sample, target_masks
from samtune.evaluation import model_prompts
from samtune.figures import Example, pick_cases
from samtune.methods import Method
from samtune.metrics import iou
from samtune.prompts import Prompts, make_prompts
from samtune.records import Record
from samtune.sam.decode import decode_masks
from samtune.sam.preprocess import Preprocess


@torch.no_grad()
def predict_masks(method: Method, sample: Sample, prompts: Prompts, mode: str) -> np.ndarray:
    """The method's final masks bool `(N, H, W)` for N prompts in pixels of the sample's picture."""
    preprocess = Preprocess(method.sam.image_size, mode)
    size = sample.image.shape[:2]
    embedding = method.eval().encode(preprocess.image(sample.image)[None])
    logits = method.decode(embedding, model_prompts(prompts, preprocess, size, method.sam.mask_size))["logits"]
    return (preprocess.logits(logits, size) > 0)[:, 0].numpy()


@torch.no_grad()
def three_masks(method: Method, sample: Sample, prompts: Prompts, mode: str) -> tuple[np.ndarray, Tensor]:
    """SAM's three candidates for one ambiguous prompt, bool `(3, H, W)`, and the IoU it predicts of each `(3,)`."""
    preprocess = Preprocess(method.sam.image_size, mode)
    size = sample.image.shape[:2]
    embedding = method.encode(preprocess.image(sample.image)[None])
    logits, quality = decode_masks(method.sam, embedding, preprocess.prompts(prompts, size), multimask=True)
    return (preprocess.logits(logits, size) > 0)[0].numpy(), quality[0]


def examples(
    methods: Mapping[str, Method],
    dataset: Dataset,
    ids: Mapping[str, str],
    prompt: str = "box",
    target: str = "union",
    mode: str = "stretch",
    seed: int = 0,
) -> list[Example]:
    """A row of a qualitative figure for each of `ids` (note -> id): its largest object, prompted, by every method."""
    rows = []
    for note, id in ids.items():
        sample = dataset.load(id)
        masks = target_masks(sample, target)
        largest = int(masks.sum((1, 2)).argmax())
        prompts = make_prompts(prompt, masks, f"{dataset.name}/{id}", seed)[largest : largest + 1]
        predictions = {name: predict_masks(method, sample, prompts, mode)[0] for name, method in methods.items()}
        scores = {name: iou(mask, masks[largest]) for name, mask in predictions.items()}
        rows.append(Example(sample.image, masks[largest], predictions, scores, prompts, note))
    return rows


def cases(record: Record, metric: str = "iou", output: str = "final") -> dict[str, str]:
    """The worst, median and best image of an evaluation record: picked by rule, not by hand."""
    objects = record.objects[record.objects["output"] == output]
    scores: pd.Series = objects.groupby("image")[metric].mean()
    return pick_cases(scores)


def training_sheet(bank: Sequence[Picture], count: int, size: int, seed: int = 0) -> list[Sample]:
    """`count` training pictures of the nano SAM as samples, for a contact sheet."""
    samples = []
    for index in range(count):
        image, masks, _ = training_scene(list(bank), size, np.random.default_rng([seed, index]))
        samples.append(Sample(f"training picture {index}", "nano", "train", image, masks))
    return samples


def prediction_sheet(method: Method, dataset: Dataset, ids: Sequence[str], mode: str = "pad", seed: int = 0) -> list:
    """Samples whose masks are what `method` makes of each object's true box: for a contact sheet beside the truth."""
    sheet = []
    for id in ids:
        sample = dataset.load(id)
        prompts = make_prompts("box", sample.masks, f"{dataset.name}/{id}", seed)
        masks = predict_masks(method, sample, prompts, mode)
        sheet.append(Sample(id, dataset.name, sample.split, sample.image, masks))
    return sheet
