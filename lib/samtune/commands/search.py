"""Searches the learning rate of a tuning, and how long to tune, on a part of the training images."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from samtune.commands.pictures import HeldOut
from samtune.commands.settings import TuneSettings
from samtune.common.errors import counted
from samtune.data.listed import ListedDataset
from samtune.embeddings import EmbeddingCache
from samtune.methods import Method, build_method
from samtune.sam.build import Sam
from samtune.sam.checkpoints import save_safetensors
from samtune.training import train
from samtune.training_config import TrainingConfig

SEARCH = "search.safetensors"
FACTORS = (1, 3, 10, 30)  # of the method's own rate, which is meant for thousands of steps
TRIAL, LONGEST = 25, 200  # steps: of each rate's trial, of the best rate's run
FEWEST_STEPS, FEWEST_PICTURES = 8, 4  # below, a trial says nothing
GAIN = 0.01  # mean IoU that twice the steps have to bring


@dataclass
class Progress:
    """What the search has found so far.

    Fields:
        losses: by learning rate, the mean training loss over the second half of its trial. All rates see the same
            batches. Infinite: the loss was not a number.
        curve: for the best rate, by number of steps, the mean IoU for each prompt on the held-out images; "0":
            zero-shot.
        seconds: a batch, in the trials; 0: not known.
    """

    losses: dict[str, float] = field(default_factory=dict)
    curve: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    def rate(self) -> float:
        """The learning rate with the lowest loss."""
        return float(min(self.losses, key=self.losses.__getitem__))

    def best(self) -> int:
        """The number of steps after which most prompts are above zero-shot; of several, that with the best mean IoU."""
        return int(max(list(self.curve)[1:], key=lambda steps: (self.above(steps), self.mean(steps))))

    def above(self, steps: str) -> int:
        """The number of prompts whose IoU after `steps` is above zero-shot."""
        return sum(value > self.curve["0"][prompt] for prompt, value in self.curve[steps].items())

    def rises(self) -> bool:
        """Should it train longer? Yes at the start, while a prompt is not above zero-shot, or if the last steps brought
        a gain.
        """
        *earlier, last = self.curve
        gain = self.mean(last) - max(map(self.mean, earlier))
        return len(earlier) < 3 or gain > GAIN or self.above(last) < len(self.curve[last])

    def mean(self, steps: str) -> float:
        """Mean IoU over the prompts after `steps`."""
        return float(np.mean(list(self.curve[steps].values())))


def mean_iou_by_prompt(table: pd.DataFrame) -> dict[str, float]:
    """Mean IoU by prompt: over the objects of an image, then over images."""
    return table.groupby(["prompt", "image"])["iou"].mean().groupby("prompt").mean().to_dict()


def search(
    config: TrainingConfig,
    settings: TuneSettings,
    sam: Sam,
    data: ListedDataset,
    measure: Callable[[Method, ListedDataset, str], pd.DataFrame],
    folder: Path,
    cache: EmbeddingCache,
    say: Callable[[str], None],
) -> tuple[TrainingConfig, float]:
    """`config` with the best learning rate found; and, unless the user chose it, with the best length. And the seconds
    that a batch takes, 0 where there was no trial.

    A fifth of the training images is held out. Each rate is tried for a few steps. With the rate of the lowest training
    loss, training goes on, doubling its length as long as the IoU on the held-out images improves. An interrupted
    search continues from `folder/search.safetensors`. With too few images or steps, `config` is returned unchanged.

    Args:
        config: of the tuning; its learning rate is the method's own.
        settings: the user's.
        sam: the model to tune; not changed.
        data: the search sees its "train" only.
        measure: (method, data set, stage) -> a table with a row for each object of "val", columns prompt, image, iou.
        folder: for the search's own file.
        cache: of embeddings.
        say: gets the messages.
    """
    length_given = settings.epochs is not None or settings.train_images is not None
    trial = min(TRIAL, config.steps // config.accumulate // 4) if length_given else TRIAL
    if trial < FEWEST_STEPS or len(data.ids("train")) < FEWEST_PICTURES:
        say(f"too few pictures or steps to search a learning rate: using the method's own, {config.learning_rate:g}")
        return config, 0.0
    part = HeldOut(data)
    trained, kept = (counted(len(part.ids(split)), "picture") for split in ("train", "val"))
    longer = f"; the best rate trains on, up to {LONGEST} steps, while its IoU on {kept} held out for the search rises"
    say(
        f"searching the learning rate (--learning-rate skips that): {len(FACTORS)} rates for {trial} steps each on "
        f"{trained}{'' if length_given else longer}"
    )
    path, batch = folder / SEARCH, config.batch_size * config.accumulate
    progress, state = _read(path)
    started = time.perf_counter()

    def run(method: Method, rate: float, first: int, steps: int) -> float:
        """Train from step `first` to `steps`; the mean loss over the second half."""
        stretch = replace(
            config, images=(steps - first) * batch, learning_rate=rate, schedule="constant", seed=config.seed + first
        )
        try:
            result = train(method, [(part, "train")], stretch, None, cache)
        except FloatingPointError:
            return math.inf
        progress.seconds = result.seconds / stretch.steps
        return float(np.mean([row["loss"] for row in result.curve[len(result.curve) // 2 :]]))

    def iou(method: Method) -> dict[str, float]:
        return mean_iou_by_prompt(measure(method, part, "search"))

    for factor in FACTORS:
        rate = f"{config.learning_rate * factor:g}"
        if rate not in progress.losses:
            method = settings.build(sam)
            progress.losses[rate] = run(method, float(rate), 0, trial)
            if progress.rate() == float(rate):
                state = method.trainable_state()
            _write(path, progress, state)
    rate = progress.rate()
    tried = ", ".join(f"{one} {loss:.3f}" for one, loss in progress.losses.items())
    seconds = time.perf_counter() - started
    say(f"learning rate {rate:g}: it had the lowest loss after {trial} steps ({tried}); found in {seconds:.0f} seconds")
    if length_given:
        return replace(config, learning_rate=rate), progress.seconds

    method = settings.build(sam)
    method.load_trainable_state(state)
    steps = int(list(progress.curve)[-1]) if progress.curve else 0
    if not steps:
        steps = trial
        zero_shot = build_method("zero_shot", sam)
        progress.curve = {"0": iou(zero_shot), str(steps): iou(method)}
        _write(path, progress, state)
    while progress.rises() and 2 * steps <= LONGEST:
        run(method, rate, steps, 2 * steps)
        steps *= 2
        progress.curve[str(steps)] = iou(method)
        _write(path, progress, method.trainable_state())
    tried = ", ".join(f"{one} {progress.mean(one):.3f}" for one in progress.curve)
    seconds = time.perf_counter() - started
    say(f"mean IoU on the pictures held out for the search, by steps: {tried}; the search took {seconds:.0f} seconds")
    longest = max(config.images, progress.best() * batch)
    return replace(config, learning_rate=rate, images=longest), progress.seconds


def _read(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """What an interrupted search has found, and the weights of its best rate so far; nothing of a damaged file."""
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            return progress, {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError):
        return Progress(), {}


def _write(path: Path, progress: Progress, state: dict[str, Tensor]) -> None:
    save_safetensors(state, path, torch.float32, {"progress": json.dumps(asdict(progress))})
