"""Pictures of predictions, for the notebooks: which cases, with which prompt, what each method makes of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from samtune.data.sample import Dataset, Sample, target_masks
from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.methods import Method
from samtune.methods.sam_sp import SamSP
from samtune.methods.spt import relation_matrix
from samtune.metrics import MASK_METRICS
from samtune.prompts import Prompts, centre_points, make_prompts, tight_boxes
from samtune.report.picture_figures import Example, RelationExample, pick_cases
from samtune.sam.preprocess import Preprocess
from samtune.study.records import Record


def predict_masks(method: Method, sample: Sample, prompts: Prompts, mode: str) -> dict[str, np.ndarray]:
    """The method's masks bool `(N, H, W)` for N prompts in pixels of the sample's picture: its other outputs by their
    names ("draft"), then "final"."""
    (outputs,) = predict_with(method, EvaluationConfig(preprocess=mode))([sample], [prompts])
    final = outputs.pop("final")
    return {
        name: np.stack([(one[0] > 0).numpy() for one in logits])
        for name, logits in (outputs | {"final": final}).items()
    }


def of_pictures(
    methods: Mapping[str, Method],
    dataset: Dataset,
    ids: Mapping[str, str],
    prompt: str = "box",
    target: str = "union",
    mode: str = "stretch",
    metric: str = "iou",
) -> list[Example]:
    """A row of a qualitative figure for each of `ids` (note -> id): its largest object, prompted, by every method,
    with `metric`, one of `samtune.metrics.MASK_METRICS`.

    SAM-SP's last self-made box is drawn on the pass that it was made from (to the picture's pixels; it got the mask's).
    """
    rows = []
    for note, id in ids.items():
        sample = dataset.load(id)
        masks = target_masks(sample, target)
        largest = int(np.argmax([np.count_nonzero(mask) for mask in masks]))
        prompts = make_prompts(prompt, masks, f"{dataset.name}/{id}")[largest : largest + 1]
        predictions, own_prompts = {}, {}
        for name, method in methods.items():
            outputs = predict_masks(method, sample, prompts, mode)
            if isinstance(method, SamSP):
                del outputs[f"pass{method.iterations}"]  # the final one
                before = f"pass{method.iterations - 1}"
                last = outputs.get(before, np.zeros(0))
                if "box" in method.self_prompt.split("+") and last.any():
                    box = Prompts(torch.zeros(1, dtype=torch.int64), torch.from_numpy(tight_boxes(last)))
                    own_prompts[f"{name} {before}"] = box
            for output, mask in outputs.items():
                predictions[name if output == "final" else f"{name} {output}"] = mask[0]
        scores = {name: MASK_METRICS[metric](mask, masks[largest]) for name, mask in predictions.items()}
        rows.append(Example(sample.image, masks[largest], predictions, scores, prompts, note, own_prompts))
    return rows


@torch.no_grad()
def relation_example(encoders: Mapping[str, Method], temperatures: Sequence[float], sample: Sample) -> RelationExample:
    """What SPT's relation links to a token in the middle of the largest object, by encoder and temperature.

    The picture is stretched to the square, as SPT does.
    """
    masks = target_masks(sample, "union")
    column, row = centre_points(masks)[0][0, 0].int().tolist()
    height, width = masks[0].shape
    maps = {}
    for name, method in encoders.items():
        embedding = method.eval().encode(Preprocess(method.image_size, "stretch").image(sample.image)[None])
        side = embedding.shape[-1]
        token = row * side // height * side + column * side // width
        for temperature in temperatures:
            relation = relation_matrix(embedding, temperature=temperature)[0, token].view(side, side)
            maps[f"{name}, temperature {temperature:g}"] = relation.numpy()
    return RelationExample(sample.image, masks[0], (column, row), maps)


def cases(record: Record, metric: str = "iou") -> dict[str, str]:
    """The worst, median and best image of an evaluation record: picked by rule, not by hand."""
    return _cases(record.objects, metric)


def cases_elsewhere(
    method: Method, dataset: Dataset, prompt: str = "box", mode: str = "stretch", count: int = 24, split: str = "test"
) -> dict[str, str]:
    """As `cases`, among the first `count` pictures of a set's `split`, of which there is no record."""
    config = EvaluationConfig(split, prompt=prompt, preprocess=mode, metrics=("iou",), max_images=count)
    return _cases(evaluate(predict_with(method, config), dataset, config, progress=False)[0], "iou")


def _cases(objects: pd.DataFrame, metric: str) -> dict[str, str]:
    return pick_cases(objects[objects["output"] == "final"].groupby("image")[metric].mean())


def prediction_sheet(
    method: Method, dataset: Dataset, ids: Sequence[str], mode: str = "pad"
) -> tuple[list[Sample], list[Prompts]]:
    """Samples whose masks are what `method` makes of each object's true box, and these boxes: for a contact sheet."""
    samples, boxes = [], []
    for id in ids:
        sample = dataset.load(id)
        boxes.append(make_prompts("box", sample.masks, f"{dataset.name}/{id}", 0))
        masks = predict_masks(method, sample, boxes[-1], mode)["final"]
        samples.append(Sample(id, dataset.name, sample.split, sample.image, masks))
    return samples, boxes
