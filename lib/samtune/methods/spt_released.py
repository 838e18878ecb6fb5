"""Reads the checkpoints that SPT's authors released into our `SPT`.

In their files the names of the decoders are crossed: `mask_decoder` makes the draft, `draft_decoder` the final mask.
LoRA on the encoder's fused qkv matrix is stored as `lora_A (2r, C)` and `lora_B (2C, r)`, q's half first, then v's.
gamma is called `lora_sim_scale`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from samtune.common.errors import InputError
from samtune.methods.spt import SPT
from samtune.sam.attention import split_qkv
from samtune.sam.build import Sam
from samtune.sam.checkpoints import read_state

CROSSED = {"mask_decoder": "draft_decoder", "draft_decoder": "mask_decoder"}
ROUNDING = 1e-5  # loralib adds LoRA to the weights in eval mode, and subtracts it in training mode


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Is this state dict from SPT's authors: does it hold LoRA matrices and gammas under their names?"""
    return all(any(name.endswith(f".{part}") for name in state) for part in ("q_proj.lora_A", "lora_sim_scale"))


def load_released(path: Path, sam: Sam) -> SPT:
    """SPT with the trained values of a released checkpoint, in eval mode.

    Args:
        path: a file with the trained values alone, or with all of the model's.
        sam: must hold the pre-trained weights that the checkpoint was tuned on; changed in place.

    Raises `InputError` when the file is no such checkpoint; when names or shapes do not fit `sam`; or when its
    pre-trained part differs from `sam`'s by more than rounding. Then it was tuned on other weights, or LoRA is already
    added to its weights, and `SPT` would add it a second time.
    """
    state = {name.removeprefix("module."): value for name, value in read_state(path).items()}
    if not is_released(state):
        raise InputError(f"{path} is no checkpoint of SPT's authors: it lacks lora_A or lora_sim_scale")
    adapted = {name: value for name, value in state.items() if "lora_" in name}
    _check_pretrained(path, state, sam)
    rank = next(len(value) for name, value in adapted.items() if name.endswith("q_proj.lora_A"))
    spt = SPT(sam, rank=rank)
    spt.load_trainable_state(convert_released(adapted), str(path))
    return spt.eval()


def convert_released(adapted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Trained values under the authors' names and in their layout -> under those of `SPT.trainable_state`."""
    converted = {}
    for name, value in adapted.items():
        part, _, rest = name.partition(".")
        place = f"sam.{CROSSED.get(part, part)}.{rest}"
        if scale := re.fullmatch(r"(.*\.transformer)\.layers\.(\d+)\.lora_sim_scale", place):
            converted[f"{scale[1]}.relation_scales.{scale[2]}"] = value
            continue
        layer, _, factor = place.rpartition(".")
        if layer.endswith(".attn.qkv"):
            for projection, half in zip(("q_proj", "v_proj"), value.chunk(2), strict=True):
                converted[f"{layer.removesuffix('qkv')}{projection}.{factor}.default.weight"] = half.clone()
        else:
            converted[f"{layer}.{factor}.default.weight"] = value
    return converted


def _check_pretrained(path: Path, state: Mapping[str, Tensor], sam: Sam) -> None:
    """Raise `InputError` unless both of their decoders hold `sam`'s decoder weights, and the rest is `sam`'s too."""
    expected = sam.state_dict()
    adapted = {name.rpartition(".")[0] for name in state if name.endswith(".lora_A")}
    different, merged = [], True
    for name, value in split_qkv({name: value for name, value in state.items() if "lora_" not in name}).items():
        ours = expected.get(name.replace("draft_decoder.", "mask_decoder."))
        if ours is None or (ours.shape == value.shape and torch.allclose(ours, value.to(ours), rtol=0, atol=ROUNDING)):
            continue
        different.append(name)
        layer = name.rpartition(".")[0]
        merged &= not adapted.isdisjoint((layer, re.sub(r"\.[qv]_proj$", ".qkv", layer)))
    if different and merged:
        raise InputError(
            f"{path} has LoRA added to {different[0]} ({len(different)} such) and once more beside it: save it in "
            "training mode, model.train(), where loralib takes it off"
        )
    if different:
        raise InputError(f"{path} was tuned on other weights than these of {sam.backbone}: {different[0]} differs")
