"""A latent diffusion pipeline of random weights, small enough for tests, as a folder in diffusers' format."""

from pathlib import Path

import torch

from samtune.nano import diffusion_models
from samtune.nano.diffusion_models import (
    new_autoencoder,
    new_controlnet,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
)

SMALL = {"IMAGE_SIZE": 32, "LATENT_SIZE": 8, "UNET_WIDTHS": (16, 16, 16)}


def save_tiny_diffusion(folder: Path) -> Path:
    """Write the pipeline (pictures of 32 pixels) to `folder`; the ControlNet's zero convolutions are filled too."""
    usual = {name: getattr(diffusion_models, name) for name in SMALL}
    try:
        for name, value in SMALL.items():
            setattr(diffusion_models, name, value)
        torch.manual_seed(0)
        unet, tokenizer = new_unet(), new_tokenizer(["a photograph of dress, hair and shoes"])
        controlnet = new_controlnet(unet)
        with torch.no_grad():
            for parameter in controlnet.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        parts = {
            "vae": new_autoencoder(), "unet": unet, "text_encoder": new_text_encoder(tokenizer),
            "tokenizer": tokenizer, "scheduler": new_scheduler(), "controlnet": controlnet,
        }  # fmt: skip
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    finally:
        for name, value in usual.items():
            setattr(diffusion_models, name, value)
    return folder
