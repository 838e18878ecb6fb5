"""`SamPredictor`'s interface on tuned methods: the masks that the method itself gives, SAM's own where nothing is
tuned, in both ways of preprocessing."""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from samtune.evaluation import EvaluationConfig, predict_with
from samtune.methods import build_method
from samtune.methods.predictor import MethodPredictor, SPTPredictor
from samtune.methods.spt import SPT
from samtune.prompts import Prompts
from small_sam import disc_sample, official_twin, small_sam

DISC = disc_sample(0)  # 48 x 64
BOX = np.array([10.0, 5.0, 50.0, 40.0])
CLICKS = {"point_coords": np.array([[20.0, 30.0], [50.0, 10.0]]), "point_labels": np.array([1, 0])}


def trained_spt() -> SPT:
    method = SPT(small_sam()).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.normal_(0, 0.3, generator=generator)
    return method


@pytest.mark.parametrize("mode", ["stretch", "pad"])
def test_masks_are_those_that_the_method_is_measured_by(mode: str) -> None:
    method = trained_spt()
    predictor = SPTPredictor(method, mode)
    predictor.set_image(DISC.image)
    prompts = Prompts(torch.zeros(1, dtype=torch.int64), boxes=torch.from_numpy(BOX[None]).float())
    expected = predict_with(method, EvaluationConfig(preprocess=mode))([DISC], [prompts])[0]
    logits, quality, low = predictor.predict(box=BOX, return_logits=True)
    assert logits.shape == (1, 48, 64) and quality.shape == (1,) and low.shape == (1, 32, 32)
    assert np.abs(logits - expected["final"][0].numpy()).max() < 1e-5
    masks, _, _ = predictor.predict(box=BOX)
    assert masks.dtype == bool and np.array_equal(masks, logits > 0)
    draft = predictor.predict_draft(predictor.preprocess.prompts(prompts, (48, 64)), return_logits=True)
    assert (draft - expected["draft"]).abs().max() < 1e-5 and np.abs(draft[0].numpy() - logits).max() > 0.05


@pytest.mark.parametrize("given", [{"box": BOX}, CLICKS, {"box": BOX} | CLICKS], ids=["box", "clicks", "both"])
def test_untuned_method_gives_segment_anythings_low_resolution_masks(given: dict) -> None:
    sam = small_sam()
    square = np.ascontiguousarray(np.pad(DISC.image, ((0, 16), (0, 0), (0, 0))))  # needs no resizing: 64 x 64
    official = SamPredictor(official_twin(sam))
    official.set_image(square)
    predictor = MethodPredictor(build_method("zero_shot", sam), "pad")
    predictor.set_image(square)
    _, quality, low = predictor.predict(**given)
    _, expected_quality, expected = official.predict(**given, multimask_output=False)
    assert np.abs(low - expected).max() < 1e-4 and np.abs(quality - expected_quality).max() < 1e-4


def test_pictures_in_bgr_and_calls_out_of_order() -> None:
    predictor = MethodPredictor(build_method("lora", small_sam()))
    with pytest.raises(RuntimeError, match="An image must be set"):
        predictor.predict(box=BOX)
    predictor.set_image(DISC.image)
    embedding = predictor.get_image_embedding()
    predictor.set_image(np.ascontiguousarray(DISC.image[..., ::-1]), "BGR")
    assert torch.equal(predictor.get_image_embedding(), embedding)
    with pytest.raises(ValueError, match="image_format 'HSV'; known: RGB, BGR"):
        predictor.set_image(DISC.image, "HSV")
    with pytest.raises(TypeError, match="call set_image"):
        predictor.set_torch_image(torch.zeros(1, 3, 64, 64), (64, 64))


def test_many_prompts_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = SPTPredictor(trained_spt())
    predictor.set_image(DISC.image)
    boxes = torch.from_numpy(BOX)[None].float() + torch.arange(5)[:, None]
    whole = predictor.predict_torch(None, None, boxes, return_logits=True)
    monkeypatch.setattr("samtune.sam.decode.PROMPTS_A_PASS", 2)
    parts = predictor.predict_torch(None, None, boxes, return_logits=True)
    assert whole[0].shape == (5, 1, 48, 64)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(whole, parts, strict=True))
