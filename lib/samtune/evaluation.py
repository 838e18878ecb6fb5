"""One evaluation for every method: same samples, same prompts, same path from logits to masks, one row an object."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from samtune.common.errors import InputError, is_out_of_memory
from samtune.data.sample import MOST_BYTES, CroppedMasks, Dataset, Sample, target_masks
from samtune.embeddings import EmbeddingCache
from samtune.methods import Method
from samtune.methods.classical import ellipse, grabcut
from samtune.metrics import MAP_METRICS, METRICS
from samtune.prompts import MASK_VALUES, Prompts, make_prompts, tight_boxes
from samtune.sam.decode import decode_in_parts, decode_masks
from samtune.sam.preprocess import Preprocess

KNOWN_BYTES = 2**31  # embeddings kept in memory from one kind of prompt to the next


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how; see `EvaluationCell` for the shared fields.

    Fields:
        metrics: names of `samtune.metrics.METRICS`.
        min_side: objects whose box is narrower or lower, in original pixels, are left out (the nano SAM's table: 16).
        multimask: also decode the three masks for ambiguous prompts, and report the best of them by the truth as output
            "best_of_3": an upper bound, never part of a comparison of methods.
        box_noise: how far the prompt "box_jitter" moves a box, as a share of its sides.
        everything: points per side of a grid that takes the place of a prompt, see `predict_everything`; 0: none.
        per_object: with target "union", one prompt for each object (see `objects_of`); their masks are united.
        mask_size: side of the model's low-resolution masks, at which mask prompts are made, and of `predict_truth`.
        device, precision: "cpu", "cuda" ...; "fp32" or "bf16".
    """

    split: str = "test"
    target: str = "union"
    prompt: str = "box"
    preprocess: str = "stretch"
    metrics: tuple[str, ...] = ("iou", "boundary_iou", "dice")
    seed: int = 0
    max_images: int = 0
    batch_size: int = 8
    min_side: int = 0
    multimask: bool = False
    box_noise: float = 0.1
    everything: int = 0
    per_object: bool = False
    mask_size: int = 256
    device: str = "cpu"
    precision: str = "fp32"


# Per output, masks bool or logits (N, M, H, W) at the original size; M > 1: the best by the truth counts.
Outputs = dict[str, "Tensor | LateMasks"]
Predict = Callable[[list[Sample], list[Prompts]], list[Outputs]]


class LateMasks:
    """What an output would be as one tensor `(N, M, H, W)`, enlarged an object at a time, where that is large."""

    def __init__(self, low: Tensor, preprocess: Preprocess, size: tuple[int, int], binary: bool) -> None:
        """`low`: logits `(N, M, h, w)`; `size` (H, W) and `binary` as `Preprocess.enlarged` takes them."""
        self._low, self._enlarge = low, partial(preprocess.enlarged, original_size=size, binary=binary)
        self.dtype = torch.bool if binary else low.dtype

    def __len__(self) -> int:
        return len(self._low)

    def __getitem__(self, index: int) -> Tensor:
        return self._enlarge(self._low[index][None])[0]


