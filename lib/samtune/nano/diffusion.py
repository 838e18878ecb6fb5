"""Training of the nano diffusion pipeline: autoencoder, U-Net with captions, mask ControlNet, then the decoder again.

    python -m samtune.nano.diffusion --stage autoencoder --steps 20000 --out DIR [--device cuda]

Each stage resumes where it stopped and needs the earlier stages. With every checkpoint it writes its averaged weights
to `DIR/pipeline` (diffusers' folder format, fp16). Schedules depend on steps, not on time, and random numbers on
(stage, step), so that a run that is killed and resumed ends with the same weights.
"""

import copy
import io
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from monai.losses import SSIMLoss
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from samtune.common.atomic import write_atomically
from samtune.common.errors import InputError, unknown
from samtune.common.provenance import hardware
from samtune.nano.diffusion_models import (
    new_autoencoder,
    new_controlnet,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    save_pipeline,
)
from samtune.nano.diffusion_pictures import Pictures, random_views, read_pictures, whole_views, write_pictures

KL_WEIGHT, SSIM_WEIGHT = 1e-3, 0.1
DROPPED_CAPTIONS = 0.1  # so that the empty caption stands for guidance's unconditional branch
WARM_UP_STEPS = 200
AVERAGE = 0.999  # decay of the averaged weights, reached slowly


@dataclass(frozen=True)
class Batch:
    """Training images.

    Fields:
        images: float32 `(B, 3, 128, 128)` in [-1, 1].
        conditions: colour-coded masks, float32 `(B, 3, 128, 128)` in [0, 1].
        captions: B texts.
    """

    images: Tensor
    conditions: Tensor
    captions: Sequence[str]


