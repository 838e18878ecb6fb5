"""Training of the second victim, `nano_mobile`: a small convolutional encoder distilled on the nano SAM's embeddings.

    python -m samtune.nano.second_victim --steps 2000 --out DIR

As MobileSAM was made (Zhang et al. 2023): squared error to the teacher's embeddings; prompt encoder and mask decoder
are the teacher's own. It goes on where it stopped; every random draw is a function of the step.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tqdm.auto import tqdm

from samtune.common.atomic import write_atomically
from samtune.common.paths import resolve
from samtune.nano.scenes import Picture, picture_bank, training_scene
from samtune.sam.build import Sam, new_sam
from samtune.sam.checkpoints import load_sam, read_tensors, save_safetensors, save_torch
from samtune.sam.preprocess import Preprocess

SETS = ("bsds500", "ccp", "car-parts")  # the nano SAM's own
BATCH, LEARNING_RATE, WARM_UP_STEPS, CHECKPOINT_EVERY = 8, 2e-3, 100, 50
CHECKPOINT, WEIGHTS, CURVE = "second_victim.pt", "nano_mobile.safetensors", "second_victim.json"


def distil(bank: Sequence[Picture], folder: Path, steps: int, progress: bool = True) -> Sam:
    """Train the encoder for `steps` on scenes of `bank`, resuming from `folder`; writes weights and curve there.

    A longer run than before goes on at a learning rate that then falls anew: cosine over all of `steps`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    teacher, student = load_sam("nano").requires_grad_(False), new_sam("nano_mobile")
    student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
    student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
    encoder = student.image_encoder.train()
    optimiser = torch.optim.AdamW(encoder.parameters(), LEARNING_RATE, weight_decay=0.01)
    first, curve = 0, []
    if (folder / CHECKPOINT).is_file():
        saved = read_tensors(folder / CHECKPOINT)
        encoder.load_state_dict(saved["encoder"])
        optimiser.load_state_dict(saved["optimiser"])
        first, curve = saved["step"], saved["curve"]
    started = time.perf_counter()
    square = Preprocess(student.image_size, "stretch")
    for step in tqdm(range(first, steps), "distil", initial=first, total=steps, disable=not progress, mininterval=2):
        rng = np.random.default_rng([7, step])
        scenes = [training_scene(bank, student.image_size, rng)[0] for _ in range(BATCH)]
        images = torch.stack([square.image(scene) for scene in scenes])
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            target = teacher.image_encoder(images)
        loss = (encoder(images) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve.append({"step": step, "loss": round(loss.item(), 5), "variance": round(float(target.var()), 5)})
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            _save(folder, student, optimiser, step + 1, curve)
    if progress:
        print(f"{steps - first} steps in {time.perf_counter() - started:.0f} s: {folder / WEIGHTS}")
    return student.eval()


def _save(folder: Path, student: Sam, optimiser: torch.optim.Optimizer, step: int, curve: list[dict]) -> None:
    state = {"step": step, "encoder": student.image_encoder.state_dict(), "optimiser": optimiser.state_dict()}
    save_torch(state | {"curve": curve}, folder / CHECKPOINT)
    save_safetensors(student.state_dict(), folder / WEIGHTS, torch.float16, {"steps": str(step)})
    write_atomically(folder / CURVE, json.dumps(curve).encode())


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps in all, of 8 pictures.")] = 2000,
    out: Annotated[Path, typer.Option(help="Folder for weights and checkpoint.")] = Path("second_victim"),
) -> None:
    """Distil the nano SAM's image encoder into a small convolutional one."""
    distil(picture_bank(SETS), resolve(out), steps)


if __name__ == "__main__":
    typer.run(main)
