"""What a user may set of a tuning, checked before a file is opened."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from samtune.common.errors import InputError, check_range, unknown
from samtune.data.sample import TARGETS
from samtune.methods import METHODS, Method, build_method
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
    """What the tuned weights depend on, besides the pictures; two runs into one folder must agree in it.

    `options` are the method's own (LoRA's rank); `epochs` or `train_images` (seen in all) say how long, none of them:
    16 epochs and at least 400 images, or longer where the search shows a gain by that; `learning_rate` None: searched;
    `prompts` drawn in tuning and measured afterwards (none named: the method's own); `objects`: with target
    "instances", the most masks taken of a picture at a time.
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
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts and self.method in METHODS:
            object.__setattr__(self, "prompts", METHODS[self.method].prompts)

    def check(self) -> None:
        """Raise `InputError` for whatever can be told wrong before a file is opened."""
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
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
        if self.epochs is not None and self.train_images is not None:
            raise InputError("epochs and train_images both say how long to tune; give one of them")

    def build(self, sam: Sam) -> Method:
        """The untuned method on a copy of `sam`; its new weights (LoRA's A) do not depend on what ran before."""
        torch.manual_seed(self.seed)
        return build_method(self.method, copy.deepcopy(sam), **self.options)

    def images(self, pictures: int) -> int:
        """Images to see in all, when there are `pictures` to tune on."""
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
