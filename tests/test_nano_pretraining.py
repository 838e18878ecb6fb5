"""Pre-training of the nano SAM: exact resume, what a step learns from, its losses, its optimisers."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch import Tensor, distributed

from samtune.common.errors import InputError
from samtune.metrics import iou
from samtune.nano import pretraining
from samtune.nano.losses import (
    balanced_loss,
    near_and_far_loss,
    picture_loss,
    prompt_loss,
    warm_up_prompts,
)
from samtune.nano.optimisers import Muon, average_gradients, optimisers, orthogonalise, rank_and_processes
from samtune.nano.pretraining import Recipe, Scenes, Stage, box_and_click_iou, plan, pretrain
from samtune.nano.scenes import Picture, bank_picture
from samtune.prompts import Prompts, make_prompts
from samtune.sam.build import BACKBONES, Sam, _build, initialise_nano
from samtune.study.profile import load_profile
from small_sam import SIZES, ListedSamples, disc_sample, official_twin, small_sam, some_prompts


@pytest.fixture(autouse=True)
def small_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "nano", partial(_build, **SIZES | {"relative_positions": False}))


@pytest.fixture(scope="module")
def bank() -> list[Picture]:
    samples = [disc_sample(number, 80, 100) for number in range(3)]
    return [bank_picture(sample.image, sample.masks, {0}, main=0) for sample in samples]


def stage(image_size: int, learning_rate: float, decay: bool = False) -> Stage:
    return Stage(steps=2, image_size=image_size, batch=2, learning_rate=learning_rate, decay=decay)


# Two steps on small pictures, two on larger ones, then two more of the same size, whose optimiser goes on.
CONFIG = Recipe(
    (stage(64, 1e-3), stage(96, 1e-3), stage(96, 5e-4, decay=True)),
    warm_up_steps=4,
    objects=3,
    checkpoint_every=1,
)


def states(result: dict) -> dict[str, Tensor]:
    """All weights of a result, the moving average's too."""
    models = {"sam": result["sam"], "average": result["average"]}
    return {f"{kind}.{name}": value for kind, sam in models.items() for name, value in sam.state_dict().items()}


@pytest.fixture(scope="module")
def whole(bank: list[Picture], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """An uninterrupted run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(BACKBONES, "nano", partial(_build, **SIZES | {"relative_positions": False}))
        return pretrain(CONFIG, bank, tmp_path_factory.mktemp("whole"), progress=False)


@pytest.mark.parametrize("killed_at", [(0,), (1, 3), (2, 5)], ids=str)
def test_killed_and_resumed_run_ends_with_the_same_weights(
    killed_at: tuple[int, ...], whole: dict, bank: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the step of that number, once or twice: within a stage, after one, at the very first."""
    original, done = pretraining.picture_loss, 0
    for moment in killed_at:

        def counted(*arguments: object, moment: int = moment) -> object:
            nonlocal done
            if done == moment:
                raise KeyboardInterrupt
            done += 1
            return original(*arguments)

        monkeypatch.setattr(pretraining, "picture_loss", counted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(CONFIG, bank, tmp_path, progress=False)
    (tmp_path / "checkpoint.pt.partial").write_bytes(b"cut short")
    monkeypatch.setattr(pretraining, "picture_loss", original)
    found = pretrain(CONFIG, bank, tmp_path, progress=False)
    expected, values = states(whole), states(found)
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], expected[name]) for name in expected)
    assert found["curve"] == whole["curve"] and found["warm_up"] == whole["warm_up"]


def test_finished_run_is_read_not_repeated(
    whole: dict, bank: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Recipe(CONFIG.stages[:1], warm_up_steps=4, objects=3)
    first = pretrain(short, bank, tmp_path, progress=False)
    monkeypatch.setattr(pretraining, "picture_loss", None)
    again = pretrain(short, bank, tmp_path, progress=False)
    assert all(torch.equal(value, states(first)[name]) for name, value in states(again).items())


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", None])
def test_a_damaged_checkpoint_is_named_in_one_line(damage, bank: list[Picture], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 1}, path)  # of another training
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="; remove that file to begin anew$") as error:
        pretrain(CONFIG, bank, tmp_path, progress=False)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_curve_average_and_sizes_of_a_run(whole: dict) -> None:
    assert [(row["stage"], row["step"]) for row in whole["curve"]] == [(s, n) for s in range(3) for n in range(2)]
    assert whole["pictures"] == 12 and whole["stage"] == 3 and whole["seconds"] > 0
    assert whole["sam"].image_size == whole["average"].image_size == 96 and not whole["average"].training
    different = [name for name, value in states(whole).items() if name.startswith("sam.mask_decoder.transformer")]
    assert any(not torch.equal(states(whole)[n], states(whole)[n.replace("sam.", "average.", 1)]) for n in different)