def evaluate(
    predict: Predict, dataset: Dataset, config: EvaluationConfig, progress: bool = True, name: str = ""
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Measure `predict` on a part of `dataset` -> one row an object and output, and what was dropped.

    Columns: image, group, object, object_class, area (pixels), box_w, box_h, output, then the metrics. Images without a
    mask are dropped and counted, as the papers do. Raises `InputError` when nothing is left.
    """
    ids = dataset.ids(config.split)[: config.max_images or None]
    rows: list[dict] = []
    dropped = {"images without a mask": 0, "empty masks": 0, "objects below min_side": 0}
    batches = _batches(dataset, ids, config, dropped)
    with tqdm(total=len(ids), desc=f"measure {name}".strip(), disable=not progress, mininterval=2, leave=False) as bar:
        for samples, masks, prompts, taken in batches:
            for sample, truth, outputs in zip(samples, masks, predict(samples, prompts), strict=True):
                if config.per_object:
                    outputs = {output: reduce(torch.maximum, logits)[None] for output, logits in outputs.items()}
                rows += _rows(sample, truth, outputs, config.metrics)
            bar.update(taken)
    if not rows:
        raise InputError(f"{dataset.name} {config.split}: no image with a mask among {len(ids)}")
    return pd.DataFrame(rows), dropped


def _batches(
    dataset: Dataset, ids: Sequence[str], config: EvaluationConfig, dropped: dict[str, int]
) -> Iterator[tuple[list[Sample], list[np.ndarray | CroppedMasks], list[Prompts], int]]:
    """Samples with their true masks and prompts, `batch_size` images at a time, and how many ids that took."""
    samples: list[Sample] = []
    truths: list[np.ndarray | CroppedMasks] = []
    prompts: list[Prompts] = []
    taken = 0
    for position, id in enumerate(ids):
        sample = dataset.load(id)
        masks = target_masks(sample, config.target)
        taken += 1
        kept = masks.any((1, 2))
        dropped["empty masks"] += int((~kept).sum())
        if len(masks) and config.min_side:
            boxes = tight_boxes(masks)
            large = ((boxes[:, 2:] - boxes[:, :2] + 1) >= config.min_side).all(1)
            dropped["objects below min_side"] += int((kept & ~large).sum())
            kept &= large
        if not kept.all():  # classes stay with their objects
            names = sample.object_class if len(sample.object_class) == len(kept) else ()
            classes = tuple(name for name, keep in zip(names, kept, strict=False) if keep)
            masks = masks[kept]
            sample = replace(sample, masks=masks, object_class=classes)
        if len(masks):
            # A mask prompt shows the picture's part of the square.
            low = Preprocess(config.mask_size, config.preprocess).inner_size(*sample.image.shape[:2])
            samples.append(sample)
            truths.append(masks)
            key = f"{dataset.name}/{id}"
            shown = objects_of(sample) if config.per_object else masks
            prompts.append(make_prompts(config.prompt, shown, key, config.seed, low, box_noise=config.box_noise))
        else:
            dropped["images without a mask"] += 1
        if samples and (len(samples) == config.batch_size or position == len(ids) - 1):
            yield samples, truths, prompts, taken
            samples, truths, prompts, taken = [], [], [], 0


def objects_of(sample: Sample) -> np.ndarray:
    """The objects of a sample `(N, H, W)`, without empty ones: its masks; or, where it has one mask a class, or one in
    all, their connected parts (8 neighbours)."""
    masks = sample.masks[sample.masks.any((1, 2))]
    if len(masks) > 1 and len(set(sample.object_class)) < len(sample.masks):
        return masks
    objects = []
    for mask in masks:
        parts, count = ndimage.label(mask, np.ones((3, 3)))
        objects.append(parts == np.arange(1, count + 1)[:, None, None])
    return np.concatenate(objects)


def _rows(sample: Sample, truth: np.ndarray | CroppedMasks, outputs: Outputs, metrics: Sequence[str]) -> list[dict]:
    boxes = tight_boxes(truth)
    rows = []
    for output, logits in outputs.items():
        for index, mask in enumerate(truth):
            candidates = logits[index]
            if len(candidates) > 1:
                overlaps = [METRICS["iou"]((one > 0).numpy(), mask, sample.ignore) for one in candidates]
                candidates = candidates[int(np.argmax(overlaps))][None]
            binary = (candidates[0] > 0).numpy()
            row = {
                "image": sample.id,
                "group": sample.group,
                "object": index,
                "object_class": sample.object_class[index] if len(sample.object_class) == len(truth) else "",
                "area": int(mask.sum()),
                "box_w": int(boxes[index, 2] - boxes[index, 0] + 1),
                "box_h": int(boxes[index, 3] - boxes[index, 1] + 1),
                "output": output,
            }
            for metric in metrics:
                if metric in MAP_METRICS and logits.dtype == torch.bool:
                    raise ValueError(f"{metric} needs logits: `predict_with` and `evaluate` take the same config")
                value = candidates[0].sigmoid().double().numpy() if metric in MAP_METRICS else binary
                row[metric] = METRICS[metric](value, mask, sample.ignore)
            rows.append(row)
    return rows


def predict_with(
    method: Method,
    config: EvaluationConfig,
    cache: EmbeddingCache | None = None,
    known: dict[str, Tensor] | None = None,
) -> Predict:
    """How `evaluate` asks a method: encode a batch of pictures once, decode all their prompts, resize in one step.

    Args:
        method: its outputs come under the names that its `decode` gives them, "final" first.
        config: its preprocess, multimask, device and precision count, and whether a metric needs logits: else outputs
            are masks, which take a quarter of the memory.
        cache: where embeddings of frozen encoders lie.
        known: embeddings `(C, h, w)` by the sample's id, of this very method and data set; it is filled with what is
            encoded, so that the next kind of prompt finds them.
    """
    preprocess = Preprocess(method.image_size, config.preprocess)
    method = method.to(config.device).eval()
    cache = cache if method.frozen_encoder else None
    binary = not MAP_METRICS.keys() & set(config.metrics)

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[Outputs]:
        try:
            return answer(samples, prompts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            side = max(max(sample.image.shape[:2]) for sample in samples)
            half = len(samples) // 2
            smaller = f"batch_size {half}" if half else "a smaller backbone, or smaller pictures"
            tried = f"batch_size {len(samples)}, {method.image_size} px, pictures of up to {side} px"
            raise InputError(f"out of memory in prediction at {tried}: set {smaller}") from error

    @torch.no_grad()
    def answer(samples: list[Sample], prompts: list[Prompts]) -> list[Outputs]:
        images = [preprocess.image(sample.image) for sample in samples]
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.precision == "bf16"):
            if cache is not None:
                embedding = cache.encode(method, images, config.device)
            elif known is not None and all(sample.id in known for sample in samples):
                embedding = torch.stack([known[sample.id] for sample in samples]).to(config.device)
            else:
                embedding = method.encode(torch.stack(images).to(config.device))
                if known is not None and len(known) * embedding[0].nbytes < KNOWN_BYTES:
                    known.update(zip((sample.id for sample in samples), embedding.cpu(), strict=True))
            return [
                masks_of(own, embedding[index : index + 1], sample.image.shape[:2])
                for index, (sample, own) in enumerate(zip(samples, prompts, strict=True))
            ]

    def masks_of(prompts: Prompts, embedding: Tensor, size: tuple[int, int]) -> Outputs:
        def decode(few: Prompts) -> Outputs:
            low = method.decode(embedding, few)
            if config.multimask:
                low = low | {"best_of_3": decode_masks(method.sam, embedding, few, multimask=True)[0]}
            return {name: logits.float().cpu() for name, logits in low.items()}

        moved = model_prompts(prompts, preprocess, size, method.mask_size)
        return {
            name: LateMasks(low, preprocess, size, binary)
            if low.shape[:2].numel() * math.prod(size) * (1 if binary else 4) > MOST_BYTES
            else preprocess.enlarged(low, size, binary)
            for name, low in decode_in_parts(decode, moved.at_image(0).to(config.device)).items()
        }

    return predict


def model_prompts(prompts: Prompts, preprocess: Preprocess, size: tuple[int, int], mask_size: int) -> Prompts:
    """Prompts from pixels of a picture of `size` (H, W) to model pixels; a mask prompt to the square's grid."""
    moved = preprocess.prompts(prompts, size)
    if moved.masks is not None:
        height, width = (max(1, side * mask_size // preprocess.size) for side in preprocess.inner_size(*size))
        masks = F.interpolate(moved.masks, (height, width), mode="nearest")
        moved = moved.with_masks(masks).with_padded_masks(mask_size, mask_size, MASK_VALUES[0])
    return moved


def predict_everything(method: Method, config: EvaluationConfig) -> Predict:
    """SAM's "everything" mode without a prompt: all masks of a grid of clicks, by segment_anything's own generator.

    Outputs: "final" the mask of the highest predicted IoU; "best_by_truth" the best by the truth, an upper bound. The
    generator's thresholds of predicted IoU and stability are set to 0: a small SAM hardly passes them. A picture
    without any mask gets an empty one. The generator runs in fp32.
    """
    preprocess = Preprocess(method.image_size, config.preprocess)
    generator = SamAutomaticMaskGenerator(
        method.sam.to(config.device).eval(), config.everything, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[Outputs]:
        answers = []
        for sample, own in zip(samples, prompts, strict=True):
            # The generator itself pads.
            picture = sample.image if config.preprocess == "pad" else preprocess.resized(sample.image)
            found = sorted(generator.generate(picture), key=lambda mask: -mask["predicted_iou"])
            masks = [mask["segmentation"] for mask in found] or [np.zeros(picture.shape[:2], bool)]
            size = sample.image.shape[:2]
            logits = F.interpolate(_certain(np.stack(masks))[None], size, mode="bilinear", align_corners=False)
            logits = logits.expand(len(own), -1, -1, -1)
            answers.append({"final": logits[:, :1], "best_by_truth": logits})
        return answers

    return predict


def predict_truth(config: EvaluationConfig) -> Predict:
    """The truth itself, on the grid on which SAM draws masks: what a perfect fit to the training masks would score.

    Output "at_mask_size", logits `(N, 1, H, W)`: a yardstick (not a strict bound) for objects that are about as thin as
    a pixel of that grid. Ours, no paper's.
    """
    preprocess = Preprocess(config.mask_size, config.preprocess)

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[Outputs]:
        answers = []
        for sample in samples:
            share = preprocess.masks(target_masks(sample, config.target), config.mask_size)
            answers.append({"at_mask_size": preprocess.logits(20 * (share - 0.5), sample.image.shape[:2])})
        return answers

    return predict


def predict_classical(name: str) -> Predict:
    """ "ellipse" or "grabcut": the two baselines that need a box and no network, as `evaluate` asks."""

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[Outputs]:
        answers = []
        for sample, own in zip(samples, prompts, strict=True):
            if own.boxes is None:
                raise InputError(f"{name} needs a box prompt")
            boxes = own.boxes.numpy()
            if name == "ellipse":
                masks = [ellipse(box, *sample.image.shape[:2]) for box in boxes]
            else:
                masks = [grabcut(sample.image, box) for box in boxes]
            answers.append({"final": _certain(np.stack(masks))[:, None]})
        return answers

    return predict


def _certain(masks: np.ndarray) -> Tensor:
    """Masks bool `(M, H, W)` -> float32 logits that leave no doubt: 0 and 1 to metrics of probabilities too."""
    return torch.from_numpy(masks).float() * 40 - 20
