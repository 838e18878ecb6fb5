"""ViT-B at 1024 px from a file in the official format: the kit's predictor against segment_anything's `SamPredictor`.

The slowest file of the tests: each picture is encoded once by segment_anything and once by each attention form.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from torch import Tensor

from samtune.prompts import Prompts
from samtune.sam.attention import set_attention_form
from samtune.sam.checkpoints import load_sam
from samtune.sam.predictor import Predictor
from small_sam import official_twin, small_sam

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


def prompt(kind: str, index: int) -> Prompts:
    """The same for the kit's `predict_batch`."""
    given = {name: torch.from_numpy(value)[None] for name, value in arguments(kind, PICTURES[index]).items()}
    masks = given.get("mask_input")
    return Prompts(
        torch.tensor([index]),
        boxes=given["box"].float() if "box" in given else None,
        points=given["point_coords"].float() if "point_coords" in given else None,
        labels=given.get("point_labels"),
        masks=masks,
    )


@dataclass
class Answers:
    """By (kind, picture, multimask): logits at the original size, predicted IoU, low-resolution logits; embeddings."""

    of_prompts: dict[tuple[str, int, bool], tuple[np.ndarray, np.ndarray, np.ndarray]]
    embeddings: list[Tensor]


@dataclass
class Three:
    """segment_anything's answers, the kit's through `SamPredictor`'s interface, and the kit's for both at once."""

    official: Answers
    explicit: Answers
    together: Answers


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
    predictor = Predictor(sam)
    set_attention_form(sam.image_encoder, "explicit")
    explicit = one_by_one(predictor, PICTURES[:1])
    set_attention_form(sam.image_encoder, "auto")
    predictor.set_images(PICTURES)
    together = Answers({}, list(predictor._batch[0].split(1)))
    for kind in KINDS:
        for multimask in (False, True):
            prompts = Prompts.concatenate([prompt(kind, 1), prompt(kind, 0), prompt(kind, 1)])
            second, first, again = predictor.predict_batch(prompts, multimask, return_logits=True)
            assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(second, again, strict=True))
            together.of_prompts |= {(kind, 0, multimask): first, (kind, 1, multimask): second}
    return Three(official, explicit, together)


@pytest.mark.parametrize("kind", KINDS)
def test_explicit_attention_is_bit_equal_through_sam_predictors_interface(three: Three, kind: str) -> None:
    assert torch.equal(three.explicit.embeddings[0], three.official.embeddings[0])
    for multimask in (False, True):
        found, expected = (part.of_prompts[kind, 0, multimask] for part in (three.explicit, three.official))
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_several_pictures_at_once_give_segment_anythings_logits_and_masks(three: Three, kind: str) -> None:
    for index, image in enumerate(PICTURES):
        assert (three.together.embeddings[index] - three.official.embeddings[index]).abs().max() < 1e-3
        for multimask in (False, True):
            found = three.together.of_prompts[kind, index, multimask]
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


def test_masks_are_the_logits_above_the_threshold() -> None:
    predictor = Predictor(small_sam())
    predictor.set_images(PICTURES)
    prompts = Prompts.concatenate([prompt("box+point", 1), prompt("box+point", 0)])
    masks, logits = predictor.predict_batch(prompts), predictor.predict_batch(prompts, return_logits=True)
    for (mask, *rest), (logit, *others), index in zip(masks, logits, (1, 0), strict=True):
        assert mask.dtype == bool and mask.shape == (1, *PICTURES[index].shape[:2])
        assert np.array_equal(mask, logit > 0)
        assert all(np.array_equal(one, other) for one, other in zip(rest, others, strict=True))


def test_prompts_for_one_of_several_pictures() -> None:
    sam = small_sam()
    predictor, official = Predictor(sam), SamPredictor(official_twin(sam))
    predictor.set_images(PICTURES)
    official.set_image(PICTURES[1])
    found = predictor.predict_batch(prompt("box", 1), multimask_output=True, return_logits=True)
    expected = official.predict(**arguments("box", PICTURES[1]), multimask_output=True, return_logits=True)
    assert len(found) == 1
    assert all(np.abs(one - other).max() < 1e-4 for one, other in zip(found[0], expected, strict=True))


def test_prediction_before_any_picture_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match="set_images"):
        Predictor(small_sam()).predict_batch(prompt("box", 0))