def test_validation_sees_the_average_and_is_kept(bank: list[Picture], tmp_path: Path) -> None:
    seen = []

    def validate(sam: Sam) -> dict[str, float]:
        seen.append(sam)
        return {"score": 0.5}

    config = Recipe(CONFIG.stages[:1], warm_up_steps=2, objects=2, validate_every=1)
    result = pretrain(config, bank, tmp_path, validate, progress=False)
    assert result["validation"] == [{"pictures": 2, "score": 0.5}, {"pictures": 4, "score": 0.5}]
    assert (tmp_path / "validation.json").is_file() and not any(sam.training for sam in seen)
    assert torch.equal(seen[1].mask_decoder.iou_token.weight, result["average"].mask_decoder.iou_token.weight)


def test_loss_that_is_no_number_stops(bank: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pretraining.picture_loss

    def broken(*arguments: object) -> tuple[Tensor, dict]:
        loss, scores = original(*arguments)
        return loss * float("nan"), scores

    monkeypatch.setattr(pretraining, "picture_loss", broken)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0 of stage 1"):
        pretrain(CONFIG, bank, tmp_path, progress=False)


def test_recipe_of_a_profile() -> None:
    recipe = plan(load_profile("smoke"))
    assert recipe.sets == ("synthetic-natural",) and recipe.warm_up_steps == 2
    assert sum(stage.steps for stage in recipe.stages) == 2 and isinstance(recipe.stages[0], Stage)


# ---------------------------------------------------------------- training pictures


def test_scene_is_a_pure_function_of_its_number(bank: list[Picture]) -> None:
    scenes, again = Scenes(bank, 64, 3, (0, 1)), Scenes(bank, 64, 3, (0, 1))
    first = {number: scenes[number] for number in (4, 0, 2)}
    for number in (0, 2, 4):
        assert all(torch.equal(value, again[number][name]) for name, value in first[number].items())
    assert not torch.equal(first[0]["image"], first[2]["image"])
    assert not torch.equal(first[0]["image"], Scenes(bank, 64, 3, (0, 2))[0]["image"])


def test_prompts_of_a_scene_belong_to_its_masks(bank: list[Picture]) -> None:
    scenes, tight = Scenes(bank, 64, 3, (5, 0)), 0
    for number in range(12):
        scene = scenes[number]
        masks, boxes, clicks = scene["masks"], scene["boxes"], scene["clicks"]
        assert scene["image"].shape == (3, 64, 64) and scene["image"].dtype == torch.uint8
        assert 1 <= len(masks) <= 3 and masks.dtype == torch.bool and masks.flatten(1).any(1).all()
        assert boxes.shape == (len(masks), 4) and clicks.shape == (len(masks), 1, 2)
        assert len(scene["main"]) in (0, 1)
        for mask, box, click in zip(masks, boxes, clicks, strict=True):
            assert mask[int(click[0, 1]), int(click[0, 0])]
            rows, columns = torch.where(mask)
            expected = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()]).float()
            side = (expected[2:] - expected[:2]).repeat(2)
            assert ((box - expected).abs() <= 0.15 * side + 1e-3).all()
            tight += bool(torch.equal(box, expected))
    assert tight > 8


# ---------------------------------------------------------------- losses


