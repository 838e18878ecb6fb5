"""The methods by name. A new method is a file beside these and a line in `METHODS`."""

from functools import cache
from typing import Any

import torch

from samtune.common.errors import unknown
from samtune.methods.asam import ASAM, DAT, PGD, ClassicalAugmentation, CleanTuning, Generated, Reconstructed
from samtune.methods.decoder_tuning import DecoderTuning
from samtune.methods.lora import Lora, LoraSamed
from samtune.methods.method import Method
from samtune.methods.sam_sp import SamSP
from samtune.methods.spt import SPT
from samtune.methods.unet import UNet
from samtune.methods.zero_shot import ZeroShot
from samtune.sam.build import BACKBONES, Sam, new_sam
from samtune.sam.checkpoints import load_sam

# From simple to elaborate: the order of rows in tables and of bars in figures.
METHODS: dict[str, type[Method]] = {
    "zero_shot": ZeroShot,
    "decoder_tuning": DecoderTuning,
    "lora": Lora,
    "lora_samed": LoraSamed,
    "unet": UNet,
    "spt": SPT,
    "sam_sp": SamSP,
    "clean_tuning": CleanTuning,
    "classical_augmentation": ClassicalAugmentation,
    "pgd": PGD,
    "dat": DAT,
    "generated": Generated,
    "reconstructed": Reconstructed,
    "asam": ASAM,
}


def build_method(name: str, sam: Sam | None, **options: Any) -> Method:
    """The method `name` on `sam`.

    Args:
        name: one of `METHODS`.
        sam: changed in place; None for a method that needs none.
        options: of the method's constructor.

    Raises `InputError` for an unknown name.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name](sam, **options)


@cache
def trainable_parameters(name: str, backbone: str, **options: Any) -> int:
    """Number of parameters that the method trains on `backbone`, whose weights are not needed (but for a checkpoint's
    path: to know which SAM it is).
    """
    needs_sam = METHODS[name].needs_sam
    if needs_sam and backbone not in BACKBONES:
        backbone = load_sam(backbone).backbone
    with torch.device("meta"):
        return build_method(name, new_sam(backbone) if needs_sam else None, **options).count_trainable()


__all__ = ["METHODS", "Method", "build_method", "trainable_parameters"]
