"""One training loop for every method (accelerate): same order of images, prompts and schedules; it can resume."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from samtune.common.devices import choose_precision, refuse_several_processes, usable_device
from samtune.common.errors import InputError, explains_out_of_memory
from samtune.data.augmentation import augment
from samtune.data.generated import sample_key
from samtune.data.sample import Dataset, target_masks
from samtune.embeddings import EmbeddingCache
from samtune.losses import at_size, low_resolution_iou
from samtune.methods import Method
from samtune.prompts import Prompts, make_prompts
from samtune.sam.build import recompute_blocks
from samtune.sam.checkpoints import read_progress, save_torch
from samtune.sam.preprocess import Preprocess
from samtune.training_config import TrainingConfig, learning_rate_factor

LAST = "last.pt"  # the checkpoint to resume from
# Settings with which another machine may go on.
OF_MACHINE = {"device", "precision", "workers", "save_memory", "checkpoint_every"}
MOST_ROWS = 2000  # of a learning curve: longer trainings average batches
LEAST_SIDE = 102.4  # jitter shrinks no image below this, in pixels: 0.1 of SAM's 1,024, 0.4 of the nano SAM's 256


@dataclass
class TrainingResult:
    """What training gives besides the weights.

    Fields:
        curve: one row a batch: "images" (seen so far), "learning_rate", "loss", and for each output "iou_<output>", the
            mean IoU with the batch's masks at low resolution; in long trainings one row some batches, their mean.
        recent: batches that are not yet in the curve.
        idle: batches that trained nothing, as no mask was left.
        seconds: wall time, with earlier, interrupted parts.
        precision: "fp32" or "bf16"; "bf16, then fp32" where a run was resumed on another machine.
        dropped: views of images without a mask after preprocessing; an image counts once an epoch.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    precision: str = "fp32"
    dropped: int = 0
    recent: list[dict[str, float]] = field(default_factory=list)
    idle: int = 0


