"""SAM-SP: no truth in any prompt, self-made prompts on masks drawn by hand, the loss by its parts, merging."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from samtune.common.errors import InputError
from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.losses import binary_cross_entropy
from samtune.methods import build_method
from samtune.methods.sam_sp import SamSP, random_boxes, self_prompts
from samtune.prompts import Prompts
from samtune.sam.attention import merge_qkv
from samtune.sam.build import new_sam
from samtune.sam.decode import decode_masks
from samtune.study.sam_sp import TRUTH_ON_BOTH
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
    assert trained().next_prompts(logits_of(mask), NOTHING[:1])[0].boxes.tolist() == [[8, 8, 61, 61]]  # usually they do


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


def test_points_and_box_of_noise_are_those_found_pixel_by_pixel() -> None:
    logits = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    prompts, empty = self_prompts(logits, "box+points", 32)
    assert not empty.any()
    for place, plane in enumerate(logits[:, 0].tolist()):
        marked = [(x, y) for y in range(8) for x in range(8) if plane[y][x] > 0]
        left, top, right, bottom = (choose(point[axis] for point in marked) for choose in (min, max) for axis in (0, 1))
        assert prompts.boxes[place].tolist() == [4 * left, 4 * top, 4 * right + 3, 4 * bottom + 3]
        surest = max(marked, key=lambda point: plane[point[1]][point[0]])
        assert prompts.points[place, 0].tolist() == [4 * side + 1.5 for side in surest]
        inside = {(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)} - set(marked)
        assert prompts.labels[place].tolist() == [1, 0 if inside else -1]
        if inside:
            least = min(inside, key=lambda point: plane[point[1]][point[0]])
            assert prompts.points[place, 1].tolist() == [4 * side + 1.5 for side in least]


def test_random_boxes_have_sides_from_a_tenth_to_the_whole_anywhere_in_the_picture() -> None:
    boxes = random_boxes(torch.randn(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 50)
    sides, room = boxes[:, 2:] - boxes[:, :2] + 1, boxes[:, :2] + 1e-4
    for values in (sides, room / (50 - sides + 2e-4) * 45 + 5):  # sides, and starts as shares of what is left over
        assert values.min() >= 5 and values.max() <= 50 + 1e-2 and values.mean() == pytest.approx(27.5, abs=1)
        assert values.min() < 5.5 and values.max() > 49.5


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
        quality = torch.cat([estimate for _, estimate in method.passes(method.encode(images()), NOTHING)], 1)
    assert (quality[0] == quality[0, 0]).all() and quality[1, 0] != quality[1, 1]  # so with the estimates of the IoU
    assert torch.equal(found["pass0"][0], found["pass1"][0]) and torch.equal(found["pass0"][0], found["pass2"][0])
    assert torch.equal(found["pass1"][1], plain["pass1"][1]) and not torch.equal(plain["pass0"][1], plain["pass1"][1])
    assert torch.isfinite(found["final"]).all()
    assert method.counts["first predictions"] == 9 and method.counts["empty first predictions"] == 2
    assert method.counts["full first predictions"] == 2


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


def dice(logits: Tensor, truth: Tensor, power: int = 2) -> Tensor:
    """1 - (2 |p t| + 1) / (|p^power| + |t| + 1) of each mask `(P, 1, h, w)`, written out; t is 0 or 1."""
    probability = 1 / (1 + torch.exp(-logits))
    overlap, sizes = (probability * truth).sum((1, 2, 3)), (probability**power + truth).sum((1, 2, 3))
    return 1 - (2 * overlap + 1) / (sizes + 1)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over pixels of p log(p / q) + (1 - p) log((1 - p) / (1 - q)), p the teacher's foreground."""
    p, q = teacher.sigmoid(), student.sigmoid()
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean((1, 2, 3))


def random_passes(count: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A prediction of `count` random passes, masks of four times its size, and those on the logits' grid."""
    passes = {f"pass{number}": torch.randn(3, 1, 16, 16, requires_grad=True) for number in range(count)}
    truth = torch.rand(3, 1, 16, 16).round()
    masks = truth.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return passes | {"final": passes[f"pass{count - 1}"]}, masks, truth


def test_loss_is_the_papers() -> None:
    """Dice of the last pass and the truth, and alpha times the divergence of each pass from the one that teaches it."""
    prediction, masks, truth = random_passes(2)
    first, second = prediction["pass0"], prediction["pass1"]
    for alpha in (0.0, 1.0, 10.0):
        expected = (dice(second, truth) + alpha * divergence(first, second)).mean()
        assert torch.allclose(trained(distillation_weight=alpha).loss(prediction, masks), expected)
    plain = trained(mask_loss="dice", distillation_weight=0.0).loss(prediction, masks)
    assert torch.allclose(plain, dice(second, truth, power=1).mean())
    assert torch.allclose(
        trained().loss(prediction, masks), (dice(second, truth) + 0.1 * divergence(first, second)).mean()
    )
    squared = trained(distillation="mse", distillation_weight=1.0).loss(prediction, masks)
    assert torch.allclose(squared, dice(second, truth).mean() + (first.sigmoid() - second.sigmoid()).square().mean())
    reverse = trained(reverse=True, distillation_weight=1.0).loss(prediction, masks)
    assert torch.allclose(reverse, (dice(second, truth) + divergence(second, first)).mean())
    prediction, masks, truth = random_passes(3)
    first, second, third = (prediction[f"pass{number}"] for number in range(3))
    expected = (dice(third, truth) + 0.7 * divergence(first, second) + 0.7 * divergence(second, third)).mean()
    assert torch.allclose(trained(iterations=2, distillation_weight=0.7).loss(prediction, masks), expected)


def test_truth_on_both_passes_is_the_kits_first_loss() -> None:
    prediction, masks, truth = random_passes(2)
    first, second = prediction["pass0"], prediction["pass1"]
    both = sum(0.2 * binary_cross_entropy(one, truth)[:, 0] + 0.8 * dice(one, truth, 1) for one in (first, second))
    taught = 0.1 * 2**2 * divergence(first / 2, second / 2)  # at temperature 2
    assert torch.allclose(trained(**TRUTH_ON_BOTH).loss(prediction, masks), (both + taught).mean())


def gradients(method: SamSP, loss: Tensor) -> dict[str, Tensor]:
    """Of `loss`, by trainable parameter."""
    method.zero_grad()
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in method.trainable().items()}


