"""A latent diffusion model with a mask ControlNet, all parts by diffusers: Stable Diffusion 1.5 or the nano one.

ASAM (CVPR 2024) projects a picture into such a model's latents and perturbs it there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from samtune.common.errors import InputError, first_line
from samtune.common.paths import asset, checkpoint_root, is_offline, resolve
from samtune.diffusion.conditions import asam_colour_coded, colour_coded
from samtune.sam.checkpoints import load_strictly, read_state

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
NANO = "assets/nano_diffusion"
CHECKPOINT_SUFFIXES = (".ckpt", ".pth", ".safetensors")
# What ASAM sets, whatever the model's own configuration says (Stable Diffusion 1.5 has steps_offset 1).
SCHEDULE = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 0}


class LatentDiffusion(nn.Module):
    """The frozen parts and what inversion and attack ask of them. Pictures are squares of `image_size` pixels.

    Latents are `(B, 4, h, w)`, scaled by the autoencoder's `scaling_factor`; captions `(B, T, C)` as `embed` gives
    them; conditions colour-coded mask images float32 `(B, 3, S, S)` in [0, 1], or None: the ControlNet is off.
    `mask_image` draws one, by the colours that the ControlNet was trained on.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        scheduler: DDIMScheduler,
        controlnet: ControlNetModel | None = None,
        mask_image: Callable[[np.ndarray, int], np.ndarray] = colour_coded,
    ) -> None:
        super().__init__()
        self.mask_image = mask_image
        self.vae, self.unet, self.text_encoder, self.controlnet = vae, unet, text_encoder, controlnet
        self.tokenizer = tokenizer
        self.scheduler = DDIMScheduler.from_config(scheduler.config, **SCHEDULE)
        self.inverse_scheduler = DDIMInverseScheduler.from_config(self.scheduler.config, **SCHEDULE)
        self.evaluations = 0  # of the noise prediction so far, one a picture
        self.requires_grad_(False).eval()

    @property
    def image_size(self) -> int:
        """Side of the square picture, pixels: 512 for Stable Diffusion 1.5, 128 for the nano model."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images float32 `(B, 3, S, S)` in [0, 1] -> their mean latents."""
        return self.vae.encode(2 * images - 1).latent_dist.mean * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images float32 `(B, 3, S, S)`, around [0, 1] and not clipped; gradients pass."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample / 2 + 0.5

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Captions -> `(B, T, C)`, cut or padded to the text encoder's length."""
        tokens = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(tokens.to(self.text_encoder.device))[0]

    def noise(self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None = None) -> Tensor:
        """The predicted noise in `latents` at `timestep`, a number; gradients pass to latents and text."""
        self.evaluations += len(latents)
        if condition is None or self.controlnet is None:
            return self.unet(latents, timestep, text).sample
        down, middle = self.controlnet(latents, timestep, text, condition, return_dict=False)
        return self.unet(
            latents, timestep, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample


def load_diffusion(source: str = STABLE_DIFFUSION, controlnet: str | None = None) -> LatentDiffusion:
    """The model in `source`, float32, frozen: "nano" (shipped), a folder in diffusers' format, or a hub id.

    `controlnet`: a folder or hub id; or a single file, which is taken for ASAM's authors' (see `read_controlnet`), with
    their colours; None: the `controlnet` folder of `source`, if there is one. All are looked for in the checkpoint
    folder too, by the last part of their name. Raises `InputError` when the files are not there: what to fetch, and
    where to put it.
    """
    place = find_source(source)
    unet = _load(UNet2DConditionModel, place, source, "unet")
    return LatentDiffusion(
        _load(AutoencoderKL, place, source, "vae"),
        unet,
        _load(CLIPTextModel, place, source, "text_encoder"),
        _load(CLIPTokenizer, place, source, "tokenizer"),
        _load(DDIMScheduler, place, source, "scheduler"),
        _find_controlnet(controlnet, place, unet),
        asam_colour_coded if _is_single_file(controlnet) else colour_coded,
    )


def new_diffusion() -> LatentDiffusion:
    """A model of Stable Diffusion 1.5's sizes, with random weights and without a text encoder: to time it."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the rest are diffusers' defaults
    widths = (128, 256, 512, 512)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        sample_size=512,
    )
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return LatentDiffusion(vae, unet, None, None, schedule, ControlNetModel.from_unet(unet))


def find_source(source: str) -> str | Path:
    """The folder of `source` (or a ControlNet's single file) where it is on this machine, else the hub id that it must
    be.
    """
    if source == "nano":
        return asset(NANO)
    for place in (resolve(source), checkpoint_root() / source.rpartition("/")[2]):
        if place.is_dir() or _is_single_file(source) and place.is_file():
            return place
    return source


def _find_controlnet(name: str | None, place: str | Path, unet: UNet2DConditionModel) -> ControlNetModel | None:
    if name is None:
        inside = isinstance(place, Path) and (place / "controlnet").is_dir()
        return _load(ControlNetModel, place, str(place), "controlnet") if inside else None
    if _is_single_file(name):
        if isinstance(path := find_source(name), Path):
            return read_controlnet(path, unet)
        by_hand = checkpoint_root() / name.rpartition("/")[2]
        raise InputError(f"no mask ControlNet at {by_hand}: fetch {name} and put it there")
    controlnet = _load(ControlNetModel, find_source(name), name)
    for size in ("in_channels", "block_out_channels", "cross_attention_dim"):
        if (own := controlnet.config[size]) != (wanted := unet.config[size]):
            raise InputError(f"{name} does not fit the diffusion model: its {size} is {own}, not {wanted}")
    return controlnet


def _is_single_file(controlnet: str | None) -> bool:
    return (controlnet or "").endswith(CHECKPOINT_SUFFIXES)


def _load(kind: type, place: str | Path, source: str, part: str | None = None) -> Any:
    """`kind.from_pretrained`, float32 where it has weights."""
    options = {"local_files_only": isinstance(place, Path) or is_offline()}
    if part:
        options["subfolder"] = part
    if issubclass(kind, nn.Module):
        options |= {"use_safetensors": True, "output_loading_info": True}
    transformers_logging.disable_progress_bar()  # of loading its weights, in the middle of the kit's own messages
    try:
        loaded = kind.from_pretrained(place, **options)
        if isinstance(loaded, tuple):
            loaded, found = loaded
            if found["missing_keys"]:  # else they would be random
                raise ValueError(f"{sorted(found['missing_keys'])[0]} is missing")
    except (OSError, ValueError, SafetensorError) as error:
        by_hand = checkpoint_root() / source.rpartition("/")[2]
        what = "write the nano model by notebook 90" if source == "nano" else f"fetch {source} and put it at {by_hand}"
        no_folder = isinstance(place, Path) and not place.is_dir()  # diffusers takes it for a hub id, and says so
        reason = "there is no such folder" if no_folder else first_line(error)
        raise InputError(
            f"no {part or 'model'} of {source} in {place} ({reason}): {what}, a folder in diffusers' format with "
            "safetensors (vae, unet, text_encoder, tokenizer, scheduler, and controlnet where there is one)"
        ) from error
    return loaded.float() if isinstance(loaded, nn.Module) else loaded


def read_controlnet(path: Path, unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for `unet` from one file in the layout of the ControlNet authors, as ASAM publishes its own.

    Names such as `control_model.input_blocks.1.0.in_layers.0.weight`, the prefix or not. Raises `InputError` when the
    file cannot be read or does not fit.
    """
    controlnet = ControlNetModel.from_unet(unet)
    state = convert_controlnet_checkpoint(read_state(path), controlnet.config)
    load_strictly(controlnet, {name: value for name, value in state.items() if value is not None}, path)
    return controlnet
