"""One evaluation for every method: same samples, same prompts, same resizing of logits to masks; one row an object."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import chain

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import rle_to_mask
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from samtune.common.errors import InputError, explains_out_of_memory, unknown
from samtune.data.generated import sample_key
from samtune.data.sample import MOST_BYTES, CroppedMasks, Dataset, Sample, keep_masks, pack_masks, target_masks
from samtune.embeddings import EmbeddingCache
from samtune.methods import Method
from samtune.methods.classical import ellipse, grabcut
from samtune.metrics import MAP_METRICS, METRICS
from samtune.prompts import MASK_VALUES, Prompts, make_prompts, parse_kind, tight_boxes
from samtune.sam.decode import decode_in_parts, decode_masks
from samtune.sam.preprocess import Preprocess

KNOWN_BYTES = 2**31  # the most embeddings kept in memory for the next kind of prompt
# By name: (image uint8 `(H, W, 3)`, box) -> mask bool `(H, W)`.
CLASSICAL: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ellipse": lambda image, box: ellipse(box, *image.shape[:2]),
    "grabcut": grabcut,
}


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how.

    Fields:
        split: "train", "val" or "test".
        target: "union" or "instances".
        prompt: a kind of prompt, see `prompts.parse_kind`.
        preprocess: "stretch" or "pad".
        metrics: names in `samtune.metrics.METRICS`.
        seed: of the prompts.
        max_images: only the first ones; 0: all.
        batch_size: images at once.
        min_side: leave out objects whose box is narrower or lower than this, in original pixels (table `nano_sam`: 16).
        multimask: also decode SAM's three masks for ambiguous prompts. The best of them by the truth is output
            "best_of_3": an upper bound, never compared between methods.
        box_noise: of the prompt "box_jitter", see `jitter_boxes`.
        everything: points per side of the grid that replaces the prompt, see `predict_everything`; 0: no grid.
        per_object: with target "union": one prompt for each object (see `objects_of`), and the union of their masks.
        mask_size: side of the model's low-resolution masks; mask prompts are made at it, and so is `predict_truth`.
        device: "cpu", "cuda", ...
        precision: "fp32" or "bf16".
        workers: threads that compute the metrics of one batch while a card predicts the next; 0: one after the other.

    Raises `InputError` on an unknown prompt or metric.
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
    workers: int = 0

    def __post_init__(self) -> None:
        parse_kind(self.prompt)
        for metric in self.metrics:
            if metric not in METRICS:
                raise unknown("metric of masks", metric, METRICS)


# By output: masks bool or logits (N, M, H, W) at the original size; of M > 1 the best by the truth is scored.
Outputs = dict[str, "Tensor | LazyMasks | list[Everything]"]
Predict = Callable[[list[Sample], list[Prompts]], list[Outputs]]


class LazyMasks:
    """What an output would be as one tensor `(N, M, H, W)`, enlarged an object at a time, where that is large."""

    def __init__(self, low: Tensor, preprocess: Preprocess, size: tuple[int, int], binary: bool) -> None:
        """`low`: logits `(N, M, h, w)`; `size` (H, W) and `binary` as `Preprocess.enlarged` takes them."""
        self._low, self._enlarge = low, partial(preprocess.enlarged, original_size=size, binary=binary)

    def __len__(self) -> int:
        return len(self._low)

    def __getitem__(self, index: int) -> Tensor:
        return self._enlarge(self._low[index][None])[0]


class Everything:
    """The masks of SAM's everything mode in one picture, enlarged one at a time: all at once may take gigabytes."""

    def __init__(self, encoded: Sequence[dict], size: tuple[int, int], binary: bool) -> None:
        """`encoded`: segment_anything's uncompressed run lengths; `size`: (H, W); `binary`: bool in place of logits."""
        self._encoded, self._size, self._binary = encoded, size, binary

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> Tensor:
        """Bool or logits `(H, W)`."""
        mask = _certain(rle_to_mask(self._encoded[index])[None])
        large = F.interpolate(mask[None], self._size, mode="bilinear", align_corners=False)[0, 0]
        return large > 0 if self._binary else large