class TrainingSamples(TorchDataset):
    """The training samples in their order. Each depends only on the config and its place in the run.

    An epoch is a permutation of all samples of all sets, drawn from (seed, epoch).

    Args:
        sources: data sets, each with a split.
        size: side of the model's square, pixels.
        config: how to train.
        fixed_copies: augmented images repeat after `config.copies` epochs.
        mask_size: side of mask prompts; None: a quarter of `size`, as in SAM.

    Raises `InputError` when there are no images.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Dataset, str]],
        size: int,
        config: TrainingConfig,
        fixed_copies: bool = True,
        mask_size: int | None = None,
    ) -> None:
        self.entries = [entry for dataset, split in sources for entry in _share(dataset, split, config.train_share)]
        if not self.entries:
            names = ", ".join(f"{dataset.name} {split}" for dataset, split in sources)
            raise InputError(f"nothing to train on: {names} has no images")
        self.config, self.preprocess, self.fixed_copies = config, Preprocess(size, config.preprocess), fixed_copies
        self.mask_size = mask_size or size // 4
        self.least_scale = min(0.5, LEAST_SIDE / size)  # small models still see images at half their size

    def __len__(self) -> int:
        return self.config.steps * self.config.batch_size

    def __getitem__(self, place: int) -> dict[str, Any] | InputError:
        """{"id", "copy", "image" `(3, S, S)`, "masks" float `(N, 1, S, S)`, "kind" of prompt, "prompts" in model
        pixels}; N may be 0.

        The `InputError` of a bad file is given back: raised in a worker, it would come as that one's whole traceback.
        """
        try:
            return self._sample(place)
        except InputError as error:
            return error

    def _sample(self, place: int) -> dict[str, Any]:
        cv2.setNumThreads(1)
        epoch, position = divmod(place, len(self.entries))
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.entries))
        dataset, id = self.entries[order[position]]
        key = sample_key(dataset.name, id)
        copy = epoch % self.config.copies if self.fixed_copies else epoch
        sample = dataset.load(id)
        image, masks = augment(
            sample.image,
            target_masks(sample, self.config.target),
            self.config.augmentation if self.config.copies > 1 else "none",
            [self.config.seed, copy],
            key,
            self.least_scale,
        )
        # As crops, to save memory: an image may hold a thousand objects, of which a few are picked.
        seen = [index for index, (_, share) in enumerate(self.preprocess.shares(masks)) if (share > 0.5).any()]
        rng = np.random.default_rng([self.config.seed, place])
        picked = np.array(seen, dtype=int)[rng.permutation(len(seen))[: self.config.objects]]
        masks = self.preprocess.masks(masks[picked], self.preprocess.size)
        drawn = place if self.config.prompt_for_each == "image" else place // self.config.batch_size
        kinds = self.config.prompts
        kind = kinds[np.random.default_rng([self.config.seed, 1, drawn]).integers(len(kinds))]
        size = (self.mask_size, self.mask_size)
        prompts = make_prompts(kind, (masks[:, 0] > 0.5).numpy(), f"{key}/{place}", self.config.seed, size)
        shown = self.preprocess.image(image)
        return {"id": key, "copy": copy, "image": shown, "masks": masks, "kind": kind, "prompts": prompts}


def _share(dataset: Dataset, split: str, share: float) -> list[tuple[Dataset, str]]:
    """A share of a set's training images, at least one. It does not depend on the run's seed; larger shares contain
    smaller ones.

    Whole groups (a tile, a patient, a sequence) are taken one after another, in a fixed random order: a few images of
    every group would show as much as all images.
    """
    ids = dataset.ids(split)
    if share < 1:
        groups: dict[str, list[str]] = {}
        for id in ids:
            groups.setdefault(dataset.load(id).group or f"single {id}", []).append(id)
        order = np.random.default_rng(0).permutation(len(groups))
        members = list(groups.values())
        ids = sorted([id for place in order for id in members[place]][: max(1, round(share * len(ids)))])
    return [(dataset, id) for id in ids]


def train(
    method: Method,
    sources: Sequence[tuple[Dataset, str]],
    config: TrainingConfig,
    folder: Path | None = None,
    cache: EmbeddingCache | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train `method` in place.

    A run that is killed and resumed ends with the same weights as one that is not (on a CPU, same machine).

    Args:
        method: to be trained.
        sources: data sets, each with a split.
        config: how to train.
        folder: for checkpoints; training resumes from its `last.pt`, if there is one.
        cache: of embeddings, used for frozen encoders.
        progress: show a progress bar.

    Raises `FloatingPointError` with the samples' ids when the loss is infinite or not a number, `InputError` when
    memory runs out, the method has no trainable parameter, or no image has a mask.
    """
    refuse_several_processes()
    device = usable_device(config.device)
    precision = choose_precision(config.precision, device)
    accelerator = _accelerator(device, precision, config.accumulate)
    samples = TrainingSamples(sources, method.image_size, config, method.frozen_encoder, method.mask_size)
    parameters = list(method.trainable().values())
    if not parameters:
        raise InputError(f"{method.name} has nothing to train")
    torch.manual_seed(config.seed)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser]
    optimiser = kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    result = TrainingResult(precision=precision)
    first = _resume(method, optimiser, config, result, folder)
    indices = range(first * config.batch_size, len(samples))
    cv2.setNumThreads(1)  # before the loader forks: a child that ends OpenCV's threads waits for ever
    loader = DataLoader(
        torch.utils.data.Subset(samples, indices),
        config.batch_size,
        num_workers=config.workers,
        collate_fn=list,
        pin_memory=device.startswith("cuda"),
        generator=torch.Generator(),  # without one it would draw from the global generator, again after every resume
    )
    method, optimiser = accelerator.prepare(method, optimiser)
    plain: Method = accelerator.unwrap_model(method)
    plain.train()
    cached = cache if plain.frozen_encoder else None
    if config.save_memory and plain.needs_sam and not plain.frozen_encoder:
        recompute_blocks(plain.sam.image_encoder)
    bar = tqdm(
        iter(loader),  # in notebooks tqdm would ask the loader twice, and so start its processes twice
        f"train {plain.name}",
        initial=first,
        total=config.steps,
        disable=not progress,
        mininterval=2,
        leave=False,
    )
    started = time.perf_counter() - result.seconds
    window = -(-config.steps // MOST_ROWS)
    for step, batch in enumerate(bar, first):
        for sample in batch:
            if isinstance(sample, InputError):
                raise sample
        result.dropped += sum(len(sample["masks"]) == 0 for sample in batch)
        batch = [sample for sample in batch if len(sample["masks"])]
        rate = config.learning_rate * learning_rate_factor(config, step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        if batch:
            row = _step(accelerator, method, plain, optimiser, batch, config, step, cached)
            result.recent.append({"images": (step + 1) * config.batch_size, "learning_rate": rate} | row)
            bar.set_postfix(loss=f"{row['loss']:.3f}")
        result.idle += not batch
        if result.recent and ((step + 1) % window == 0 or step + 1 == config.steps):
            result.curve.append(_mean_row(result.recent))
            result.recent.clear()
        result.seconds = time.perf_counter() - started
        # Only between two optimiser steps: accumulated gradients are not saved.
        due = step + 1 - first >= config.checkpoint_every and accelerator.sync_gradients
        if folder and due and step + 1 < config.steps:
            first = step + 1
            _save(plain, optimiser, config, result, first, folder)
    if not result.curve:
        raise InputError("nothing left to train on: every mask is empty after preprocessing")
    plain.eval()
    return result


def _mean_row(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of a curve's rows, with the last one's "images"."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[-1]}
    return means | {"images": rows[-1]["images"]}


def _step(
    accelerator: Accelerator,
    method: torch.nn.Module,
    plain: Method,
    optimiser: torch.optim.Optimizer,
    batch: list[dict[str, Any]],
    config: TrainingConfig,
    step: int,
    cache: EmbeddingCache | None,
) -> dict[str, float]:
    """One forward and backward pass, and an optimiser step when enough batches are accumulated.

    Gives the loss and, for each output, the mean IoU with this batch's masks at low resolution, before the step.
    """
    device = accelerator.device
    batch = sorted(batch, key=lambda sample: sample["kind"])  # prompts of one kind are decoded together
    by_kind: dict[str, list[Prompts]] = {}
    for index, sample in enumerate(batch):
        by_kind.setdefault(sample["kind"], []).append(sample["prompts"].at_image(index))
    masks = torch.cat([sample["masks"].to(device, non_blocking=True) for sample in batch])
    generator = torch.Generator(device).manual_seed(config.seed * 10**9 + step)
    work = f"training at batch_size {config.batch_size}, {plain.image_size} px, {len(masks)} prompts"
    smaller = f"batch_size {config.batch_size // 2} and accumulate {config.accumulate * 2}"
    smaller = smaller if config.batch_size > 1 else "a smaller backbone"
    saves = plain.needs_sam and not plain.frozen_encoder and hasattr(plain.sam.image_encoder, "blocks")
    smaller += ", or save_memory (slower)" if saves and not config.save_memory else ""
    with explains_out_of_memory(work, smaller), accelerator.accumulate(method), accelerator.autocast():
        if cache is None:
            embedding = plain.encode(torch.stack([sample["image"].to(device, non_blocking=True) for sample in batch]))
        else:
            embedding = cache.encode(plain, [sample["image"] for sample in batch], device)
        decoded = [plain.decode(embedding, Prompts.concatenate(parts).to(device)) for parts in by_kind.values()]
        prediction = {output: torch.cat([one[output] for one in decoded]).float() for output in decoded[0]}
        loss = plain.loss(prediction, masks, generator)
        if not torch.isfinite(loss):
            ids = ", ".join(sample["id"] for sample in batch)
            raise FloatingPointError(f"loss is {loss.item()} at step {step}, on samples {ids}")
        accelerator.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
    row = {"loss": loss.detach()}
    for output, logits in prediction.items():
        row[f"iou_{output}"] = low_resolution_iou(logits.detach(), at_size(masks, logits)).mean()
    return {name: round(float(value), 6) for name, value in row.items()}


def _accelerator(device: str, precision: str, accumulate: int) -> Accelerator:
    """An accelerator on exactly this device: its own options only know "the CPU" and "not the CPU"."""
    AcceleratorState._reset_state(True)
    with patch_environment(accelerate_torch_device=device):
        return Accelerator(
            cpu=device == "cpu",
            mixed_precision="bf16" if precision == "bf16" else "no",
            gradient_accumulation_steps=accumulate,
        )


def _save(
    method: Method,
    optimiser: torch.optim.Optimizer,
    config: TrainingConfig,
    result: TrainingResult,
    step: int,
    folder: Path,
) -> None:
    """Write a checkpoint to resume from at `step`."""
    state: dict[str, object] = {
        "step": step,
        "trainable": method.trainable_state(),
        "optimiser": optimiser.state_dict(),
        "config": _of_any_machine(config),
        "result": asdict(result),
        "counts": dict(method.counts),
        "random": torch.get_rng_state(),
    }
    save_torch(state, folder / LAST)


def _of_any_machine(config: TrainingConfig) -> dict[str, str]:
    """The settings that decide what is trained, as text; another machine may go on with other ones than these."""
    return {name: str(value) for name, value in asdict(config).items() if name not in OF_MACHINE}


def _resume(
    method: Method,
    optimiser: torch.optim.Optimizer,
    config: TrainingConfig,
    result: TrainingResult,
    folder: Path | None,
) -> int:
    """Load what `_save` wrote, if there is anything; returns the step to continue with. `InputError` where that
    training has another config.
    """
    path = None if folder is None else folder / LAST
    if path is None or not path.is_file():
        return 0
    state = read_progress(path, ("step", "trainable", "optimiser", "result", "counts", "random"))
    begun, now = state.get("config", {}), _of_any_machine(config)  # checkpoints of earlier versions do not name theirs
    if other := [f"{name} {begun[name]}, now {now[name]}" for name in now if begun.get(name, now[name]) != now[name]]:
        raise InputError(f"{path} is of another training ({'; '.join(other)}): take another folder, or remove it")
    method.load_trainable_state(state["trainable"], str(path))
    optimiser.load_state_dict(state["optimiser"])
    method.counts.update(state["counts"])
    random: Tensor = state["random"]
    torch.set_rng_state(random)
    here = result.precision
    for name, value in state["result"].items():
        setattr(result, name, value)
    if not result.precision.endswith(here):  # begun on another machine
        result.precision += f", then {here}"
    return int(state["step"])