def test_without_distillation_a_step_of_training_learns_through_the_second_pass_alone() -> None:
    """The same step as that of a first pass which has no gradient at all."""
    truth = torch.zeros(3, 1, 32, 32)  # on the logits' grid
    truth[:, :, 8:20, 10:24] = 1
    masks = truth.repeat_interleave(2, 2).repeat_interleave(2, 3)
    method, twin = trained(distillation_weight=0.0), trained()
    prediction = method(images(), NOTHING)
    prediction["pass0"].retain_grad()
    method.loss(prediction, masks).backward()
    assert not prediction["pass0"].grad.any()
    with torch.no_grad():
        boxes = self_prompts(decode_masks(twin.sam, twin.encode(images()), NOTHING)[0], "box", 64)[0].boxes
    second = decode_masks(twin.sam, twin.encode(images()), Prompts(NOTHING.image_index, boxes))[0]
    dice(second, truth).mean().backward()
    before = method.trainable_state()
    for one in (method, twin):
        torch.optim.SGD(one.trainable().values(), lr=1.0).step()
    expected = twin.trainable()
    for name, parameter in method.trainable().items():
        assert torch.allclose(parameter, expected[name], atol=1e-6), name
    assert any(not torch.equal(parameter, before[name]) for name, parameter in method.trainable().items())


def test_distillation_reaches_the_parameters_through_the_first_pass_alone() -> None:
    masks = torch.zeros(3, 1, 64, 64)
    masks[:, :, 16:40, 20:50] = 1
    with torch.no_grad():
        teacher = trained()(images(), NOTHING)["pass1"]
    found = {}
    for name, weight, detach in (("none", 0.0, True), ("detached", 1.0, True), ("not detached", 1.0, False)):
        method = trained(distillation_weight=weight, detach_teacher=detach)
        found[name] = gradients(method, method.loss(method(images(), NOTHING), masks))
    method = trained()
    alone = gradients(method, divergence(decode_masks(method.sam, method.encode(images()), NOTHING)[0], teacher).mean())
    assert any(gradient.any() for gradient in alone.values())
    for name, gradient in alone.items():
        assert torch.allclose(found["detached"][name] - found["none"][name], gradient, atol=1e-5), name
    assert any(not torch.allclose(found["not detached"][name], found["detached"][name], atol=1e-5) for name in alone)


def test_a_teacher_that_is_not_detached_is_taught_too() -> None:
    for detach in (True, False):
        slopes = {}
        for weight in (0.0, 1.0):
            torch.manual_seed(0)
            prediction, masks, _ = random_passes(2)
            trained(distillation_weight=weight, detach_teacher=detach).loss(prediction, masks).backward()
            slopes[weight] = [prediction[name].grad for name in ("pass0", "pass1")]
        assert slopes[0.0][0] is None and slopes[1.0][0].any()
        assert torch.equal(slopes[0.0][1], slopes[1.0][1]) == detach


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
    plain = build_method("lora_samed", small_sam(), mask_loss="squared_dice").eval()
    torch.manual_seed(0)
    alone = SamSP(small_sam(), iterations=0).eval()
    masks = torch.rand(3, 1, 64, 64).round()
    one, other = plain(images(), NOTHING), alone(images(), NOTHING)
    assert torch.equal(one["final"], other["final"])
    assert torch.equal(plain.loss(one, masks), alone.loss(other, masks))
    assert not torch.equal(plain.loss(one, masks), build_method("lora_samed", small_sam()).loss(one, masks))


def test_second_pass_without_a_prompt_is_the_first_again_taught_by_the_truth() -> None:
    """Why an empty prompt is no control of its own: it would be LoRA by the Dice loss, at any alpha."""
    masks = torch.zeros(3, 1, 64, 64)
    masks[:, :, 16:40, 20:50] = 1
    method = trained(self_prompt="given", distillation_weight=1.0)
    prediction = method(images(), NOTHING)
    assert torch.equal(prediction["pass0"], prediction["pass1"])
    found = gradients(method, method.loss(prediction, masks))
    first = decode_masks(method.sam, method.encode(images()), NOTHING)[0]
    for name, gradient in gradients(method, dice(first, masks[:, :, ::2, ::2]).mean()).items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


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
    with pytest.raises(InputError, match="unknown mask loss 'focal'; known: dice, samed, squared_dice"):
        SamSP(small_sam(), mask_loss="focal")
