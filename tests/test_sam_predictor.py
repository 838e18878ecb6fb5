"""ViT-B at 1024 px from a file in the official format: segment_anything's `SamPredictor` on its own Sam and on ours.

The slowest file of the tests: pictures are encoded by segment_anything and by each attention form.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from torch import Tensor

from samtune.sam.attention import set_attention_form
from samtune.sam.checkpoints import load_sam

KINDS = ("box", "point", "points", "mask", "box+point+mask")


def random_state() -> dict[str, Tensor]:
    """Random values for every tensor of ViT-B's state dict, none of them zero (fresh positions and biases would be)."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in sam_model_registry["vit_b"]().state_dict().items()}
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            value = 0.1 * value + (1.0 if name.endswith("weight") else 0.0)  # norms, biases
        elif not any(
            part in name for part in ("pos_embed", "iou_token", "mask_tokens", "point_", "no_mask", "gaussian")
        ):
            value /= (value.numel() / shape[0]) ** 0.5
        if "output_hypernetworks_mlps" in name and ".layers.2." in name:
            value *= 2  # logits of more than a unit
        state[name] = value
    return state


def picture(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


PICTURES = [picture(120, 160, 0), picture(150, 100, 1)]


def arguments(kind: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """What `SamPredictor.predict` is given for a prompt of `kind`, in pixels of the picture."""
    height, width = image.shape[:2]
    given: dict[str, np.ndarray] = {}
    if "box" in kind:
        given["box"] = np.array([0.2 * width, 0.1 * height, 0.7 * width, 0.85 * height])
    if "point" in kind:
        points = np.array([[0.5, 0.5], [0.3, 0.6], [0.9, 0.1]])[: 3 if kind == "points" else 1]
        given |= {"point_coords": points * [width, height], "point_labels": np.array([1, 1, 0])[: len(points)]}
    if "mask" in kind:
        y, x = np.mgrid[:256, :256]
        given["mask_input"] = (8 * np.sin(x / 20) * np.cos(y / 30)).astype(np.float32)[None]
    return given


@dataclass
class Answers:
    """By (kind, picture, multimask): logits at the original size, predicted IoU, low-resolution logits; embeddings."""

    of_prompts: dict[tuple[str, int, bool], tuple[np.ndarray, np.ndarray, np.ndarray]]
    embeddings: list[Tensor]


@dataclass
class Three:
    """`SamPredictor`'s answers on segment_anything's Sam, on ours with segment_anything's attention, and as it is."""

    official: Answers
    explicit: Answers
    ours: Answers


def one_by_one(predictor: SamPredictor, pictures: list[np.ndarray]) -> Answers:
    answers = Answers({}, [])
    for index, image in enumerate(pictures):
        predictor.set_image(image)
        answers.embeddings.append(predictor.get_image_embedding())
        for kind in KINDS:
            for multimask in (False, True):
                answers.of_prompts[kind, index, multimask] = predictor.predict(
                    **arguments(kind, image), multimask_output=multimask, return_logits=True
                )
    return answers


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Three:
    path: Path = tmp_path_factory.mktemp("checkpoints") / "vit_b.pth"
    torch.save(random_state(), path)
    official = one_by_one(SamPredictor(sam_model_registry["vit_b"](checkpoint=path).eval()), PICTURES)
    sam = load_sam("vit_b", path)
    path.unlink()
    set_attention_form(sam.image_encoder, "explicit")
    explicit = one_by_one(SamPredictor(sam), PICTURES[:1])
    set_attention_form(sam.image_encoder, "auto")
    return Three(official, explicit, one_by_one(SamPredictor(sam), PICTURES))


@pytest.mark.parametrize("kind", KINDS)
def test_explicit_attention_is_bit_equal(three: Three, kind: str) -> None:
    assert torch.equal(three.explicit.embeddings[0], three.official.embeddings[0])
    for multimask in (False, True):
        found, expected = (part.of_prompts[kind, 0, multimask] for part in (three.explicit, three.official))
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_our_attention_gives_segment_anythings_logits_and_masks(three: Three, kind: str) -> None:
    for index, image in enumerate(PICTURES):
        assert (three.ours.embeddings[index] - three.official.embeddings[index]).abs().max() < 1e-3
        for multimask in (False, True):
            found = three.ours.of_prompts[kind, index, multimask]
            expected = three.official.of_prompts[kind, index, multimask]
            assert found[0].shape == (3 if multimask else 1, *image.shape[:2])
            for one, other in zip(found, expected, strict=True):
                assert one.shape == other.shape and np.abs(one - other).max() < 1e-3
            masks = expected[0] > 0
            assert ((found[0] > 0) == masks)[np.abs(expected[0]) > 1e-3].all()
            assert expected[0].std() > 0.5  # random weights, but the logits are of a real size


def test_random_weights_tell_prompts_and_pictures_apart(three: Three) -> None:
    logits = three.official.of_prompts
    assert 0.02 < np.mean([(value[0] > 0).mean() for value in logits.values()]) < 0.98
    assert np.abs(logits["box", 0, False][2] - logits["point", 0, False][2]).max() > 0.1
    assert np.abs(logits["box", 0, False][2] - logits["box", 1, False][2]).max() > 0.1
