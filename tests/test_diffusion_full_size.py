"""Inversion, null-text optimisation and attack at Stable Diffusion 1.5's own size, with random weights: does it run?

Off by default: `pytest -m slow tests/test_diffusion_full_size.py`.
"""

import resource
import time
from functools import partial

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from samtune.data.registry import open_dataset
from samtune.diffusion import inversion
from samtune.diffusion.generation import attacked, inverted, scene
from samtune.diffusion.pipeline import LatentDiffusion, new_diffusion
from samtune.methods import build_method
from samtune.nano.diffusion_models import new_tokenizer
from samtune.sam.build import new_sam


def stable_diffusion() -> LatentDiffusion:
    """Stable Diffusion 1.5 with a ControlNet, by its public configuration: 1.4 billion random parameters, float32."""
    torch.manual_seed(0)
    model = new_diffusion()
    model.text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
        )
    )
    model.tokenizer = new_tokenizer(["a photograph of dress, hair and shoes"])
    model.tokenizer.model_max_length = 77
    return model.eval()


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_the_whole_path_at_stable_diffusions_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 denoising, 1 null-text and 1 attack step."""
    started = time.perf_counter()
    model = stable_diffusion()
    sizes = {name: sum(one.numel() for one in part.parameters()) for name, part in model.named_children()}
    assert sizes == {
        "vae": 83_653_863, "unet": 859_520_964, "text_encoder": 123_060_480, "controlnet": 361_279_120,
    }  # fmt: skip
    assert model.image_size == 512
    dataset = open_dataset("synthetic-natural")
    sample = dataset.load(dataset.ids("train")[0])
    given = scene(model, [sample], {}, "cpu")
    monkeypatch.setattr(inversion, "null_text", partial(inversion.null_text, inner_steps=1))
    (start,) = inverted(model, given, {"recipe": "null_text", "steps": 2})
    assert start.image.shape == (512, 512, 3) and start.tensors["unconditional"].shape == (2, 77, 768)
    assert not torch.equal(*start.tensors["unconditional"])  # each step has optimised its own
    victim = build_method("zero_shot", new_sam("nano")).eval()
    stored = [(start.tensors, start.numbers)]
    (made,) = attacked(model, victim, given, stored, {"steps": 2}, "attack", {"steps": 1}, "box", 0)
    moved = (made.tensors["latents"] - start.tensors["latents"]).abs()
    assert torch.isfinite(moved).all() and (moved <= 0.02 + 1e-6).all()
    # Inversion: 2; null-text, each step: the caption, one update, one more; attack: two renderings of 2 guided steps.
    assert start.numbers["final"]["evaluations"] == 2 + 2 * 3
    assert made.numbers["final"]["evaluations"] == 2 + 2 * 3 + 2 * 2 * 2
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - started:.0f} s, {memory:.1f} GiB, {made.numbers}")
    assert memory < 16
