"""The methods by name; a new one is a file beside these and a line here."""

from typing import Any

from samtune.errors import unknown
from samtune.methods.decoder_tuning import DecoderTuning
from samtune.methods.lora import Lora, LoraSamed
from samtune.methods.method import Method
from samtune.methods.sam_sp import SamSP
from samtune.methods.spt import SPT
from samtune.methods.unet import UNet
from samtune.methods.zero_shot import ZeroShot
from samtune.sam.build import Sam

METHODS: dict[str, type[Method]] = {
    "zero_shot": ZeroShot,
    "decoder_tuning": DecoderTuning,
    "lora": Lora,
    "lora_samed": LoraSamed,
    "spt": SPT,
    "sam_sp": SamSP,
    "unet": UNet,
}


def build_method(name: str, sam: Sam | None, **options: Any) -> Method:
    """The method `name` on `sam`, which it changes in place (None for a method without one).

    Raises `InputError` for an unknown name.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name](sam, **options)


__all__ = ["METHODS", "Method", "build_method"]
