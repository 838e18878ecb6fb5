"""The nano diffusion pipeline on a card: training of every stage, inversion, attack. Without a card: on the CPU."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from samtune.diffusion.attack import AttackConfig, attack
from samtune.diffusion.inversion import RECIPES, denoise, invert
from samtune.diffusion.pipeline import load_diffusion
from samtune.methods import build_method
from samtune.nano.diffusion import STAGES, train_stage
from samtune.nano.diffusion_pictures import Pictures, whole_views
from samtune.prompts import Prompts
from small_sam import small_sam

DEVICE = os.environ.get("SAMTUNE_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.gpu


def pictures(size: int) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    objects = torch.zeros(2, size, size, dtype=torch.uint8)
    objects[:, 20:90, 20:90] = 1
    return Pictures(images, objects, ["a photograph of hair", "a photograph"], ["noise", "noise"])


def test_from_training_to_attack(tmp_path: Path) -> None:
    for stage in STAGES:
        for steps in (1, 2):  # the second goes on from the first
            state = train_stage(stage, {"train": pictures(160), "val": pictures(128)}, tmp_path, steps, 2,
                                device=DEVICE, progress=False)  # fmt: skip
        assert state["step"] == 2 and np.isfinite(state["losses"]).all()

    model = load_diffusion(str(tmp_path / "pipeline")).to(DEVICE)
    signed, condition = (views.to(DEVICE) for views in whole_views(pictures(128)))
    images, start = signed / 2 + 0.5, model.encode(signed / 2 + 0.5)
    text, empty = model.embed(["a photograph of hair", "a photograph"]), model.embed(["", ""])
    victim = build_method("zero_shot", small_sam()).to(DEVICE).eval()
    prompts = Prompts(torch.tensor([0, 1]), boxes=torch.tensor([[10.0, 10, 45, 45]]).repeat(2, 1)).to(DEVICE)
    masks = (pictures(128).objects[:, None] == 1).float().to(DEVICE)
    for recipe in RECIPES:
        latents, plan = invert(model, start, text, empty, condition, recipe, steps=2)
        assert torch.isfinite(denoise(model, latents, plan)).all()
        result = attack(model, victim, latents, plan, images, prompts, masks, AttackConfig(steps=1, last_steps=1))
        assert result.worst.device.type == torch.device(DEVICE).type and torch.isfinite(result.iou).all()