def evaluate(
    predict: Predict, dataset: Dataset, config: EvaluationConfig, progress: bool = True, name: str = ""
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Measure `predict` on a split of `dataset`.

    Images without a mask are left out and counted, as in the papers.

    Args:
        predict: made by one of the `predict_...` functions below.
        dataset: the data set.
        config: what is measured, and how.
        progress: show a progress bar.
        name: of the method, for the bar.

    Returns:
        A table with one row for each object and output (columns image, group, object, object_class, area in pixels,
            box_w, box_h, output, then the metrics), and what was left out, by reason.

    Raises `InputError` when nothing is left.
    """
    ids = dataset.ids(config.split)[: config.max_images or None]
    rows: list[dict] = []
    dropped = {"images without a mask": 0, "empty masks": 0, "objects below min_side": 0}
    batches = _batches(dataset, ids, config, dropped)
    bar = tqdm(total=len(ids), desc=f"measure {name}".strip(), disable=not progress, mininterval=2, leave=False)
    with bar, ThreadPoolExecutor(config.workers or 1) as threads:
        late: Iterator[list[dict]] = iter(())
        for samples, masks, prompts, taken in batches:
            answers = predict(samples, prompts)
            if config.per_object:
                answers = [{name: reduce(torch.maximum, one)[None] for name, one in each.items()} for each in answers]
            rows += chain.from_iterable(late)
            late = threads.map(partial(_rows, metrics=config.metrics), samples, masks, answers)
            if not config.workers:
                rows += chain.from_iterable(late)
            bar.update(taken)
        rows += chain.from_iterable(late)
    if not rows:
        raise InputError(f"{dataset.name} {config.split}: no image with a mask among {len(ids)}")
    return pd.DataFrame(rows), dropped


def _batches(
    dataset: Dataset, ids: Sequence[str], config: EvaluationConfig, dropped: dict[str, int]
) -> Iterator[tuple[list[Sample], list[np.ndarray | CroppedMasks], list[Prompts], int]]:
    """Samples with true masks and prompts, `batch_size` images at a time, and the number of ids used for them."""
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
        has_object = bool(kept.any())
        if len(masks) and config.min_side:
            boxes = tight_boxes(masks)
            large = ((boxes[:, 2:] - boxes[:, :2] + 1) >= config.min_side).all(1)
            dropped["objects below min_side"] += int((kept & ~large).sum())
            kept &= large
        if not kept.all():
            sample = keep_masks(replace(sample, masks=masks), kept)
            masks = sample.masks
        if len(masks):
            # A mask prompt covers the image's part of the square, not the padding.
            low = Preprocess(config.mask_size, config.preprocess).inner_size(*sample.image.shape[:2])
            samples.append(sample)
            truths.append(masks)
            key = sample_key(dataset.name, id)
            shown = objects_of(sample) if config.per_object else masks
            prompts.append(make_prompts(config.prompt, shown, key, config.seed, low, box_noise=config.box_noise))
        elif not has_object:
            dropped["images without a mask"] += 1
        if samples and (len(samples) == config.batch_size or position == len(ids) - 1):
            yield samples, truths, prompts, taken
            samples, truths, prompts, taken = [], [], [], 0


def objects_of(sample: Sample) -> np.ndarray | CroppedMasks:
    """The objects of a sample, bool `(N, H, W)`, without empty ones.

    These are its masks; or, where it has one mask for each class or one in all, the masks' connected parts (8
    neighbours).
    """
    masks = sample.masks[sample.masks.any((1, 2))]
    if len(masks) > 1 and len(set(sample.object_class)) < len(sample.masks):
        return masks
    crops = []
    for mask in masks:
        parts, _ = ndimage.label(mask, np.ones((3, 3)))
        crops += [(box, parts[box] == number) for number, box in enumerate(ndimage.find_objects(parts), 1)]
    return pack_masks(crops, masks.shape[1:])


def _rows(sample: Sample, truth: np.ndarray | CroppedMasks, outputs: Outputs, metrics: Sequence[str]) -> list[dict]:
    """A row an output and object: which it is, and every metric of its mask; of several masks of an output,
    the one that is best by the truth.
    """
    boxes = tight_boxes(truth)
    rows = []
    for output, logits in outputs.items():
        for index, mask in enumerate(truth):
            candidates, best = logits[index], 0
            if len(candidates) > 1:
                best = int(np.argmax([METRICS["iou"](_above_zero(one), mask, sample.ignore) for one in candidates]))
            chosen = candidates[best]
            binary = _above_zero(chosen)
            row = {
                "image": sample.id,
                "group": sample.group,
                "object": index,
                "object_class": sample.object_class[index] if len(sample.object_class) == len(truth) else "",
                "area": np.count_nonzero(mask),
                "box_w": int(boxes[index, 2] - boxes[index, 0] + 1),
                "box_h": int(boxes[index, 3] - boxes[index, 1] + 1),
                "output": output,
            }
            for metric in metrics:
                if metric in MAP_METRICS and chosen.dtype == torch.bool:
                    raise ValueError(f"{metric} needs logits: `predict_with` and `evaluate` take the same config")
                value = chosen.sigmoid().double().numpy() if metric in MAP_METRICS else binary
                row[metric] = METRICS[metric](value, mask, sample.ignore)
            rows.append(row)
    return rows


def _above_zero(mask: Tensor) -> np.ndarray:
    """Bool or logits `(H, W)` as bool."""
    return (mask if mask.dtype == torch.bool else mask > 0).numpy()


def predict_with(
    method: Method,
    config: EvaluationConfig,
    cache: EmbeddingCache | None = None,
    known: dict[str, Tensor] | None = None,
) -> Predict:
    """How `evaluate` asks a method: encode each batch once, decode all its prompts, resize the logits in one step.

    Args:
        method: `decode` names its outputs.
        config: its preprocess, multimask, device and precision are used. Outputs are logits if one of its metrics needs
            them, else bool masks, which take a quarter of the memory.
        cache: of embeddings, used for frozen encoders.
        known: embeddings `(C, h, w)` by sample id, for this method and data set. New embeddings are added, so that the
            next kind of prompt need not encode again.

    Returns: a function for `evaluate`. It raises `InputError` when memory runs out.
    """
    preprocess = Preprocess(method.image_size, config.preprocess)
    method = method.to(config.device).eval()
    cache = cache if method.frozen_encoder else None
    binary = not MAP_METRICS.keys() & set(config.metrics)
    if config.multimask and type(method).passes is not Method.passes:
        raise InputError(f"multimask asks SAM's own decoder alone, and {method.name} has passes of its own")

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[Outputs]:
        side = max(max(sample.image.shape[:2]) for sample in samples)
        half = len(samples) // 2
        smaller = f"batch_size {half}" if half else "a smaller backbone, or smaller pictures"
        work = f"prediction at batch_size {len(samples)}, {method.image_size} px, pictures of up to {side} px"
        with explains_out_of_memory(work, smaller):
            return answer(samples, prompts)

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
            name: LazyMasks(low, preprocess, size, binary)
            if low.shape[:2].numel() * math.prod(size) * (1 if binary else 4) > MOST_BYTES
            else preprocess.enlarged(low, size, binary)
            for name, low in decode_in_parts(decode, moved.at_image(0).to(config.device)).items()
        }

    return predict


def model_prompts(prompts: Prompts, preprocess: Preprocess, size: tuple[int, int], mask_size: int) -> Prompts:
    """Prompts from pixels of an image of `size` (H, W) to model pixels; mask prompts to `mask_size`."""
    moved = preprocess.prompts(prompts, size)
    if moved.masks is not None:
        masks = F.interpolate(moved.masks, Preprocess(mask_size, preprocess.mode).inner_size(*size), mode="nearest")
        moved = moved.with_masks(masks).with_padded_masks(mask_size, mask_size, MASK_VALUES[0])
    return moved


def predict_everything(method: Method, config: EvaluationConfig) -> Predict:
    """SAM's "everything" mode: masks for a grid of points, by segment_anything's own generator; the prompts are not
    used.

    Outputs: "final", the mask with the highest predicted IoU; "best_by_truth", the best by the truth, an upper bound.
    The generator's thresholds of predicted IoU and stability are 0, because few masks of a small SAM would pass them.
    Where it finds no mask the result is an empty one. It runs in fp32.
    """
    preprocess = Preprocess(method.image_size, config.preprocess)
    binary = not MAP_METRICS.keys() & set(config.metrics)
    generator = SamAutomaticMaskGenerator(
        method.sam.to(config.device).eval(), config.everything, pred_iou_thresh=0.0, stability_score_thresh=0.0,
        output_mode="uncompressed_rle",
    )  # fmt: skip

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[Outputs]:
        answers = []
        for sample, own in zip(samples, prompts, strict=True):
            # The generator itself pads.
            picture = sample.image if config.preprocess == "pad" else preprocess.resized(sample.image)
            height, width = picture.shape[:2]
            work = f"everything mode with {config.everything} points a side, {width}x{height} px"
            with explains_out_of_memory(work, "a smaller backbone, or smaller pictures"):
                found = sorted(generator.generate(picture), key=lambda mask: -mask["predicted_iou"])
            nothing = {"size": [height, width], "counts": [height * width]}
            masks = [mask["segmentation"] for mask in found] or [nothing]
            shown = {"final": masks[:1], "best_by_truth": masks}
            size = sample.image.shape[:2]
            answers.append({name: [Everything(some, size, binary)] * len(own) for name, some in shown.items()})
        return answers

    return predict


def predict_truth(config: EvaluationConfig) -> Predict:
    """The truth at the resolution of SAM's masks: the score of a perfect fit to the training masks.

    Output "at_mask_size", logits `(N, 1, H, W)`. It shows what can be reached (not strictly a bound) for objects about
    as thin as a low-resolution pixel. Ours, of no paper.
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
    """One of `CLASSICAL`, the baselines that need a box but no network, for `evaluate`. Raises `InputError` on another
    name.
    """
    if name not in CLASSICAL:
        raise unknown("classical baseline", name, CLASSICAL)

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[Outputs]:
        answers = []
        for sample, own in zip(samples, prompts, strict=True):
            if own.boxes is None:
                raise InputError(f"{name} needs a box prompt")
            masks = [CLASSICAL[name](sample.image, box) for box in own.boxes.numpy()]
            answers.append({"final": _certain(np.stack(masks))[:, None]})
        return answers

    return predict


def _certain(masks: np.ndarray) -> Tensor:
    """Masks bool `(M, H, W)` -> float32 logits -20 and 20, whose probabilities are 0 and 1."""
    return torch.from_numpy(masks).float() * 40 - 20
