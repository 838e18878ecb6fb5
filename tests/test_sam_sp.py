"""SAM-SP: no truth in any prompt, self-made prompts on masks drawn by hand, the loss by its parts, merging."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from samtune.common.errors import InputError
from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.losses import at_size, distillation_loss, samed_loss
from samtune.methods import build_method
from samtune.methods.sam_sp import SamSP, self_prompts
from samtune.prompts import Prompts
from samtune.sam.attention import merge_qkv
from samtune.sam.build import new_sam
from samtune.sam.decode import decode_masks
from small_sam import ListedSamples, disc_sample, official_twin, small_sam, some_prompts

INDEX = [0, 1, 1]
NOTHING = Prompts(torch.tensor(INDEX))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def trained(**options: object) -> SamSP:
    """SAM-SP with random factors: as if it had been trained."""
    method = SamSP(small_sam(), **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in method.trainable().items():
            if "lora_" in name:
                parameter.normal_(0, 0.3, generator=generator)
    return method


def logits_of(*masks: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(masks)).float()[:, None] * 6 - 3


# ---------------------------------------------------------------- no truth in any prompt


def test_masks_of_the_truth_never_reach_a_prompt() -> None:
    """Random, inverted and absent truth: the same predictions."""
    method = trained()
    samples = [disc_sample(number) for number in range(4)]
    rng = np.random.default_rng(0)
    truths = {
        "true": lambda mask: mask,
        "random": lambda mask: rng.random(mask.shape) > 0.5,
        "inverted": lambda mask: ~mask,
        "absent": lambda mask: np.eye(*mask.shape[1:], dtype=bool)[None],
    }
    answers = {}
    for name, change in truths.items():
        seen: list[Tensor] = []
        for prompt in ("none", "box"):  # even where a caller makes prompts of the truth, they are ignored
            config = EvaluationConfig(prompt=prompt)
            ask = predict_with(method, config)

            def remember(samples, prompts, ask=ask, seen=seen):
                answer = ask(samples, prompts)
                seen.extend(output[key] for output in answer for key in sorted(output))
                return answer

            data = ListedSamples([replace(sample, masks=change(sample.masks)) for sample in samples])
            evaluate(remember, data, config, progress=False)
        answers[name] = seen
    for name in truths:
        assert len(answers[name]) == 2 * 4 * 3  # two ways, four pictures, final and two passes
        assert all(torch.equal(one, other) for one, other in zip(answers[name], answers["true"], strict=True)), name


# ---------------------------------------------------------------- self-made prompts


def test_box_is_around_all_foreground_in_model_pixels() -> None:
    first, second = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    first[3:6, 8:12] = True
    second[0, 0] = second[15, 10] = True
    prompts, empty = self_prompts(logits_of(first, second), "box", 64)
    assert prompts.boxes.tolist() == [[32, 12, 47, 23], [0, 0, 43, 63]] and not empty.any()
    assert prompts.points is None and prompts.masks is None


def test_small_parts_do_not_move_the_box() -> None:
    mask = np.zeros((32, 32), bool)
    mask[4:20, 4:20] = True
    mask[30, 30] = True  # one pixel of 257
    for share, box in ((0.0, [8, 8, 61, 61]), (0.01, [8, 8, 39, 39])):
        assert self_prompts(logits_of(mask), "box", 64, share)[0].boxes.tolist() == [box]


def test_only_small_parts_are_kept() -> None:
    mask = np.zeros((33, 33), bool)
    mask[1::3, 1::3] = True  # 121 dots of less than a hundredth each
    prompts, empty = self_prompts(logits_of(mask), "box", 66, 0.01)
    assert prompts.boxes.tolist() == [[2, 2, 63, 63]] and not empty.any()


def test_points_are_the_surest_ones_and_the_mask_carries_no_gradient() -> None:
    logits = logits_of(np.pad(np.ones((4, 4), bool), 6)).requires_grad_()
    with torch.no_grad():
        logits[0, 0, 7, 9], logits[0, 0, 0, 0], logits[0, 0, 8, 8] = 9.0, -99.0, -5.0  # outside; a hole in the box
    prompts, _ = self_prompts(logits, "box+mask+points", 64)
    assert prompts.points.tolist() == [[[9.5 * 4 - 0.5, 7.5 * 4 - 0.5], [8.5 * 4 - 0.5, 8.5 * 4 - 0.5]]]
    assert prompts.labels.tolist() == [[1, 0]]
    assert torch.equal(prompts.masks, logits.detach()) and not prompts.masks.requires_grad


def test_box_without_background_gets_a_padding_click() -> None:
    prompts, _ = self_prompts(logits_of(np.pad(np.ones((4, 4), bool), 6)), "points", 64)
    assert prompts.labels.tolist() == [[1, -1]]


def test_empty_predictions_take_the_unprompted_pass_again_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    method = trained(iterations=2)
    shift = torch.zeros(3, 1, 1, 1)

    def decode(sam, embedding, prompts):
        logits, quality = decode_masks(sam, embedding, prompts)
        return logits + shift, quality

    monkeypatch.setattr("samtune.methods.sam_sp.decode_masks", decode)
    with torch.no_grad():
        plain = method(images(), NOTHING)
        shift[0], shift[2] = -1e4, 1e4
        found = method(images(), NOTHING)
    assert torch.equal(found["pass0"][0], found["pass1"][0]) and torch.equal(found["pass0"][0], found["pass2"][0])
    assert torch.equal(found["pass1"][1], plain["pass1"][1]) and not torch.equal(plain["pass0"][1], plain["pass1"][1])
    assert torch.isfinite(found["final"]).all()
    assert method.counts["first predictions"] == 6 and method.counts["empty first predictions"] == 1
    assert method.counts["full first predictions"] == 1


def test_controls_put_any_box_or_the_callers_prompt_into_the_second_pass() -> None:
    prompts = some_prompts("box", INDEX, small_sam())
    with torch.no_grad():
        given = trained(self_prompt="given")
        found = given(images(), prompts)
        expected = decode_masks(given.sam, given.encode(images()), prompts)[0]
        assert torch.equal(found["pass1"], expected) and not torch.equal(found["pass0"], expected)
        method = trained(self_prompt="random_box")
        boxes = method.next_prompts(method(images(), NOTHING)["pass0"], NOTHING)[0].boxes
        one = NOTHING[:1].at_image(0)
        alone = method.next_prompts(method(images()[1:], one)["pass0"] * (1 + 1e-6), one)[0].boxes
    assert torch.equal(boxes[2:], alone)  # whatever else is in the batch, and however it is rounded
    assert (boxes >= 0).all() and (boxes < 64).all() and len(boxes.unique(dim=0)) == 2  # a picture each


# ---------------------------------------------------------------- passes


@pytest.mark.parametrize("kind", ["box", "mask", "points", "box+mask", "box+mask+points"])
def test_each_pass_is_sam_prompted_by_the_pass_before(kind: str) -> None:
    method = trained(iterations=2, self_prompt=kind)
    with torch.no_grad():
        found = method(images(), some_prompts("box", INDEX, method.sam))
        embedding = method.encode(images())
        expected = decode_masks(method.sam, embedding, NOTHING)[0]
        assert torch.equal(found["pass0"], expected)
        for number in (1, 2):
            own, empty = self_prompts(expected, kind, 64)
            assert not empty.any()
            own = Prompts(NOTHING.image_index, own.boxes, own.points, own.labels, own.masks)
            expected = decode_masks(method.sam, embedding, own)[0]
            assert torch.equal(found[f"pass{number}"], expected)
    assert torch.equal(found["final"], found["pass2"]) and set(found) == {"final", "pass0", "pass1", "pass2"}


def test_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = trained(iterations=3), []
    encoder = method.sam.image_encoder
    monkeypatch.setattr(encoder, "forward", lambda x, f=encoder.forward: calls.append(len(x)) or f(x))
    with torch.no_grad():
        method(images(), NOTHING)
    assert calls == [2]


def test_loss_is_that_of_every_pass_and_the_distillation_between_them() -> None:
    prediction = {f"pass{number}": torch.randn(3, 1, 16, 16, requires_grad=True) for number in range(3)}
    prediction["final"] = prediction["pass2"]
    masks = torch.rand(3, 1, 64, 64).round()
    method = trained(iterations=2, distillation_weight=0.7, temperature=3.0)
    passes = [prediction[f"pass{number}"] for number in range(3)]
    target = at_size(masks, passes[0])
    plain = sum(samed_loss(logits, target) for logits in passes)
    between = sum(distillation_loss(passes[n], passes[n + 1], 3.0) for n in (0, 1))
    assert torch.allclose(method.loss(prediction, masks), (plain + 0.7 * between).mean())
    reverse = trained(iterations=2, distillation_weight=0.7, temperature=3.0, reverse=True)
    between = sum(distillation_loss(passes[n + 1], passes[n], 3.0) for n in (0, 1))
    assert torch.allclose(reverse.loss(prediction, masks), (plain + 0.7 * between).mean())
    assert torch.allclose(trained(iterations=2, distillation_weight=0.0).loss(prediction, masks), plain.mean())
    twice = trained(iterations=2, distillation_weight=0.0, first_weight=2.0)
    assert torch.allclose(twice.loss(prediction, masks), (plain + samed_loss(passes[0], target)).mean())


def test_the_later_pass_teaches_and_is_not_taught() -> None:
    passes = {f"pass{number}": torch.randn(3, 1, 16, 16, requires_grad=True) for number in range(2)}
    masks = torch.rand(3, 1, 64, 64).round()
    grads = {}
    for weight in (0.0, 1.0):
        for value in passes.values():
            value.grad = None
        trained(distillation_weight=weight).loss(passes | {"final": passes["pass1"]}, masks).backward()
        grads[weight] = {name: value.grad.clone() for name, value in passes.items()}
    assert torch.equal(grads[0.0]["pass1"], grads[1.0]["pass1"])
    assert not torch.allclose(grads[0.0]["pass0"], grads[1.0]["pass0"])


def test_what_trains() -> None:
    method = trained()
    masks = torch.zeros(3, 1, 64, 64)
    masks[:, :, 16:40, 20:50] = 1
    method.loss(method(images(), NOTHING), masks).backward()
    with_gradient = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("image_encoder" in name for name in with_gradient)
    for name in with_gradient:
        lora = "image_encoder" in name and "lora_" in name
        assert lora or name.startswith(("sam.prompt_encoder.", "sam.mask_decoder.")), name
    for name in ("sam.prompt_encoder.point_embeddings.2.weight", "sam.prompt_encoder.no_mask_embed.weight"):
        assert name in with_gradient  # box corners are learned too


def test_parameters_of_vit_b() -> None:
    """Rank 4 on q and v of 12 blocks, the whole decoder (4,058,340) and the whole prompt encoder (6,220)."""
    with torch.device("meta"):
        expected = 12 * 2 * 4 * (768 + 768) + 4_058_340 + 6_220
        assert SamSP(new_sam("vit_b")).count_trainable() == expected


def test_without_iterations_it_is_the_same_as_lora_samed() -> None:
    torch.manual_seed(0)
    plain = build_method("lora_samed", small_sam()).eval()
    torch.manual_seed(0)
    alone = SamSP(small_sam(), iterations=0).eval()
    masks = torch.rand(3, 1, 64, 64).round()
    one, other = plain(images(), NOTHING), alone(images(), NOTHING)
    assert torch.equal(one["final"], other["final"])
    assert torch.equal(plain.loss(one, masks), alone.loss(other, masks))


# ---------------------------------------------------------------- export and options


def test_merged_sam_gives_the_first_pass_in_segment_anything() -> None:
    method = trained()
    twin = official_twin(small_sam())
    twin.load_state_dict(merge_qkv(copy.deepcopy(method).merged().state_dict()))
    with torch.no_grad():
        expected = method(images(), NOTHING)["pass0"]
        embedding = twin.image_encoder(images())
        sparse, dense = twin.prompt_encoder(None, None, None)
        for place, image in enumerate(INDEX):
            position = twin.prompt_encoder.get_dense_pe()
            found = twin.mask_decoder(embedding[image : image + 1], position, sparse, dense, False)[0]
            assert (found[0] - expected[place]).abs().max() < 1e-4


def test_unknown_options_list_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown self-made prompt 'circle'; known, joined by .: box, mask, points"):
        SamSP(small_sam(), self_prompt="box+circle")
    with pytest.raises(InputError, match="unknown distillation 'js'; known: "):
        SamSP(small_sam(), distillation="js")
