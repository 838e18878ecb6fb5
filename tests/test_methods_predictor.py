"""`SamPredictor`'s interface on tuned methods: the masks that the method itself gives, SAM's own where nothing is
tuned, in both ways of preprocessing."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.utils.transforms import ResizeLongestSide

from samtune.common.errors import InputError
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
    expected = predict_with(method, EvaluationConfig(preprocess=mode, metrics=("mae",)))([DISC], [prompts])[0]
    logits, quality, low = predictor.predict(box=BOX, return_logits=True)
    assert logits.shape == (1, 48, 64) and quality.shape == (1,) and low.shape == (1, 32, 32)
    assert np.abs(logits - expected["final"][0].numpy()).max() < 1e-5
    masks, _, _ = predictor.predict(box=BOX)
    assert masks.dtype == bool and np.array_equal(masks, logits > 0)
    draft = predictor.predict_draft(predictor.preprocess.prompts(prompts, (48, 64)), return_logits=True)
    assert (draft - expected["draft"]).abs().max() < 1e-5 and np.abs(draft[0].numpy() - logits).max() > 0.05


@pytest.mark.parametrize("given", [{"box": BOX}, CLICKS, {"box": BOX} | CLICKS], ids=["box", "clicks", "both"])
@pytest.mark.parametrize("size", [(48, 64), (150, 90), (37, 41)])
def test_untuned_method_gives_sam_predictors_masks(given: dict, size: tuple[int, int]) -> None:
    sam, image = small_sam(), disc_sample(1, *size).image
    official, predictor = SamPredictor(official_twin(sam)), MethodPredictor(build_method("zero_shot", sam), "pad")
    for one in (official, predictor):
        one.set_image(image)
    expected = official.predict(**given, multimask_output=False, return_logits=True)
    found = predictor.predict(**given, return_logits=True)
    assert all(np.abs(one - other).max() < 1e-4 for one, other in zip(found, expected, strict=True))
    sure = np.abs(expected[0]) > 1e-4
    assert np.array_equal(predictor.predict(**given)[0][sure], (expected[0] > 0)[sure]) and sure.mean() > 0.99


@pytest.mark.parametrize("mode", ["stretch", "pad"])
def test_transform_moves_what_sam_predictors_users_move(mode: str) -> None:
    image, size = disc_sample(1, 150, 90).image, (150, 90)
    predictor = MethodPredictor(build_method("zero_shot", small_sam()), mode)
    predictor.set_image(image)
    embedding, (masks, _, _) = predictor.get_image_embedding(), predictor.predict(box=BOX)
    resized = predictor.transform.apply_image(image)
    assert resized.dtype == np.uint8 and predictor.transform.target_length == 64
    if mode == "pad":
        official = ResizeLongestSide(64)
        assert np.array_equal(resized, official.apply_image(image))
        assert np.array_equal(predictor.transform.apply_boxes(BOX, size), official.apply_boxes(BOX, size))
    else:
        assert np.allclose(predictor.transform.apply_coords(np.array([[9.0, 30]]), size), [[6.4, 12.8]])
    boxes = torch.from_numpy(BOX)[None]
    moved = predictor.transform.apply_boxes_torch(boxes, size)
    assert np.allclose(moved.numpy(), predictor.transform.apply_boxes(boxes.numpy(), size))
    points = predictor.transform.apply_coords_torch(boxes.reshape(1, 2, 2), size)
    assert torch.equal(points.reshape(1, 4), moved)
    again = predictor.predict_torch(None, None, moved)[0][0].numpy()
    assert np.array_equal(again, masks)
    predictor.set_torch_image(torch.from_numpy(resized).permute(2, 0, 1)[None], size)
    assert torch.equal(predictor.get_image_embedding(), embedding)
    nearly = predictor.transform.apply_image_torch(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    assert nearly.shape[-2:] == resized.shape[:2]
    assert (nearly[0].permute(1, 2, 0) - torch.from_numpy(resized).float()).abs().mean() < 6
    with pytest.raises(ValueError, match=r"shape \(1, 3, 20, 64\), expected \(1, 3, 64, "):
        predictor.set_torch_image(torch.zeros(1, 3, 20, 64), size)


def test_what_cannot_be_answered_is_one_line() -> None:
    predictor = SPTPredictor(SPT(small_sam(), draft=False))
    prompts = Prompts(torch.tensor([0, 2]), boxes=torch.from_numpy(np.stack([BOX, BOX])).float())
    with pytest.raises(InputError, match="this SPT has no draft"):
        predictor.predict_draft(prompts)
    with pytest.raises(RuntimeError, match="An image must be set"):
        predictor.predict_prompts(prompts)
    predictor.set_image(DISC.image)
    with pytest.raises(InputError, match="image index 2, but there is one picture"):
        predictor.predict_prompts(prompts)


@pytest.mark.parametrize("mode", ["stretch", "pad"])
def test_strip_lower_than_a_pixel_of_the_model(mode: str) -> None:
    predictor = MethodPredictor(build_method("zero_shot", small_sam()), mode)
    predictor.set_image(np.full((3, 400, 3), 90, np.uint8))
    assert predictor.predict(box=np.array([10.0, 0, 300, 2]))[0].shape == (1, 3, 400)


def test_masks_come_one_by_one_as_all_at_once() -> None:
    predictor = SPTPredictor(trained_spt())
    predictor.set_image(DISC.image)
    prompts = Prompts(torch.zeros(5, dtype=torch.int64), torch.from_numpy(BOX)[None].float() + torch.arange(5)[:, None])
    masks = list(predictor.each_mask(prompts))
    assert masks[0].dtype == bool and np.array_equal(masks, predictor.predict_prompts(prompts)[0][:, 0].numpy())


LARGE_PICTURE = """
import resource, torch
from samtune.methods import build_method
from samtune.methods.predictor import MethodPredictor
from samtune.prompts import Prompts
from samtune.sam.checkpoints import load_sam
predictor = MethodPredictor(build_method("zero_shot", load_sam("nano")), "pad")
predictor.set_image((torch.arange(36_000_000) % 251).byte().view(3000, 4000, 3).numpy())
peaks = []
for count in (4, 20):
    prompts = Prompts(torch.zeros(count, dtype=torch.int64), torch.tensor([[20.0, 20, 100, 90]]).repeat(count, 1))
    assert sum(mask.shape == (3000, 4000) for mask in predictor.each_mask(prompts)) == count
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / 2**10)
"""


def test_memory_does_not_grow_with_the_number_of_masks_of_a_large_picture() -> None:
    answer = subprocess.run([sys.executable, "-c", LARGE_PICTURE], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 100  # MiB; 16 masks more are 183 even as booleans


@pytest.mark.parametrize("mode", ["stretch", "pad"])
@pytest.mark.parametrize("other", [DISC.image / 255, DISC.image.astype(np.uint16), DISC.image[..., 0], DISC.image > 9])
def test_other_arrays_than_pictures_are_refused(other: np.ndarray, mode: str) -> None:
    with pytest.raises(InputError, match=r"a picture is uint8 \(H, W, 3\), not"):
        MethodPredictor(build_method("zero_shot", small_sam()), mode).set_image(other)


def test_prompts_that_would_not_be_heard_are_refused() -> None:
    predictor = MethodPredictor(build_method("sam_sp", small_sam()))
    predictor.set_image(DISC.image)
    assert predictor.predict()[0].shape == (1, 48, 64)
    with pytest.raises(InputError, match="SAM-SP takes no prompt"):
        predictor.predict(box=BOX)
    predictor = MethodPredictor(build_method("zero_shot", small_sam()))
    predictor.set_image(DISC.image)
    with pytest.raises(InputError, match="no prompt to segment"):
        predictor.predict_torch(None, None, torch.zeros(0, 4))


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


def test_many_prompts_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = SPTPredictor(trained_spt())
    predictor.set_image(DISC.image)
    boxes = torch.from_numpy(BOX)[None].float() + torch.arange(5)[:, None]
    whole = predictor.predict_torch(None, None, boxes, return_logits=True)
    monkeypatch.setattr("samtune.sam.decode.PROMPTS_A_PASS", 2)
    parts = predictor.predict_torch(None, None, boxes, return_logits=True)
    assert whole[0].shape == (5, 1, 48, 64)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(whole, parts, strict=True))