def by_hand(logits: np.ndarray, target: np.ndarray, box: tuple[int, int, int, int]) -> float:
    """`near_and_far_loss` of one mask: `box` is the surroundings (top, left, bottom, right), ends included."""
    probability = 1 / (1 + np.exp(-logits))
    entropy = -(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    near = np.zeros(target.shape, bool)
    near[box[0] : box[2] + 1, box[1] : box[3] + 1] = True
    dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    return entropy[near].mean() + 0.5 * entropy[~near].mean() + dice


def test_near_and_far_loss_by_hand() -> None:
    rng = np.random.default_rng(0)
    target = np.zeros((2, 20, 24))
    target[0, 5:9, 6:18] = 1  # 4 x 12: grown by 2 rows (at least) and 3 columns
    target[1, 0, 0] = 0.6  # one soft pixel in the corner
    logits = rng.normal(0, 2, target.shape)
    found = near_and_far_loss(torch.from_numpy(logits), torch.from_numpy(target))
    assert found.shape == (2,)
    assert found[0].item() == pytest.approx(by_hand(logits[0], target[0], (3, 3, 10, 20)), rel=1e-6)
    assert found[1].item() == pytest.approx(by_hand(logits[1], target[1], (0, 0, 2, 2)), rel=1e-6)


def test_easy_background_does_not_drown_a_small_object() -> None:
    losses = []
    for side in (32, 96):
        target, logits = torch.zeros(1, side, side), torch.full((1, side, side), -6.0)
        target[0, 10:16, 10:16] = 1  # and the prediction is empty
        losses.append(near_and_far_loss(logits, target).item())
    assert losses[1] > 0.95 * losses[0] > 1


@pytest.mark.parametrize("loss", [near_and_far_loss, balanced_loss])
def test_gradients_of_the_mask_losses(loss) -> None:
    target = torch.zeros(2, 6, 7)
    target[0, 2:4, 1:5] = 1
    target[1, 1:3, 2:4] = 0.7
    logits = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if loss is near_and_far_loss:
        assert torch.autograd.gradcheck(lambda x: loss(x, target.double()), logits.requires_grad_())
    logits = logits.detach().float().requires_grad_()
    loss(logits, target).sum().backward()
    assert (logits.grad[0, 2:4, 1:5] < 0).all() and logits.grad[0, 0, 6] > 0  # foreground up, background down
    assert loss(torch.where(target > 0.5, 20.0, -20.0)[:1], target[:1]).item() < 1e-3


def goal() -> Tensor:
    target = torch.zeros(2, 32, 32)
    target[0, 4:20, 6:16] = 1
    target[1, 10:14, 20:30] = 1
    return target


@pytest.mark.parametrize("kind", ["box", "click", "two clicks", "mask", "none"])
def test_a_single_click_alone_trains_the_three_masks(kind: str) -> None:
    sam, embedding = small_sam().train(), torch.randn(1, 32, 8, 8)
    index = torch.zeros(2, dtype=torch.int64)
    prompts = {
        "box": Prompts(index, boxes=torch.tensor([[12.0, 8, 31, 39], [40, 20, 59, 27]])),
        "click": Prompts(index, points=torch.tensor([[[20.0, 20]], [[50, 24]]]), labels=torch.ones(2, 1).long()),
        "two clicks": some_prompts("point", [0, 0], sam),
        "mask": some_prompts("mask", [0, 0], sam),
        "none": Prompts(index),
    }[kind]
    loss, logits = prompt_loss(sam, embedding, prompts, goal())
    assert loss.shape == (2,) and logits.shape == (2, 1, 32, 32)
    loss.mean().backward()
    taught = [
        any(bool(p.grad is not None and p.grad.any()) for p in mlp.parameters())
        for mlp in sam.mask_decoder.output_hypernetworks_mlps
    ]
    assert taught[0] and any(taught[1:]) == (kind == "click")
    assert any(bool(p.grad.any()) for p in sam.mask_decoder.iou_prediction_head.parameters())


def test_of_three_masks_only_the_best_learns() -> None:
    sam, embedding = small_sam().train(), torch.randn(1, 32, 8, 8)
    prompts = Prompts(
        torch.zeros(1, dtype=torch.int64), points=torch.tensor([[[20.0, 20]]]), labels=torch.ones(1, 1).long()
    )
    prompt_loss(sam, embedding, prompts, goal()[:1])[0].mean().backward()
    taught = [mlp.layers[2].bias.grad is not None and bool(mlp.layers[2].bias.grad.any())
              for mlp in sam.mask_decoder.output_hypernetworks_mlps]  # fmt: skip
    assert taught[0] and sum(taught[1:]) == 1


def test_picture_loss_asks_in_every_way_and_reaches_every_part(bank: list[Picture]) -> None:
    sam = initialise_nano(small_sam(relative_positions=False), torch.Generator().manual_seed(0)).train()
    scenes = [Scenes(bank, 64, 6, (0, 0))[number] for number in range(4)]
    kinds = set()
    for seed in range(12):
        loss, scores = picture_loss(sam, scenes, torch.Generator().manual_seed(seed))
        assert loss.shape == () and torch.isfinite(loss) and all(0 <= value <= 1 for value in scores.values())
        kinds |= scores.keys()
    loss.backward()
    assert kinds >= {"box", "point", "mask", "box+click", "point+click", "none"}
    untouched = {name for name, parameter in sam.named_parameters() if parameter.grad is None}
    assert untouched <= {"prompt_encoder.not_a_point_embed.weight", "prompt_encoder.point_embeddings.0.weight"}
    again, _ = picture_loss(sam, scenes, torch.Generator().manual_seed(11))
    assert torch.equal(again, loss)


def test_warm_up_teaches_the_prompt_side_alone() -> None:
    sizes = {"prompt_width": 64, "width": 64, "decoder_mlp_width": 128, "relative_positions": False}
    sam = initialise_nano(small_sam(**sizes), torch.Generator().manual_seed(0)).train()
    encoder = {name: value.clone() for name, value in sam.image_encoder.state_dict().items()}
    embedding = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(1))
    # Copying a mask is what it learns first; boxes take hundreds of steps.
    masks = Prompts(torch.zeros(2).long(), masks=torch.where(goal() > 0.5, 8.0, -8.0)[:, None])

    def loss_of_masks() -> float:
        with torch.no_grad():
            return prompt_loss(sam, embedding, masks, goal(), balanced_loss)[0].mean().item()

    before = loss_of_masks()
    curve = warm_up_prompts(sam, 100, seed=0, prompts=8, progress=False)
    assert loss_of_masks() < before - 0.1
    assert [row["kind"] for row in curve[:5]] == [0, 1, 2, 3, 0] and len(curve) == 100
    assert all(torch.equal(value, encoder[name]) for name, value in sam.image_encoder.state_dict().items())


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_warm_up_of_a_few_steps_depends_on_its_seed_alone(steps: int) -> None:
    weights = []
    for seed in (0, 0, 1):
        sam = small_sam().train()
        torch.rand(seed + 1)
        warm_up_prompts(sam, steps, seed, prompts=4, progress=False)
        weights.append(sam.mask_decoder.mask_tokens.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# ---------------------------------------------------------------- optimisers


@pytest.mark.parametrize("shape", [(16, 64), (96, 24), (48, 64)])
def test_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrix)
    values = torch.linalg.svdvals(found)
    assert found.shape == shape and values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    cosine = (found * (u @ v)).sum() / found.norm() / (u @ v).norm()
    assert cosine > 0.97  # towards the nearest semi-orthogonal matrix


