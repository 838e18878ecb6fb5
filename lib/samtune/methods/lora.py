"""LoRA on SAM, SPT's baseline: low-rank updates of q and v in the encoder and the decoder (Hu et al. 2022, arXiv
2106.09685).

A layer W becomes h = W x + (alpha / rank) B A x (their Eq. (3), with the scale of their section 4.1). A starts
Kaiming-uniform and B at zero, so that at the start the model is SAM itself. peft computes it.
"""

import copy
import re
from types import MappingProxyType

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from samtune.common.errors import InputError, check_range, unknown
from samtune.losses import at_size, dice_loss, samed_loss, squared_dice_loss
from samtune.methods.method import Method
from samtune.sam.build import Sam

ENCODER = r"image_encoder\.blocks\.\d+\.attn\.(q_proj|v_proj)"
MASK_LOSSES = {"samed": samed_loss, "dice": dice_loss, "squared_dice": squared_dice_loss}
DECODER = r"(mask|draft)_decoder\.transformer\..*\.(q_proj|v_proj)"


def add_lora(sam: Sam, rank: int, alpha: float, decoder: bool = True) -> Sam:
    """Add LoRA to q and v of SAM's attentions, in place, in every block of the image encoder; only the updates train.

    Args:
        sam: one with q and v apart in the encoder (ours).
        rank: 1 to 1,024.
        alpha: the updates' scale is alpha / rank; above 0.
        decoder: in all attentions of the mask decoder too, and of SPT's draft decoder.

    Raises `InputError` when rank or alpha is out of range, or SAM's image encoder is no ViT (MobileSAM's).
    """
    check_range("rank", rank, 1, 1024)
    check_range("alpha", alpha, 0, 1e6, above=True)
    if not any(re.fullmatch(ENCODER, name) for name, _ in sam.named_modules()):
        raise InputError(
            "LoRA is for SAM's ViT encoder, and this backbone (MobileSAM's kind) has none: take another backbone, or "
            "decoder_tuning or asam"
        )
    targets = f"{ENCODER}|{DECODER}" if decoder else ENCODER
    # alpha goes in as a float on purpose: SPT's scale is 1/8.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=f"({targets})", lora_dropout=0.0, bias="none")
    return inject_adapter_in_model(config, sam)


def merge_lora(sam: Sam) -> Sam:
    """A copy of `sam` with every update added to its weight, W + (alpha / rank) B A: an ordinary SAM."""
    merged = copy.deepcopy(sam)
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent = merged.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    return merged


class Lora(Method):
    """LoRA on q and v of every attention in encoder and decoder. Default: rank 8 and scale 1/8, as in SPT's release.

    Trainable parameters: ViT-B 342,016, ViT-L 833,536, ViT-H 1,357,824.

    Args:
        sam: changed in place.
        rank: see `add_lora`.
        alpha: see `add_lora`.

    Raises `InputError` when rank or alpha is out of range.
    """

    name = "lora"
    title = "LoRA"
    colour = "#56B4E9"
    frozen_encoder = False
    learning_rate = 1e-3

    def __init__(self, sam: Sam, rank: int = 8, alpha: float = 1.0) -> None:
        super().__init__(sam)
        self.sam = add_lora(self.sam, rank, alpha)

    def merged(self) -> Sam:
        """An ordinary SAM with the updates added to its weights."""
        return merge_lora(self.sam)


class LoraSamed(Method):
    """SAMed (Zhang and Liu 2023): LoRA on q and v of the encoder alone; prompt encoder and mask decoder train as a
    whole.

    SAM-SP builds on it. Trained and used without a prompt. For one kind of object SAM's own mask is the prediction, by
    its sign; SAMed has a mask a class, and takes the likeliest.

    Args:
        sam: changed in place.
        rank: 1 to 1,024.
        alpha: their scale is alpha / rank; None: alpha = rank.
        mask_loss: a name of `MASK_LOSSES`.

    Raises `InputError` on an unknown `mask_loss`, or a number out of range.
    """

    name = "lora_samed"
    title = "LoRA (as SAMed)"
    colour = "#0072B2"
    frozen_encoder = False
    prompts = ("none",)
    epochs = 160  # SAMed's schedule is of 200 epochs and stopped at 160; here it falls to 0 in as many as are trained
    learning_rate = 1e-3
    recipe = MappingProxyType({"optimiser": "adamw", "weight_decay": 0.1, "schedule": "polynomial"})
    options_before = {"mask_loss": "samed"}

    def __init__(self, sam: Sam, rank: int = 4, alpha: float | None = None, mask_loss: str = "samed") -> None:
        super().__init__(sam)
        if mask_loss not in MASK_LOSSES:
            raise unknown("mask loss", mask_loss, MASK_LOSSES)
        self.mask_loss = MASK_LOSSES[mask_loss]
        self.sam = add_lora(self.sam, rank, rank if alpha is None else alpha, decoder=False)
        self.sam.prompt_encoder.requires_grad_(True)
        self.sam.mask_decoder.requires_grad_(True)

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`mask_loss` of the low-resolution logits, mean over prompts; `masks` `(P, 1, H, W)` are averaged to the
        logits' size.
        """
        return self.mask_loss(prediction["final"], at_size(masks, prediction["final"])).mean()

    def merged(self) -> Sam:
        """An ordinary SAM with the updates added to its weights. For SAM-SP it predicts what the first pass does."""
        return merge_lora(self.sam)
