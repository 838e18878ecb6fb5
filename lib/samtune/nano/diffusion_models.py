"""The nano diffusion pipeline: Stable Diffusion 1.5's own classes in small sizes, in diffusers' folder format.

Its images have 128 pixels, half of the nano SAM's 256, as Stable Diffusion's 512 are half of SAM's 1,024. The
autoencoder shrinks them by 4, not by 8, so that latents still have 32 x 32 values.
"""

from collections.abc import Sequence
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

IMAGE_SIZE = 128
LATENT_SIZE = 32
AUTOENCODER_WIDTHS = (16, 32, 64)  # narrow at full resolution, where a CPU spends its time
UNET_WIDTHS = (64, 128, 192)  # at 32, 16 and 8; attention at 16 and 8
CONDITION_WIDTHS = (16, 32, 64)  # one stride of 2 between neighbours: factor 4, as the autoencoder's
TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH, VOCABULARY = 128, 2, 32, 1024


def new_autoencoder() -> AutoencoderKL:
    """Images `(B, 3, 128, 128)` in [-1, 1] -> latents `(B, 4, 32, 32)`; training sets its `scaling_factor`."""
    levels = len(AUTOENCODER_WIDTHS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=AUTOENCODER_WIDTHS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def new_unet() -> UNet2DConditionModel:
    """Predicts the noise in latents `(B, 4, 32, 32)`, conditioned on embedded captions `(B, T, 128)`."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_WIDTHS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads it as the number of heads, in Stable Diffusion 1.5 too
        norm_num_groups=16,
    )


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet that starts as the U-Net's encoder. Its condition is an image `(B, 3, 128, 128)` in [0, 1].

    The condition's convolutions start by He et al. (2015), the last one too: by diffusers' own start another mask still
    changed the outputs by less than 0.3% after 300 steps. The zero convolutions after the blocks still make the
    untrained ControlNet do nothing.
    """
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITION_WIDTHS)
    embedding = controlnet.controlnet_cond_embedding
    for convolution in (embedding.conv_in, *embedding.blocks, embedding.conv_out):
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
    return controlnet


def new_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """CLIP's byte-pair encoding trained on `captions`: at most `VOCABULARY` tokens, texts of `TEXT_LENGTH` tokens."""
    trained = CLIPTokenizer(model_max_length=TEXT_LENGTH).train_new_from_iterator(captions, VOCABULARY)
    trained.model_max_length = TEXT_LENGTH
    return trained


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text model for that tokenizer. It is trained with the U-Net, not on image-text pairs as CLIP was."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_scheduler() -> DDIMScheduler:
    """ASAM's DDIM scheduler: with 50 steps the timesteps are 980, 960 ... 0; nothing is clipped.

    The last step ends at the first value of the schedule's abar, not at 1.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0,
    )


def save_pipeline(folder: Path) -> None:
    """Write `model_index.json` for the parts already in `folder`, so that diffusers' own pipeline can open it."""
    pipeline = StableDiffusionControlNetPipeline(
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        controlnet=ControlNetModel.from_pretrained(folder, subfolder="controlnet"),
        scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_config(folder)