def test_muon_steps_like_torchs_own_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 40, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    pair = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradient = torch.randn(24, 40, generator=generator)
        for parameter, optimiser in zip((ours, theirs), pair, strict=True):
            parameter.grad = gradient.clone()
            optimiser.step()
    moved = (theirs - start).abs().max()
    assert (ours - theirs).abs().max() < 0.03 * moved  # bfloat16 has three digits


def test_every_parameter_is_in_one_group_and_the_prompt_side_goes_at_half_the_rate() -> None:
    sam = small_sam(relative_positions=False)
    muon, adam = optimisers(sam, 0.05)
    names = {id(parameter): name for name, parameter in sam.named_parameters()}
    seen = []
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                seen.append(name)
                assert group["scale"] == (1.0 if name.startswith("image_encoder.") else 0.5)
                assert (optimiser is muon) == (parameter.ndim == 2 and ("blocks." in name or "transformer." in name))
    assert sorted(seen) == sorted(names.values())


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_gradients_are_averaged_and_a_missing_one_is_zero(one_process: None) -> None:
    assert rank_and_processes() == (0, 1)
    first, second = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))
    first.grad = torch.arange(6.0).view(2, 3)
    average_gradients([first, second], 2)  # of two processes, of which the other has none
    assert torch.equal(first.grad, torch.arange(6.0).view(2, 3) / 2) and torch.equal(second.grad, torch.zeros(4))


def test_alone_a_process_is_the_first_of_one() -> None:
    assert rank_and_processes() == (0, 1)


def test_validation_is_the_iou_of_segment_anythings_masks_over_objects_of_16_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = [disc_sample(number, 64, 64) for number in range(4)]  # needs no resizing
    small = np.zeros((1, 64, 64), bool)
    small[0, 20:40, 3:18] = True  # 15 pixels wide: left out
    samples[0] = replace(samples[0], masks=np.concatenate([samples[0].masks, small]))
    monkeypatch.setattr(pretraining, "open_dataset", lambda name: ListedSamples(samples, name))
    sam = small_sam()
    found = box_and_click_iou(sam, limit=3)
    predictor = SamPredictor(official_twin(sam))
    for name in ("bsds500", "ccp", "car-parts"):
        expected: dict[str, list[float]] = {"box": [], "point1": []}
        for sample in samples[:3]:
            predictor.set_image(sample.image)
            box, click = (make_prompts(kind, sample.masks[:1], f"{name}/{sample.id}") for kind in expected)
            masks = predictor.predict(box=box.boxes[0].numpy(), multimask_output=False)[0]
            expected["box"].append(iou(masks[0], sample.masks[0]))
            masks = predictor.predict(click.points[0].numpy(), click.labels[0].numpy())[0]
            expected["point1"].append(max(iou(mask, sample.masks[0]) for mask in masks))
        for kind, values in expected.items():
            assert found[f"{name} {kind}"] == pytest.approx(np.mean(values), abs=2e-3)  # a pixel on the threshold
