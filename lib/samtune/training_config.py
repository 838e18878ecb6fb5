"""How a method is trained: the settings, and the schedules of the learning rate."""

from collections.abc import Callable
from dataclasses import dataclass

from samtune.common.errors import unknown
from samtune.data.augmentation import AUGMENTATIONS

OPTIMISERS = ("adam", "adamw")
# Factor of the learning rate at a progress of training in [0, 1]. (ASAM: halved at each epoch; here it falls evenly.)
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "step": lambda progress: 1.0 if progress < 10 / 16 else 0.1,  # SPT: x0.1 at epoch 10 of 16
    "polynomial": lambda progress: (1 - progress) ** 0.9,  # SAMed, for SAM-SP (SAMed stops at progress 0.8)
    "slow_start": lambda progress: (
        2 * progress if progress < 0.5 else 0.5 ** ((progress - 0.5) * 20)
    ),  # ASAM, 20 epochs
}


@dataclass(frozen=True)
class TrainingConfig:
    """How a method is trained.

    Fields:
        images: seen in all.
        batch_size: images in a batch.
        learning_rate: before the schedule's factor.
        optimiser: "adam" or "adamw".
        weight_decay: of the optimiser.
        schedule: of the learning rate, one of `SCHEDULES`.
        warm_up: share of the steps in which the learning rate first rises (ours: SPT's schedule has none).
        prompts: kinds of prompts, all equally likely.
        prompt_for_each: "batch" (SPT) or "image" (ASAM): which draws one of these kinds.
        target: "union" or "instances".
        preprocess: "stretch" or "pad".
        augmentation: see `data.augmentation.augment`.
        objects: the most masks taken from an image.
        accumulate: batches for an optimiser step.
        copies: fixed augmented copies of an image that a method with a frozen encoder sees, so that their embeddings
            can be cached; other methods see a new copy every epoch. 1: no augmentation, for any method.
        train_share: share of the training images that is used.
        seed: of the order of images, augmentation and prompts.
        precision: "auto", "fp32" or "bf16".
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        workers: processes that load images.
        save_memory: see `sam.build.recompute_blocks`; for methods that train the image encoder.
        checkpoint_every: steps between two checkpoints to resume from.

    Raises `InputError` on an unknown schedule, augmentation, optimiser or `prompt_for_each`.
    """

    images: int
    batch_size: int = 8
    learning_rate: float = 1e-3
    optimiser: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "step"
    warm_up: float = 0.02
    prompts: tuple[str, ...] = ("box", "point10")
    prompt_for_each: str = "batch"
    target: str = "union"
    preprocess: str = "stretch"
    augmentation: str = "flip_jitter"
    objects: int = 4
    accumulate: int = 1
    copies: int = 4
    train_share: float = 1.0
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    workers: int = 0
    save_memory: bool = False
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("augmentation", self.augmentation, AUGMENTATIONS),
            ("optimiser", self.optimiser, OPTIMISERS),
            ("prompt_for_each", self.prompt_for_each, ("batch", "image")),
        ):
            if name not in known:
                raise unknown(kind, name, known)

    @property
    def steps(self) -> int:
        """Number of batches: whole groups of `accumulate`, at least one, so that every gradient is used (where no
        batch is left out because nothing of its masks was left).
        """
        return max(1, self.images // (self.batch_size * self.accumulate)) * self.accumulate


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """The schedule's factor at `step`, with linear warm-up over the first `warm_up` of the steps ("slow_start" has its
    own, and stays at 1 / steps at least).
    """
    factor = SCHEDULES[config.schedule](step / config.steps)
    if config.schedule == "slow_start":
        return max(factor, 1 / config.steps)
    return factor * min(1.0, (step + 1) / max(1, round(config.warm_up * config.steps)))
