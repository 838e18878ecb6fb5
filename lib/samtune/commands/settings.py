"""The settings of a tuning that a user may choose, checked before any file is opened."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from samtune.common.errors import InputError, check_range, unknown
from samtune.data.sample import TARGETS
from samtune.methods import METHODS, Method, build_method
from samtune.methods.sam_sp import CONTROLS, SELF_PROMPTS
from samtune.prompts import parse_kind
from samtune.sam.build import Sam
from samtune.sam.preprocess import MODES

EPOCHS, FEWEST_IMAGES = 16, 400  # SPT's 16 epochs; a handful of pictures is seen more often than that
RANGES = {  # least, most
    "epochs": (0, 100_000), "train_images": (1, 100_000_000), "learning_rate": (0, 1), "batch_size": (1, 1024),
    "accumulate": (1, 1024), "objects": (1, 10_000), "void": (0, 65_535), "seed": (0, 2**31 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class TuneSettings:
    """What the tuned weights depend on, besides the images. Two runs into one folder must have the same settings.

    Fields:
        method: one of `METHODS`.
        backbone: a name, or a checkpoint's file.
        options: of the method (LoRA's rank).
        epochs: how often each image is seen. Without it and `train_images`: 16, at least 400 images, or longer where
            the search finds that it helps.
        train_images: images seen in all, in place of `epochs`.
        learning_rate: None: searched.
        batch_size: images in a batch.
        accumulate: batches for an optimiser step.
        prompts: kinds of prompts, for tuning and for measuring afterwards; none: the method's own.
        target: "union" or "instances".
        objects: with "instances", the most masks taken from an image at a time.
        preprocess: "pad" or "stretch".
        mask_coding: see `FolderDataset`.
        void: see `FolderDataset`.
        mask_suffix: see `FolderDataset`.
        seed: of the training.
    """

    method: str = "lora"
    backbone: str = "nano"
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None
    train_images: int | None = None
    learning_rate: float | None = None
    batch_size: int = 4
    accumulate: int = 1
    prompts: tuple[str, ...] = ()
    target: str = "union"
    objects: int = 4
    preprocess: str = "pad"
    mask_coding: str = "binary255"
    void: int | None = None
    mask_suffix: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts and self.method in METHODS:
            object.__setattr__(self, "prompts", METHODS[self.method].prompts)

    def check(self) -> None:
        """Raise `InputError` for all that can be found wrong before a file is opened."""
        if self.method not in METHODS:
            raise unknown("method", self.method, _tunable())
        if self.method not in _tunable():
            reason = "nothing to tune" if self.method == "zero_shot" else "no SAM in it: a yardstick for tables alone"
            if METHODS[self.method].makes_pictures:
                reason = "pictures of its own, which the study makes: a rival of asam in tables alone"
            raise InputError(f"{self.method} has {reason}; methods to tune with: {', '.join(_tunable())}")
        known = [name for name in inspect.signature(METHODS[self.method]).parameters if name != "sam"]
        for name in self.options:
            if name not in known:
                raise unknown(f"option of {self.method}", name, known)
        for kind, name, names in (("preprocessing", self.preprocess, MODES), ("target", self.target, TARGETS)):
            if name not in names:
                raise unknown(kind, name, names)
        for name, (least, most) in RANGES.items():
            if (value := getattr(self, name)) is not None:
                check_range(name, value, least, most, above=name in ("epochs", "learning_rate"))
        for prompt in self.prompts:
            parse_kind(prompt)
        if not METHODS[self.method].takes_prompts and self.prompts != ("none",):
            raise InputError(f"{self.method} takes no prompt: it is tuned and used with none, not {self.prompts[0]}")
        if self.target == "instances" and "none" in self.prompts:
            raise InputError("without a prompt one mask a picture is predicted: target instances needs box or points")
        if (own := self.options.get("self_prompt")) in CONTROLS:
            raise InputError(f"self_prompt {own} is a control of the study; of use are {', '.join(SELF_PROMPTS)}")
        if self.epochs is not None and self.train_images is not None:
            raise InputError("epochs and train_images both say how long to tune; give one of them")

    def build(self, sam: Sam) -> Method:
        """The untuned method on a copy of `sam`. Its new weights (LoRA's A) depend on the seed alone."""
        torch.manual_seed(self.seed)
        return build_method(self.method, copy.deepcopy(sam), **self.options)

    def images(self, pictures: int) -> int:
        """The number of images to see in all, where there are `pictures` to tune on."""
        if self.train_images is not None:
            return self.train_images
        if self.epochs is not None:
            return max(1, round(self.epochs * pictures))
        return max(EPOCHS * pictures, FEWEST_IMAGES)


def _tunable() -> list[str]:
    return sorted(
        name
        for name, method in METHODS.items()
        if method.needs_sam and not method.makes_pictures and name != "zero_shot"
    )
