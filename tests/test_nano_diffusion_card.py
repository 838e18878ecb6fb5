"""The nano diffusion pipeline's card: what it measures, what it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from samtune.common.errors import InputError
from samtune.common.paths import asset
from samtune.diffusion.pipeline import NANO, load_diffusion
from samtune.methods import build_method
from samtune.nano import diffusion_card
from samtune.nano.diffusion import STAGES
from samtune.nano.diffusion_card import GUIDED_MASKS, SAMPLES, WITHOUT
from samtune.nano.diffusion_pictures import Pictures
from small_sam import small_sam
from tiny_diffusion import save_tiny_diffusion

LOG = {"step": 60, "steps": 80, "batch_size": 4, "seconds": 90.0, "hardware": "a machine", "losses": [0.5] * 60}
SCORES = {SAMPLES: 0.5, GUIDED_MASKS: 0.54, WITHOUT: 0.45}


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Five of two sets; the second shows nothing, the third a speck only."""
    size = load_diffusion(str(save_tiny_diffusion(tmp_path / "tiny"))).image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8, generator=generator)
    objects = torch.zeros(5, size, size, dtype=torch.uint8)
    objects[[0, 3, 4], 4:20, 4:20] = 1
    objects[2, 0, 0] = 1
    return Pictures(images, objects, ["a hair"] * 5, ["one", "one", "one", "two", "two"])


def test_pictures_without_a_large_object_are_not_scored(pictures: Pictures) -> None:
    kept = diffusion_card.some_of_each(pictures, 1)
    assert kept.sets == ["one", "two"] and torch.equal(kept.images, pictures.images[[0, 3]])
    assert len(diffusion_card.some_of_each(pictures, 9)) == 3


def test_box_ious_of_a_victim_that_sees_the_boxes_alone(pictures: Pictures, tmp_path: Path) -> None:
    model = load_diffusion(str(tmp_path / "tiny"))
    victim = build_method("zero_shot", small_sam()).eval()
    kept = diffusion_card.some_of_each(pictures, 9)
    found = diffusion_card.box_ious(model, victim, kept, steps=1)
    assert set(found) == {"pictures", "reconstructions", *SCORES}
    assert all(0 <= value <= 1 for value in found.values())

    class Seer:
        image_size = victim.image_size

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def decode(self, embedding: torch.Tensor, prompts) -> dict[str, torch.Tensor]:
            logits = torch.full((len(prompts), 1, self.image_size, self.image_size), -1.0)
            for one, (left, top, right, bottom) in zip(logits, prompts.boxes.round().int().tolist(), strict=True):
                one[0, top:bottom, left:right] = 1
            return {"final": logits}

    assert np.allclose(list(diffusion_card.box_ious(model, Seer(), kept, steps=1).values()), 1, atol=0.15)


def test_the_card_says_how_far_every_stage_came(tmp_path: Path) -> None:
    logs = {stage: LOG | {"validation": [{"step": 60, "noise error": 0.25}]} for stage in STAGES}
    logs["autoencoder"]["validation"] = [{"step": 60, "psnr here": 24.5}]
    text = diffusion_card.card_text(logs, SCORES)
    assert "**Samples do not follow the masks yet**: the ControlNet brings +0.090 with its masks guided" in text
    assert "+0.050 with them in both" in text and "not follow" not in diffusion_card.card_text(
        logs, SCORES | {GUIDED_MASKS: 0.56}
    )
    assert "60 of 80" in text and "psnr here 24.50 dB" in text and "| samples | 0.500 |" in text
    figure = diffusion_card.learning_curve(logs)
    assert [axis.get_title(loc="left") for axis in figure.axes[: len(STAGES)]] == list(STAGES)


def test_a_stage_that_was_not_trained_anew_keeps_its_log(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, work = tmp_path / "shipped", tmp_path / "work"
    shipped.mkdir()
    (shipped / "model_index.json").write_text("{}")
    (work / "pipeline").mkdir(parents=True)
    log = LOG | {"validation": [{"step": 60, "psnr here": 24.5, "noise error": 0.25}]}
    (work / "controlnet.json").write_text(json.dumps(log | {"step": 77}))
    monkeypatch.setattr(diffusion_card, "asset", lambda name: shipped)
    monkeypatch.setattr(diffusion_card, "load_diffusion", lambda name: None)
    monkeypatch.setattr(diffusion_card, "load_sam", lambda name: small_sam())
    monkeypatch.setattr(diffusion_card, "box_ious", lambda model, victim, pictures: SCORES)
    with pytest.raises(InputError, match=r"autoencoder\.json, and none of an earlier one: train stage autoencoder"):
        diffusion_card.ship_diffusion(work, pictures)
    assert (shipped / "model_index.json").is_file()  # nothing is lost
    (shipped / diffusion_card.LOGS).write_text(json.dumps(dict.fromkeys(STAGES, log)))
    diffusion_card.ship_diffusion(work, pictures)
    steps = {stage: one["step"] for stage, one in json.loads((shipped / diffusion_card.LOGS).read_text()).items()}
    assert steps == dict.fromkeys(STAGES, 60) | {"controlnet": 77}


def test_the_shipped_card_and_its_logs_belong_together() -> None:
    text, figure = diffusion_card.shipped_card()
    assert "The learning curve: below." in text and len(figure.axes) >= len(STAGES)
    logs = json.loads((asset(NANO) / diffusion_card.LOGS).read_text())
    assert all(f"| {stage} | {log['step']:,} of {log['steps']:,} |" in text for stage, log in logs.items())
