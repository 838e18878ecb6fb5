"""The training loop: resume, schedules, accumulation, data order, the embedding cache, and how it fails."""

import math
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from tqdm.asyncio import tqdm_asyncio

from samtune import losses, training
from samtune.common.errors import InputError
from samtune.data.augmentation import augment
from samtune.data.sample import CroppedMasks, cropped
from samtune.embeddings import EmbeddingCache
from samtune.methods import Method, build_method
from samtune.methods.decoder_tuning import DecoderTuning
from samtune.metrics import iou
from samtune.prompts import Prompts
from samtune.training import TrainingResult, TrainingSamples, train
from samtune.training_config import TrainingConfig, learning_rate_factor
from small_sam import ListedSamples, disc_sample, small_sam

DISCS = ListedSamples([disc_sample(number) for number in range(5)])
CONFIG = TrainingConfig(images=16, batch_size=2, device="cpu", precision="fp32", warm_up=0.0, checkpoint_every=3)


def method_of(name: str = "decoder_tuning", seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return build_method(name, small_sam())


def run(method: Method, config: TrainingConfig = CONFIG, folder: Path | None = None, **options) -> TrainingResult:
    return train(method, [(DISCS, "train")], config, folder, progress=False, **options)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on training is interrupted (as by Ctrl-C) when it comes to `step`."""
    original = training._step

    def stop(*arguments: object) -> dict[str, float]:
        if arguments[6] == step:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "_step", stop)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lora", {}),
        ("decoder_tuning", {}),
        ("lora", {"optimiser": "adamw", "weight_decay": 0.1, "augmentation": "flip_jitter", "schedule": "polynomial"}),
        ("decoder_tuning", {"accumulate": 2}),
    ],
    ids=["lora", "decoder_tuning", "lora adamw jitter", "accumulated"],
)
def test_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    name: str, changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, **changes)
    whole = method_of(name)
    expected = run(whole, config)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(5, patched)
        run(method_of(name), config, tmp_path)
    assert (tmp_path / "last.pt").is_file()
    (tmp_path / "last.pt.partial").write_bytes(b"a checkpoint that a kill cut short")
    resumed = method_of(name, seed=1)  # LoRA's first weights differ: those of the checkpoint count
    found = run(resumed, config, tmp_path)
    assert same(resumed.trainable_state(), whole.trainable_state())
    assert not same(resumed.trainable_state(), method_of(name).trainable_state())
    assert found.curve == expected.curve and len(found.curve) == config.steps
    assert not resumed.training and resumed.count_trainable() == whole.count_trainable()


class Shaken(DecoderTuning):
    """Draws from the global random numbers in every step, as dropout does."""

    name = "shaken"

    def decode(self, embedding: Tensor, prompts) -> dict[str, Tensor]:
        prediction = super().decode(embedding, prompts)
        return {"final": prediction["final"] + torch.randn(())}


def test_global_random_numbers_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(Shaken(small_sam())).curve
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(5, patched)
        run(Shaken(small_sam()), folder=tmp_path)
    assert run(Shaken(small_sam()), folder=tmp_path).curve == expected


def test_no_gradient_is_pending_where_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when a batch without any object shifts the accumulation by one."""
    samples = [disc_sample(number) for number in range(6)]
    order = np.random.default_rng([0, 0]).permutation(6)
    for place in (0, 1):  # the first batch of the first epoch
        empty = samples[order[place]]
        samples[order[place]] = replace(empty, masks=empty.masks[:0])
    config = replace(CONFIG, images=24, accumulate=2, checkpoint_every=2)
    whole, part = method_of(), method_of()
    expected = train(whole, [(ListedSamples(samples), "train")], config, progress=False)
    assert expected.dropped >= 2 and len(expected.curve) < config.steps
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(5, patched)
        train(part, [(ListedSamples(samples), "train")], config, tmp_path, progress=False)
    assert (tmp_path / "last.pt").is_file()
    found = train(part, [(ListedSamples(samples), "train")], config, tmp_path, progress=False)
    assert same(part.trainable_state(), whole.trainable_state())
    assert (found.curve, found.dropped) == (expected.curve, expected.dropped)


def test_training_learns() -> None:
    config = replace(CONFIG, images=40, learning_rate=3e-3, schedule="constant", augmentation="none", prompts=("box",))
    curve = run(method_of(), config).curve
    losses = [row["loss"] for row in curve]
    assert np.mean(losses[-6:]) < np.mean(losses[:3]) - 0.1
    assert curve[0]["images"] == 2 and curve[-1]["images"] == 40


def test_training_depends_on_its_seed_alone() -> None:
    config = replace(CONFIG, images=6)
    first, second = method_of(), method_of()
    curve = run(first, config).curve
    torch.manual_seed(99)
    assert run(second, config).curve == curve and same(first.trainable_state(), second.trainable_state())
    assert run(method_of(), replace(config, seed=1)).curve != curve


def test_frozen_parts_stay_as_they_are() -> None:
    method = method_of()
    run(method)
    tuned, fresh = method.sam.state_dict(), small_sam().state_dict()
    changed = {name for name in fresh if not torch.equal(tuned[name], fresh[name])}
    assert changed and all(name.startswith("mask_decoder.") for name in changed)


# ---------------------------------------------------------------- schedules


def test_schedules_at_known_steps() -> None:
    def at(schedule: str, step: int) -> float:
        return learning_rate_factor(TrainingConfig(images=160, batch_size=1, schedule=schedule, warm_up=0.0), step)

    assert [at("constant", step) for step in (0, 80, 159)] == [1, 1, 1]
    assert [at("step", step) for step in (0, 99, 100, 159)] == [1, 1, 0.1, 0.1]  # epoch 10 of 16
    assert at("polynomial", 0) == 1 and math.isclose(at("polynomial", 80), 0.5**0.9)
    assert 0 < at("polynomial", 159) < 0.02
    # Twenty epochs of eight steps: up in a straight line for ten, then halved every epoch.
    assert math.isclose(at("slow_start", 40), 0.5) and math.isclose(at("slow_start", 80), 1.0)
    assert math.isclose(at("slow_start", 88), 0.5) and math.isclose(at("slow_start", 104), 0.125)
    assert at("slow_start", 0) == 1 / 160  # not 0
    slow = TrainingConfig(images=160, batch_size=1, schedule="slow_start", warm_up=0.5)
    assert learning_rate_factor(slow, 40) == 0.5  # no second warm-up


def test_warm_up_rises_in_a_straight_line() -> None:
    config = TrainingConfig(images=100, batch_size=1, schedule="constant", warm_up=0.1)
    assert [round(learning_rate_factor(config, step), 6) for step in range(12)] == [
        0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0,
    ]  # fmt: skip


def test_curve_shows_the_rates_that_were_used() -> None:
    config = replace(CONFIG, images=8, warm_up=0.5, learning_rate=2e-3, schedule="constant")
    assert [row["learning_rate"] for row in run(method_of(), config).curve] == [1e-3, 2e-3, 2e-3, 2e-3]


def test_a_long_curve_is_of_means_and_as_long_after_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(method_of()).curve  # 8 batches
    monkeypatch.setattr(training, "MOST_ROWS", 3)
    means = run(method_of()).curve
    assert [row["images"] for row in means] == [6, 12, 16]
    parts = whole[:3], whole[3:6], whole[6:]
    assert [row["loss"] for row in means] == pytest.approx([np.mean([one["loss"] for one in part]) for part in parts])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(5, patched)
        run(method_of(), CONFIG, tmp_path)
    assert run(method_of(), CONFIG, tmp_path).curve == means


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_line_from_a_worker_too(workers: int) -> None:
    class Bad(ListedSamples):
        def load(self, id: str) -> object:
            raise InputError(f"cannot read {id}")

    with pytest.raises(InputError) as error:
        train(
            method_of(),
            [(Bad(list(DISCS.samples.values())), "train")],
            replace(CONFIG, workers=workers),
            progress=False,
        )
    assert str(error.value).startswith("cannot read ") and "\n" not in str(error.value)


def test_curve_shows_the_iou_of_every_output_before_the_step() -> None:
    config = replace(CONFIG, images=2)
    (row,) = run(method_of("spt"), config).curve
    batch = [TrainingSamples([(DISCS, "train")], 64, config)[place] for place in range(2)]
    prompts = Prompts.concatenate([one["prompts"].at_image(index) for index, one in enumerate(batch)])
    masks = torch.cat([one["masks"] for one in batch])
    with torch.no_grad():
        outputs = method_of("spt")(torch.stack([one["image"] for one in batch]), prompts)
    small = torch.nn.functional.interpolate(masks, outputs["final"].shape[-2:], mode="area") > 0.5
    for output in ("final", "draft"):
        predicted = (outputs[output][:, 0] > 0).numpy()
        found = np.mean([iou(mask, truth) for mask, truth in zip(predicted, small[:, 0].numpy(), strict=True)])
        assert row[f"iou_{output}"] == pytest.approx(found, abs=1e-5)


class NoLoss(DecoderTuning):
    """No gradient anywhere: only weight decay moves anything."""

    name = "no_loss"

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return 0 * prediction["final"].sum()


@pytest.mark.parametrize(("optimiser", "decay"), [("adamw", 0.1), ("adam", 0.0)])
def test_every_step_has_its_own_rate_and_adamw_shrinks_weights_by_it(optimiser: str, decay: float) -> None:
    config = replace(CONFIG, optimiser=optimiser, weight_decay=decay, learning_rate=0.5, schedule="step")
    method, before = NoLoss(small_sam()), NoLoss(small_sam()).trainable_state()
    run(method, config)
    left = (1 - decay * 0.5) ** 5 * (1 - decay * 0.05) ** 3  # eight steps, of which three at a tenth of the rate
    name, after = "sam.mask_decoder.mask_tokens.weight", method.trainable_state()
    assert after[name].any() and torch.allclose(after[name], left * before[name])


def test_steps_are_whole_batches_and_at_least_one() -> None:
    assert TrainingConfig(images=7, batch_size=2).steps == 3 and TrainingConfig(images=1, batch_size=8).steps == 1
    # A group that is not full would take no optimiser step: its pictures are not asked for.
    assert TrainingConfig(images=7, batch_size=2, accumulate=2).steps == 2
    assert TrainingConfig(images=1, batch_size=2, accumulate=3).steps == 3


# ---------------------------------------------------------------- batches and data


class MeanLoss(DecoderTuning):
    """A loss that is a plain mean over prompts and pixels, without random points."""

    name = "mean_loss"

    def loss(self, prediction: dict[str, Tensor], masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        target = torch.nn.functional.adaptive_avg_pool2d(masks, prediction["final"].shape[-1])
        return torch.nn.functional.binary_cross_entropy_with_logits(prediction["final"], target)


def test_accumulated_batches_equal_a_larger_one() -> None:
    config = replace(CONFIG, images=8, batch_size=4, schedule="constant", prompts=("box",), optimiser="adamw")
    large, small = MeanLoss(small_sam()), MeanLoss(small_sam())
    expected = run(large, config).curve
    found = run(small, replace(config, batch_size=2, accumulate=2)).curve
    pairs = np.array([row["loss"] for row in found]).reshape(2, 2).mean(1)
    assert np.allclose(pairs, [row["loss"] for row in expected], atol=2e-6)
    for name, value in large.trainable_state().items():
        # The keys' biases change nothing, so that Adam blows the rounding of their gradients up to full steps.
        if not name.endswith("k_proj.bias"):
            assert (value - small.trainable_state()[name]).abs().max() < 2e-5, name


def test_order_of_data_does_not_depend_on_workers_or_batches() -> None:
    curves = [run(method_of(), replace(CONFIG, workers=workers)).curve for workers in (0, 2)]
    assert curves[0] == curves[1]
    samples = TrainingSamples([(DISCS, "train")], 64, CONFIG)
    again = TrainingSamples([(DISCS, "train")], 64, CONFIG)
    for place in (13, 2, 13, 7):  # asked in any order
        one, other = samples[place], again[place]
        assert one["id"] == other["id"] and torch.equal(one["image"], other["image"])
        assert torch.equal(one["masks"], other["masks"])
        for field in ("boxes", "points"):
            first, second = getattr(one["prompts"], field), getattr(other["prompts"], field)
            assert (first is None and second is None) or torch.equal(first, second)


def test_the_loader_starts_its_processes_once_and_without_opencvs_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = training.DataLoader._get_iterator
    monkeypatch.setattr(training.DataLoader, "_get_iterator", lambda self: started.append(self) or start(self))
    monkeypatch.setattr(training, "tqdm", tqdm_asyncio)  # what tqdm.auto is in a notebook
    cv2.setNumThreads(2)
    run(method_of(), replace(CONFIG, workers=1, images=4))
    assert len(started) == 1
    assert cv2.getNumThreads() == 1  # with threads, a forked process that ends them waits for ever


def test_every_epoch_shows_every_picture_of_every_set_once() -> None:
    other = ListedSamples([disc_sample(number + 10) for number in range(2)], "other")
    samples = TrainingSamples([(DISCS, "train"), (other, "train")], 64, replace(CONFIG, images=22))
    everything = {f"listed/{id}" for id in DISCS.ids("train")} | {f"other/{id}" for id in other.ids("train")}
    epochs = [[samples[place]["id"] for place in range(first, first + 7)] for first in (0, 7, 14)]
    assert all(set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_one_batch_has_one_kind_of_prompt_and_kinds_take_turns() -> None:
    samples = TrainingSamples([(DISCS, "train")], 64, replace(CONFIG, images=40, prompts=("box", "point3", "none")))
    kinds = []
    for step in range(20):
        found = set()
        for sample in (samples[2 * step], samples[2 * step + 1]):
            prompts = sample["prompts"]
            assert len(prompts) == len(sample["masks"])
            found.add("box" if prompts.boxes is not None else "point" if prompts.points is not None else "none")
        assert len(found) == 1
        kinds += found
    assert set(kinds) == {"box", "point", "none"}


def test_each_image_can_have_a_kind_of_prompt_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("box", "point3", "mask")
    config = replace(CONFIG, images=6, batch_size=6, prompts=kinds, prompt_for_each="image", learning_rate=0.0)
    method = method_of()
    batch = [TrainingSamples([(DISCS, "train")], 64, config, mask_size=method.mask_size)[place] for place in range(6)]
    assert {sample["kind"] for sample in batch} == set(kinds)

    def loss(prediction: dict[str, Tensor], masks: Tensor, generator: object = None) -> Tensor:  # draws no points
        return losses.dice_loss(prediction["final"], losses.at_size(masks, prediction["final"])).mean()

    monkeypatch.setattr(method, "loss", loss)
    alone = [loss(method(sample["image"][None], sample["prompts"]), sample["masks"]) for sample in batch]
    counts = torch.tensor([len(sample["masks"]) for sample in batch])
    expected = (torch.stack(alone) * counts).sum() / counts.sum()
    assert run(method, config).curve[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_prompts_lie_on_the_augmented_masks() -> None:
    config = replace(CONFIG, augmentation="flip_jitter", prompts=("box+point5",), images=10)
    samples = TrainingSamples([(DISCS, "train")], 64, config)
    for place in range(10):
        sample = samples[place]
        for mask, box, points in zip(sample["masks"], sample["prompts"].boxes, sample["prompts"].points, strict=True):
            mask = mask[0] > 0.5
            assert all(mask[int(y), int(x)] for x, y in points)
            rows, columns = torch.where(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_augmented_masks_follow_their_picture() -> None:
    sample = disc_sample(0)
    flips = set()
    for number in range(12):
        for kind in ("flip", "flip_jitter"):
            image, masks = augment(sample.image, sample.masks, kind, [number], "key")
            assert image.shape == sample.image.shape and masks.shape == sample.masks.shape and masks.dtype == bool
            if masks.sum() > 20:
                assert image[masks[0]].mean() > image[~masks[0]].mean() + 40  # the disc is the bright part
            if kind == "flip":
                flips.add(bool((image == sample.image).all()))
            again, _ = augment(sample.image, sample.masks, kind, [number], "key")
            assert np.array_equal(again, image)
    assert flips == {True, False}
    small = np.zeros_like(sample.masks)
    small[:, 3, 5] = True  # a single pixel is still there when the picture is cut
    cut = [augment(sample.image, small, "flip_jitter", [number], "key", 1.5)[1] for number in range(30)]
    assert all(masks.any() for masks in cut) and len({masks.argmax() for masks in cut}) > 20
    assert augment(sample.image, sample.masks, "none", [0], "key")[0] is sample.image


@pytest.mark.parametrize("kind", ["none", "flip", "flip_jitter"])
def test_crops_are_augmented_as_planes_are(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = disc_sample(0)
    planes = np.concatenate([disc_sample(number).masks for number in range(3)])
    for number in range(6):
        monkeypatch.undo()
        image, expected = augment(sample.image, planes, kind, [number], "key")
        monkeypatch.setattr("samtune.data.sample.MOST_BYTES", 0)
        crops = CroppedMasks(cropped(planes), planes.shape[1:])
        same_image, found = augment(sample.image, crops, kind, [number], "key")
        assert isinstance(found, CroppedMasks) and np.array_equal(np.stack(list(found)), expected)
        assert np.array_equal(same_image, image)


def test_a_side_that_opencv_cannot_jitter_is_named() -> None:
    strip = np.zeros((2, 32_767, 3), np.uint8)
    with pytest.raises(InputError, match="set/a is 32767x2 pixels, .*up to 32,766 pixels a side: cut it"):
        augment(strip, np.ones((1, 2, 32_767), bool), "flip_jitter", [0], "set/a")
    image, masks = augment(strip[:, 1:], np.ones((1, 2, 32_766), bool), "flip_jitter", [0], "set/a")
    assert image.shape == (2, 32_766, 3) and masks.any()


def test_augmented_pictures_come_again_for_frozen_encoders_only() -> None:
    config = replace(CONFIG, images=30, copies=2)  # five pictures an epoch
    for fixed, pictures in ((True, 10), (False, 30)):
        samples = TrainingSamples([(DISCS, "train")], 64, config, fixed)
        assert len({samples[place]["image"].numpy().tobytes() for place in range(30)}) == pictures


def test_mask_prompts_have_the_size_of_the_models_own() -> None:
    method = method_of()
    assert method.sam.mask_size == 32 != method.sam.image_size // 4  # a finer grid than SAM's, as the nano SAM has
    train(method, [(DISCS, "train")], replace(CONFIG, images=2, prompts=("mask",)), progress=False)


def test_jitter_shrinks_to_a_tenth_of_sams_square_and_less_of_smaller_ones() -> None:
    least = {size: TrainingSamples([(DISCS, "train")], size, CONFIG).least_scale for size in (1024, 256, 64)}
    assert least == {1024: 0.1, 256: 0.4, 64: 0.5}


def test_one_copy_means_no_augmentation() -> None:
    plain = TrainingSamples([(DISCS, "train")], 64, replace(CONFIG, augmentation="none"))
    single = TrainingSamples([(DISCS, "train")], 64, replace(CONFIG, augmentation="flip_jitter", copies=1))
    assert all(torch.equal(plain[place]["image"], single[place]["image"]) for place in range(5))


def test_share_of_the_pictures_lies_in_larger_shares_whatever_the_seed() -> None:
    many = ListedSamples([disc_sample(number) for number in range(20)])

    def used(share: float, seed: int) -> set[str]:
        config = replace(CONFIG, images=40, train_share=share, seed=seed)
        samples = TrainingSamples([(many, "train")], 64, config)
        return {samples[place]["id"] for place in range(len(samples))}

    assert len(used(1.0, 0)) == 20 and len(used(0.5, 0)) == 10 and len(used(0.01, 0)) == 1
    assert used(0.25, 0) == used(0.25, 3) and used(0.25, 0) < used(0.5, 0)


def test_share_of_the_pictures_takes_whole_tiles() -> None:
    tiles = ListedSamples([replace(disc_sample(number), group=f"tile {number % 4}") for number in range(20)])
    samples = TrainingSamples([(tiles, "train")], 64, replace(CONFIG, images=40, train_share=0.5))
    ids = {samples[place]["id"] for place in range(len(samples))}
    assert len(ids) == 10 and len({int(id.split("/")[1]) % 4 for id in ids}) == 2


def test_no_more_objects_than_asked_for() -> None:
    masks = np.concatenate([disc_sample(number).masks for number in range(6)])
    many = ListedSamples([replace(disc_sample(0), masks=masks, object_class=())])
    counts = [
        len(TrainingSamples([(many, "train")], 64, replace(CONFIG, target="instances", objects=objects))[0]["masks"])
        for objects in (4, 9)
    ]
    assert counts == [4, 6]


# ---------------------------------------------------------------- the embedding cache


def test_cached_embeddings_train_as_fresh_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, cached, again = method_of(), method_of(), method_of()
    config = replace(CONFIG, images=24, copies=2)
    expected = [row["loss"] for row in run(fresh, config).curve]
    cache = EmbeddingCache(tmp_path)
    found = [row["loss"] for row in run(cached, config, cache=cache).curve]
    assert abs(found[0] - expected[0]) < 2e-3 and np.abs(np.subtract(found, expected)).max() < 0.05
    files = list(tmp_path.rglob("*.npy"))
    assert 0 < len(files) <= 5 * 2 and all(np.load(file).dtype == np.float16 for file in files)
    assert not list(tmp_path.rglob("*.partial"))

    def nothing_to_encode(images: Tensor) -> Tensor:
        raise AssertionError("encoded again")

    monkeypatch.setattr(again, "encode", nothing_to_encode)
    assert [row["loss"] for row in run(again, config, cache=EmbeddingCache(tmp_path)).curve] == found


def test_cache_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, cache, image = method_of(), EmbeddingCache(tmp_path), torch.randn(3, 64, 64)
    monkeypatch.setattr("samtune.embeddings.LEFT_FREE", float("inf"))
    without = cache.encode(method, [image, image], "cpu")
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr("samtune.embeddings.LEFT_FREE", 0)
    written = cache.encode(method, [image], "cpu")
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    read = cache.encode(method, [image], "cpu")
    assert torch.equal(written, read) and torch.allclose(without[:1], read, atol=1e-3)


def test_cache_gives_the_embeddings_up_to_half_precision(tmp_path: Path) -> None:
    method, cache = method_of(), EmbeddingCache(tmp_path)
    images = list(torch.randn(3, 3, 64, 64))
    with torch.no_grad():
        expected = method.encode(torch.stack(images))
    for _ in range(2):
        found = cache.encode(method, images, "cpu")
        assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-6, rtol=1e-3)
    assert torch.equal(cache.encode(method, images[::-1], "cpu"), found.flip(0))


def test_cache_never_takes_one_precision_for_another(tmp_path: Path) -> None:
    method, cache, image = method_of(), EmbeddingCache(tmp_path), torch.randn(3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        rough = cache.encode(method, [image], "cpu")
    assert not torch.equal(cache.encode(method, [image], "cpu"), rough)
    assert len(list(tmp_path.rglob("*.npy"))) == 2


def test_cache_never_takes_one_encoder_for_another(tmp_path: Path) -> None:
    cache, image = EmbeddingCache(tmp_path), torch.randn(3, 64, 64)
    methods = [build_method("decoder_tuning", small_sam(seed)) for seed in (0, 1, 0)]
    found = [cache.encode(method, [image], "cpu") for method in methods * 2]
    for method, embedding in zip(methods * 2, found, strict=True):
        with torch.no_grad():
            assert torch.allclose(embedding, method.encode(image[None]), atol=1e-6, rtol=1e-3)
    assert len(list(tmp_path.rglob("*.npy"))) == 2  # the third has the first one's weights


def test_cache_is_refused_for_a_method_that_trains_its_encoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lora trains its encoder"):
        EmbeddingCache(tmp_path).encode(method_of("lora"), [torch.randn(3, 64, 64)], "cpu")
    with_cache, without = method_of("lora"), method_of("lora")
    run(with_cache, cache=EmbeddingCache(tmp_path))
    run(without)
    assert same(with_cache.trainable_state(), without.trainable_state()) and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- failures


def test_loss_that_is_no_number_stops_with_the_ids() -> None:
    class Broken(DecoderTuning):
        calls = 0

        def loss(self, prediction: dict, masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
            self.calls += 1
            return super().loss(prediction, masks, generator) * (float("nan") if self.calls == 3 else 1.0)

    method, samples = Broken(small_sam()), TrainingSamples([(DISCS, "train")], 64, CONFIG)
    with pytest.raises(FloatingPointError, match="loss is nan at step 2") as error:
        run(method)
    assert all(samples[place]["id"] in str(error.value) for place in (4, 5))
    assert all(torch.isfinite(value).all() for value in method.trainable_state().values())


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
        MemoryError("out of memory"),
    ],
    ids=["card", "machine", "python"],
)
def test_out_of_memory_says_what_was_tried_and_what_to_set(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of()

    def fail(*arguments: object) -> None:
        raise raised

    monkeypatch.setattr(method, "decode", fail)
    with pytest.raises(InputError) as error:
        run(method, replace(CONFIG, accumulate=3))
    for part in ("out of memory", "batch_size 2, 64 px", "set batch_size 1 and accumulate 6"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_to_save_memory_the_encoders_blocks_keep_nothing_and_learn_the_same() -> None:
    def trained(save_memory: bool) -> tuple[dict[str, Tensor], int]:
        """The weights, and how many numbers the encoder keeps for a backward pass."""
        method, sizes = method_of("lora"), []
        run(method, replace(CONFIG, save_memory=save_memory))
        images = torch.zeros(1, 3, method.image_size, method.image_size)
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
            method.encode(images)
        return method.trainable_state(), sum(sizes)

    (plain, all_kept), (lean, kept) = trained(False), trained(True)
    assert kept < all_kept / 3
    assert all(torch.equal(value, lean[name]) for name, value in plain.items())


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of()

    def fail(*arguments: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(method, "decode", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(method)


def test_nothing_to_train_or_to_train_on() -> None:
    with pytest.raises(InputError, match="zero_shot has nothing to train"):
        run(method_of("zero_shot"))
    with pytest.raises(InputError, match="nothing to train on: nobody train has no images"):
        train(method_of(), [(ListedSamples([], "nobody"), "train")], CONFIG, progress=False)
    empty = ListedSamples([replace(disc_sample(0), masks=np.zeros((0, 48, 64), bool))])
    with pytest.raises(InputError, match="every mask is empty"):
        train(method_of(), [(empty, "train")], CONFIG, progress=False)


@pytest.mark.parametrize(
    ("field", "known"), [("schedule", "slow_start"), ("augmentation", "flip_jitter"), ("optimiser", "adamw")]
)
def test_unknown_options_list_the_known_ones(field: str, known: str) -> None:
    with pytest.raises(InputError, match=f"unknown {field} '{known}s'; known: {known}"):
        TrainingConfig(images=1, **{field: f"{known}s"})


def test_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    run(method_of("lora"), folder=tmp_path)
    with pytest.raises(InputError, match=r"last\.pt does not fit"):
        run(method_of("decoder_tuning"), folder=tmp_path)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1", "cpu"])
def test_training_runs_on_the_card_that_is_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert training._accelerator(device, "fp32", 1).device == torch.device(device)
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="in one process, but WORLD_SIZE is 2: start it without torchrun"):
        run(method_of())


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(tmp_path, monkeypatch)
    with pytest.raises(
        InputError, match="last.pt is of another training .learning_rate .*, now 1e-05; seed .*, now 7.:"
    ):
        run(method_of(), replace(CONFIG, learning_rate=1e-5, seed=7), folder=tmp_path)
    state = torch.load(path, weights_only=True)
    del state["config"]  # as earlier versions wrote it
    torch.save(state, path)
    run(method_of(), replace(CONFIG, workers=1), folder=tmp_path)


# ---------------------------------------------------------------- checkpoints of other machines, and damaged ones


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a run that was stopped at its fifth step."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(5, patched)
        run(method_of(), folder=folder)
    return folder / "last.pt"


def test_a_run_of_a_card_goes_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = method_of()
    run(whole)
    with monkeypatch.context() as patched:  # torch notes with each tensor where it was
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = stopped(tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=True)
    resumed = method_of(seed=1)
    run(resumed, folder=tmp_path)
    assert same(resumed.trainable_state(), whole.trainable_state())


def test_a_run_begun_in_another_precision_says_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(tmp_path, monkeypatch)
    assert run(method_of(), folder=tmp_path).precision == "fp32"
    state = torch.load(path, weights_only=True)
    state["result"]["precision"] = "bf16"
    torch.save(state, path)
    assert run(method_of(), folder=tmp_path).precision == "bf16, then fp32"


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no such file"]
)
def test_a_damaged_checkpoint_is_named_in_one_line(damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(tmp_path, monkeypatch)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="checkpoint.*; remove that file to begin anew$") as error:
        run(method_of(), folder=tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