class Stage(ABC):
    """Base of the stages: `trained` has the parts that it trains, by the names of their folders
    in the pipeline.
    """

    learning_rate: float
    batch_size: int

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.trained = nn.ModuleDict()

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The training loss, float32; random numbers come from `generator` (on the CPU)."""

    @abstractmethod
    def scores(self, pictures: Pictures) -> dict[str, float]:
        """Scores on the validation images, by name."""

    def autocast(self) -> AbstractContextManager:
        """bfloat16 on CUDA, float32 elsewhere."""
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.device.startswith("cuda"))

    def part(self, kind: type, name: str, needs: str) -> nn.Module:
        """A part that an earlier stage trained: frozen, float32. Raises `InputError` when it is not there."""
        if not (self.folder / name).is_dir():
            raise InputError(f"no {name} in {self.folder}: train stage {needs} first")
        return kind.from_pretrained(self.folder, subfolder=name).float().to(self.device).eval().requires_grad_(False)


class AutoencoderStage(Stage):
    """AutoencoderKL, trained with L1 + SSIM + a small KL term, without a discriminator."""

    learning_rate, batch_size = 1e-3, 16

    def __init__(self, folder: Path, device: str, captions: Sequence[str]) -> None:
        super().__init__(folder, device)
        self.trained["vae"] = new_autoencoder()
        self.ssim = SSIMLoss(spatial_dims=2, data_range=2.0)  # images span [-1, 1]

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        vae = self.trained["vae"]
        with self.autocast():
            posterior = vae.encode(batch.images).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample
        decoded, mean, logvar = decoded.float(), posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()  # a latent value, not a picture
        reconstruction = F.l1_loss(decoded, batch.images) + SSIM_WEIGHT * self.ssim(decoded, batch.images)
        return reconstruction + KL_WEIGHT * divergence

    @torch.no_grad()
    def scores(self, pictures: Pictures) -> dict[str, float]:
        """PSNR in dB of reconstructions from the mean latent, mean over the images of each set.

        It also sets the autoencoder's `scaling_factor` to 1 / standard deviation of the latents.
        """
        vae, errors, latents = self.trained["vae"], [], []
        images, _ = whole_views(pictures)
        for part in images.to(self.device).split(self.batch_size):
            latents.append(vae.encode(part).latent_dist.mean)
            decoded = vae.decode(latents[-1]).sample.clamp(-1, 1)
            errors.append((decoded - part).square().mean((1, 2, 3)))
        vae.register_to_config(scaling_factor=1 / torch.cat(latents).std().item())
        psnr = -10 * (torch.cat(errors) / 4).log10().cpu().numpy()  # values span 2
        sets = np.array(pictures.sets)
        return {f"psnr {name}": float(psnr[sets == name].mean()) for name in dict.fromkeys(pictures.sets)}


class NoiseStage(Stage, ABC):
    """What U-Net and ControlNet share: the loss is the mean squared error of the noise predicted in the latents."""

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__(folder, device)
        self.vae = self.part(AutoencoderKL, "vae", "autoencoder")
        self.scheduler = new_scheduler()

    @abstractmethod
    def predict(self, latents: Tensor, timesteps: Tensor, batch: Batch, captions: Sequence[str]) -> Tensor:
        """The noise in `latents (B, 4, 32, 32)` at `timesteps (B,)`, of the same shape."""

    def embed(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, captions: Sequence[str]) -> Tensor:
        """Embeddings of B captions, `(B, T, C)`."""
        tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text_encoder(tokens.to(self.device))[0]

    def errors(self, batch: Batch, captions: Sequence[str], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise, `(B,)`, at `timesteps` int64 `(B,)`."""
        with torch.no_grad(), self.autocast():
            latents = self.vae.encode(batch.images).latent_dist.sample(generator).float()
        latents = latents * self.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        timesteps = timesteps.to(self.device)
        with self.autocast():
            predicted = self.predict(self.scheduler.add_noise(latents, noise, timesteps), timesteps, batch, captions)
        return F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        count = len(batch.captions)
        dropped = (torch.rand(count, generator=generator) < DROPPED_CAPTIONS).tolist()
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch.captions, strict=True)]
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)
        return self.errors(batch, captions, timesteps, generator).mean()

    @torch.no_grad()
    def scores(self, pictures: Pictures) -> dict[str, float]:
        """The mean error on the validation images, always with the same noise and timesteps."""
        images, conditions = whole_views(pictures)
        total = self.scheduler.config.num_train_timesteps
        timesteps = torch.arange(len(pictures)) * 37 % 50 * (total // 50) + total // 100  # spread evenly
        generator = torch.Generator().manual_seed(0)
        errors = []
        for rows in torch.arange(len(pictures)).split(self.batch_size):
            captions = [pictures.captions[row] for row in rows]
            batch = Batch(images[rows].to(self.device), conditions[rows].to(self.device), captions)
            errors.append(self.errors(batch, captions, timesteps[rows], generator))
        return {"noise error": torch.cat(errors).mean().item()}


class UNetStage(NoiseStage):
    """The U-Net and its text encoder. One caption in ten is replaced by "", for classifier-free guidance."""

    learning_rate, batch_size = 5e-4, 32

    def __init__(self, folder: Path, device: str, captions: Sequence[str]) -> None:
        super().__init__(folder, device)
        if not (folder / "tokenizer").is_dir():
            new_tokenizer(captions).save_pretrained(folder / "tokenizer")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
        self.trained["unet"] = new_unet()
        self.trained["text_encoder"] = new_text_encoder(self.tokenizer)

    def predict(self, latents: Tensor, timesteps: Tensor, batch: Batch, captions: Sequence[str]) -> Tensor:
        text = self.embed(self.tokenizer, self.trained["text_encoder"], captions)
        return self.trained["unet"](latents, timesteps, text).sample


class ControlNetStage(NoiseStage):
    """The mask ControlNet on the frozen U-Net. It starts from the U-Net's encoder."""

    learning_rate, batch_size = 5e-4, 32

    def __init__(self, folder: Path, device: str, captions: Sequence[str]) -> None:
        super().__init__(folder, device)
        self.unet = self.part(UNet2DConditionModel, "unet", "unet")
        self.text_encoder = self.part(CLIPTextModel, "text_encoder", "unet")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        self.trained["controlnet"] = new_controlnet(self.unet).requires_grad_(True)

    def predict(self, latents: Tensor, timesteps: Tensor, batch: Batch, captions: Sequence[str]) -> Tensor:
        with torch.no_grad():
            text = self.embed(self.tokenizer, self.text_encoder, captions)
        down, middle = self.trained["controlnet"](latents, timesteps, text, batch.conditions, return_dict=False)
        return self.unet(
            latents, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample


class DecoderStage(AutoencoderStage):
    """The autoencoder's decoder alone, by squared error from the mean latents, as Stable Diffusion's ft-MSE decoder.

    Latents do not change, so that a U-Net that was trained before stays right.
    """

    learning_rate = 5e-4

    def __init__(self, folder: Path, device: str, captions: Sequence[str]) -> None:
        super().__init__(folder, device, captions)
        vae = self.trained["vae"]
        vae.load_state_dict(self.part(AutoencoderKL, "vae", "autoencoder").state_dict())
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        vae = self.trained["vae"]
        with self.autocast():
            decoded = vae.decode(vae.encode(batch.images).latent_dist.mode()).sample
        return F.mse_loss(decoded.float(), batch.images)


STAGES = {"autoencoder": AutoencoderStage, "unet": UNetStage, "controlnet": ControlNetStage, "decoder": DecoderStage}


def train_stage(
    name: str,
    pictures: dict[str, Pictures],
    folder: Path,
    steps: int,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    device: str = "cpu",
    checkpoint_every: int = 200,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a stage; its weights go to `folder/pipeline`.

    Args:
        name: "autoencoder", "unet", "controlnet" or "decoder".
        pictures: {"train", "val"}.
        folder: training resumes from its `<name>.pt`, if there is one.
        steps: in all.
        batch_size: None: the stage's own.
        learning_rate: after warm-up; it then falls to 0 as a half cosine. None: the stage's own.
        device: "cpu", "cuda", ...
        checkpoint_every: steps between two checkpoints.
        progress: show a progress bar.

    Returns {"step", "losses" (one a step), "validation", "seconds"}. Raises `InputError` for an unknown stage or when
    an earlier one is missing, `FloatingPointError` when the loss is infinite or not a number.
    """
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    torch.manual_seed(0)
    stage = STAGES[name](folder / "pipeline", device, pictures["train"].captions)
    stage.trained.to(device).train()
    stage.batch_size = batch_size or stage.batch_size
    parameters = [parameter for parameter in stage.trained.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, learning_rate or stage.learning_rate, betas=(0.9, 0.99))
    schedule = get_cosine_schedule_with_warmup(optimiser, WARM_UP_STEPS, steps)
    average = EMAModel(parameters, AVERAGE, use_ema_warmup=True, foreach=True)
    state = {"step": 0, "losses": [], "validation": [], "seconds": 0.0}
    checkpoint = folder / f"{name}.pt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=False)
        state = saved["state"]
        stage.trained.load_state_dict(saved["trained"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        average.load_state_dict(saved["average"])

    train, started = pictures["train"].to(device), time.time() - state["seconds"]
    first = state["step"]
    bar = tqdm(range(first, steps), name, initial=first, total=steps, disable=not progress, mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(list(STAGES).index(name) * 10**9 + step)
        rows = torch.randint(len(train), (stage.batch_size,), generator=generator)
        batch = Batch(*random_views(train, rows, generator), [train.captions[row] for row in rows])
        loss = stage.loss(batch, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {step} of stage {name}")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        average.step(parameters)

        state["step"], state["seconds"] = step + 1, time.time() - started
        state["losses"].append(loss.item())
        bar.set_postfix(loss=f"{np.mean(state['losses'][-50:]):.4f}")
        if step + 1 == steps or (step + 1) % checkpoint_every == 0:
            average.store(parameters)
            average.copy_to(parameters)
            state["validation"].append({"step": step + 1} | stage.scores(pictures["val"]))
            bar.write(json.dumps(state["validation"][-1]))
            for part, module in stage.trained.items():
                copy.deepcopy(module).half().save_pretrained(stage.folder / part)
            average.restore(parameters)
            everything = {
                "state": state,
                "trained": stage.trained.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "average": average.state_dict(),
            }
            file = io.BytesIO()
            torch.save(everything, file)
            write_atomically(checkpoint, file.getvalue())
            log = {"hardware": hardware(), "batch_size": stage.batch_size, "steps": steps} | state
            write_atomically(folder / f"{name}.json", json.dumps(log).encode())
    if name == "controlnet":
        save_pipeline(stage.folder)
    return state


def main(
    stage: Annotated[str, typer.Option(help=f"{', '.join(STAGES)}, in this order")],
    steps: Annotated[int, typer.Option(help="length of the whole schedule")],
    out: Annotated[Path, typer.Option(help="folder of checkpoints and of the pipeline")],
    pictures: Annotated[Path | None, typer.Option(help="made if missing; OUT/pictures.npz")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    batch_size: Annotated[int | None, typer.Option(help="pictures a step; the stage's own")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="its highest; the stage's own")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="steps between checkpoints, each with validation")] = 200,
) -> None:
    """Train one stage of the nano diffusion pipeline, or go on with it."""
    file = pictures or out / "pictures.npz"
    try:
        if not file.is_file():
            write_pictures(file)
        train_stage(stage, read_pictures(file), out, steps, batch_size, learning_rate, device, checkpoint_every)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
