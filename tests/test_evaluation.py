"""The evaluation: exact numbers for hand-made predictions, what is dropped, no effect of order or batch size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor

from samtune.common.errors import InputError
from samtune.data.sample import CroppedMasks, Sample, cropped
from samtune.embeddings import EmbeddingCache
from samtune.evaluation import (
    EvaluationConfig,
    LazyMasks,
    evaluate,
    model_prompts,
    objects_of,
    predict_classical,
    predict_everything,
    predict_truth,
    predict_with,
)
from samtune.methods import build_method
from samtune.methods.classical import ellipse
from samtune.prompts import Prompts, make_prompts
from samtune.sam.preprocess import Preprocess
from small_sam import ListedSamples, disc_sample, official_twin, small_sam

CONFIG = EvaluationConfig(target="instances", metrics=("iou", "dice"))


def rectangle(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """True from (top, left) up to, not including, (bottom, right)."""
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def sample_of(id: str, *masks: np.ndarray, classes: tuple[str, ...] = (), ignore: np.ndarray | None = None) -> Sample:
    image = np.zeros((24, 32, 3), np.uint8)
    return Sample(id, "listed", "test", image, np.array(masks, bool).reshape(-1, 24, 32), ignore, classes)


def logits_of(*masks: np.ndarray) -> Tensor:
    """Hand-made predictions as logits `(N, 1, H, W)`."""
    return torch.from_numpy(np.array(masks, bool))[:, None].float() * 10 - 5


def boxes_filled(samples: list[Sample], prompts: list[Prompts]) -> list[dict[str, Tensor]]:
    """Predicts the box, filled."""
    answers = []
    for sample, own in zip(samples, prompts, strict=True):
        masks = [
            rectangle(int(y0), int(x0), int(y1) + 1, int(x1) + 1, sample.image.shape[:2])
            for x0, y0, x1, y1 in own.boxes
        ]
        answers.append({"final": logits_of(*masks)})
    return answers


def test_a_prompt_an_object_against_the_union() -> None:
    """Filled boxes of two apart rectangles are right one by one; a box around both is a third wrong."""
    left, right = rectangle(2, 2, 10, 8), rectangle(2, 14, 10, 20)
    config = replace(CONFIG, target="union", metrics=("iou",))
    for data in (ListedSamples([sample_of("a", left, right)]), ListedSamples([sample_of("a", left | right)])):
        together, _ = evaluate(boxes_filled, data, config, progress=False)
        apart, _ = evaluate(boxes_filled, data, replace(config, per_object=True), progress=False)
        assert together["iou"].tolist() == pytest.approx([12 / 18]) and apart["iou"].tolist() == [1.0]


def test_objects_are_the_parts_of_a_class_or_the_instances_themselves() -> None:
    left, right, below = rectangle(2, 2, 10, 8), rectangle(2, 14, 10, 20), rectangle(14, 2, 20, 20)
    classes = sample_of("a", left | right, below, classes=("dent", "stain"))
    assert np.array_equal(objects_of(classes), [left, right, below])
    for names in (("cell", "cell"), ()):
        instances = sample_of("b", left | right, below, classes=names)
        assert np.array_equal(objects_of(instances), [left | right, below])


def test_rows_are_exact_for_a_hand_made_prediction() -> None:
    first, second = rectangle(2, 4, 6, 12), rectangle(10, 10, 20, 20)
    data = ListedSamples([sample_of("a", first, second, classes=("dent", "stain")), sample_of("b", first)])

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[dict[str, Tensor]]:
        moved, nothing = rectangle(2, 6, 6, 14), np.zeros_like(first)
        answers = {
            "a": {"final": logits_of(moved, second), "draft": logits_of(nothing, rectangle(10, 10, 20, 15))},
            "b": {"final": logits_of(first), "draft": logits_of(rectangle(2, 4, 6, 13))},
        }
        return [answers[sample.id] for sample in samples]

    rows, dropped = evaluate(predict, data, CONFIG, progress=False)
    assert list(rows.columns) == [
        "image", "group", "object", "object_class", "area", "box_w", "box_h", "output", "iou", "dice",
    ]  # fmt: skip
    by = rows.set_index(["image", "object", "output"])
    assert len(rows) == 6 and not any(dropped.values())
    # Moved by 2 of 8 columns: 24 pixels in common of 40; Dice 48 / 64.
    expected = {
        ("a", 0, "final"): (0.6, 0.75), ("a", 1, "final"): (1, 1), ("a", 0, "draft"): (0, 0),
        ("a", 1, "draft"): (0.5, 2 / 3), ("b", 0, "final"): (1, 1), ("b", 0, "draft"): (32 / 36, 64 / 68),
    }  # fmt: skip
    for place, numbers in expected.items():
        assert by.loc[place, ["iou", "dice"]].tolist() == pytest.approx(numbers, abs=1e-12), place
    assert by.loc[("a", 0, "final"), ["area", "box_w", "box_h", "object_class"]].tolist() == [32, 8, 4, "dent"]
    assert by.loc[("a", 1, "draft"), ["area", "box_w", "box_h", "object_class"]].tolist() == [100, 10, 10, "stain"]
    assert by.loc[("b", 0, "final"), "object_class"] == ""


def test_union_is_one_object_an_image() -> None:
    data = ListedSamples([sample_of("a", rectangle(2, 4, 6, 12), rectangle(10, 10, 20, 20), classes=("x", "y"))])
    rows, _ = evaluate(boxes_filled, data, replace(CONFIG, target="union"), progress=False)
    assert len(rows) == 1 and rows.loc[0, "area"] == 132 and rows.loc[0, "object_class"] == ""
    assert rows.loc[0, "iou"] == pytest.approx(132 / (18 * 16))


def test_ignored_pixels_count_for_nothing() -> None:
    truth, ignore = rectangle(2, 4, 6, 12), rectangle(2, 8, 6, 32)
    data = ListedSamples([sample_of("a", truth, ignore=ignore)])

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[dict[str, Tensor]]:
        return [{"final": logits_of(rectangle(2, 6, 6, 30))}]

    rows, _ = evaluate(predict, data, CONFIG, progress=False)
    assert rows.loc[0, "iou"] == pytest.approx(0.5)


def test_what_cannot_be_prompted_is_dropped_and_counted() -> None:
    small, large = rectangle(0, 0, 3, 20), rectangle(5, 5, 15, 16)
    nothing = np.zeros_like(small)
    data = ListedSamples(
        [
            sample_of("a", small, large, nothing, classes=("thin", "fat", "none")),
            sample_of("b"),
            sample_of("c", nothing),
            sample_of("d", small),
            sample_of("e", large),
        ]
    )
    rows, dropped = evaluate(boxes_filled, data, replace(CONFIG, min_side=10), progress=False)
    assert dropped == {"images without a mask": 2, "empty masks": 2, "objects below min_side": 2}
    assert rows[["image", "object_class", "area"]].values.tolist() == [["a", "fat", 110], ["e", "", 110]]
    rows, dropped = evaluate(boxes_filled, data, replace(CONFIG, batch_size=1), progress=False)
    assert dropped == {"images without a mask": 2, "empty masks": 2, "objects below min_side": 0}
    assert rows[["image", "object_class"]].values.tolist() == [["a", "thin"], ["a", "fat"], ["d", ""], ["e", ""]]
    assert (rows["iou"] == 1).all()


@pytest.mark.parametrize("side", [10, 11])
def test_min_side_takes_a_box_of_just_that_many_pixels(side: int) -> None:
    data = ListedSamples([sample_of("a", rectangle(5, 5, 15, 16)), sample_of("b", rectangle(0, 0, 20, 20))])
    rows, dropped = evaluate(boxes_filled, data, replace(CONFIG, min_side=side), progress=False)
    assert dropped["objects below min_side"] == (side == 11) and ("a" in set(rows["image"])) == (side == 10)


def test_nothing_left_is_an_error() -> None:
    data = ListedSamples([sample_of("a"), sample_of("b")], "hollow")
    with pytest.raises(InputError, match="hollow test: no image with a mask among 2"):
        evaluate(boxes_filled, data, CONFIG, progress=False)


def test_best_of_three_is_the_best_by_the_truth() -> None:
    truth = rectangle(4, 4, 12, 12)
    guesses = [rectangle(4, 4, 12, 8), rectangle(4, 4, 12, 11), rectangle(0, 0, 20, 20)]
    data = ListedSamples([sample_of("a", truth)])

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[dict[str, Tensor]]:
        three = logits_of(*guesses).transpose(0, 1)
        return [{"final": three[:, :1], "best_of_3": three}]

    rows, _ = evaluate(predict, data, CONFIG, progress=False)
    scores = rows.set_index("output")["iou"]
    assert scores["final"] == pytest.approx(0.5) and scores["best_of_3"] == pytest.approx(7 / 8)


def test_only_the_first_images_are_measured() -> None:
    data = ListedSamples([disc_sample(number) for number in range(5)])
    rows, _ = evaluate(boxes_filled, data, replace(CONFIG, max_images=2), progress=False)
    assert rows["image"].tolist() == ["000", "001"]


# ---------------------------------------------------------------- a network's predictions

DISCS = [disc_sample(number, *size) for number, size in enumerate([(48, 64), (64, 48), (40, 40), (33, 90), (48, 64)])]


def jumbled(samples: list[Sample]) -> ListedSamples:
    """The samples in another order, each with more company than before."""
    return ListedSamples([samples[3], disc_sample(20), samples[0], samples[4], disc_sample(21), samples[2], samples[1]])


@pytest.mark.parametrize("prompt", ["box", "point5", "mask", "none", "box+point1"])
@pytest.mark.parametrize("preprocess", ["pad", "stretch"])
def test_no_number_depends_on_order_company_or_batch_size(prompt: str, preprocess: str) -> None:
    config = replace(CONFIG, prompt=prompt, preprocess=preprocess, metrics=("iou", "mae"))
    method = build_method("zero_shot", small_sam())
    tables = []
    for data, batch_size in ((ListedSamples(DISCS), 2), (jumbled(DISCS), 3)):
        own = replace(config, batch_size=batch_size)
        rows, _ = evaluate(predict_with(method, own), data, own, progress=False)
        tables.append(rows.set_index("image").loc[[sample.id for sample in DISCS], ["area", "iou", "mae"]])
    assert (tables[0]["area"] == tables[1]["area"]).all()
    assert np.abs(tables[0] - tables[1]).to_numpy().max() < 1e-3
    assert tables[0]["mae"].nunique() == len(DISCS)


def test_prompts_depend_on_sample_and_seed_alone() -> None:
    seen: dict[int, dict[str, list]] = {}

    def predict(samples: list[Sample], prompts: list[Prompts]) -> list[dict[str, Tensor]]:
        for sample, own in zip(samples, prompts, strict=True):
            seen.setdefault(run, {})[sample.id] = own.points.tolist()
        return [{"final": logits_of(*sample.masks)} for sample in samples]

    config = replace(CONFIG, prompt="point5", batch_size=2)
    for run, (data, seed) in enumerate([(ListedSamples(DISCS), 0), (jumbled(DISCS), 0), (ListedSamples(DISCS), 1)]):
        evaluate(predict, data, replace(config, seed=seed, batch_size=run + 1), progress=False)
    assert all(seen[1][id] == points for id, points in seen[0].items())
    assert all(seen[2][id] != points for id, points in seen[0].items())
    # A generated picture, whose id names its original's set, is prompted as the original.
    run, made = 3, ListedSamples([replace(one, id=f"listed/{one.id}") for one in DISCS], "generated:0123")
    evaluate(predict, made, config, progress=False)
    assert {id.removeprefix("listed/"): points for id, points in seen[3].items()} == seen[0]


def test_prompts_of_one_picture_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.concatenate([disc_sample(number).masks for number in range(5)])
    many = ListedSamples([replace(disc_sample(0), masks=masks, object_class=())])
    method, config = build_method("zero_shot", small_sam()), replace(CONFIG, metrics=("mae",))
    tables = []
    for size in (64, 2):
        monkeypatch.setattr("samtune.sam.decode.PROMPTS_A_PASS", size)
        rows, _ = evaluate(predict_with(method, config), many, config, progress=False)
        tables.append(rows["mae"].to_numpy())
    assert len(tables[0]) == 5 and np.abs(tables[0] - tables[1]).max() < 1e-5


def test_objects_of_few_pixels_leave_the_masks_of_their_neighbours_alone() -> None:
    sizes = [(5, 5, 7, 7), (2, 2, 20, 20), (10, 25, 11, 26), (3, 22, 6, 24)]  # 4, 324, 1 and 6 pixels
    masks = [rectangle(*size) for size in sizes]
    config = replace(CONFIG, prompt="point10", metrics=("mae",))
    ask = predict_with(build_method("zero_shot", small_sam()), config)
    prompts = make_prompts("point10", np.array(masks), "key")
    together = ask([sample_of("a", *masks)], [prompts])[0]["final"]
    for index, mask in enumerate(masks):
        own = prompts[index : index + 1].by_clicks()[0][1]
        alone = ask([sample_of("a", mask)], [own])[0]["final"]
        assert own.labels.shape == (1, min(10, mask.sum())) and (together[index] - alone[0]).abs().max() < 1e-5


def test_masks_are_kept_where_no_metric_needs_logits() -> None:
    method = build_method("zero_shot", small_sam())
    prompts = [make_prompts("box", DISCS[0].masks, "key")]
    answers = [
        predict_with(method, replace(CONFIG, metrics=metrics))(DISCS[:1], prompts)[0]["final"]
        for metrics in (("iou", "dice"), ("iou", "mae"))
    ]
    assert answers[0].dtype == torch.bool and torch.equal(answers[0], answers[1] > 0)
    asked = replace(CONFIG, metrics=("mae",))
    with pytest.raises(ValueError, match="mae needs logits"):
        evaluate(predict_with(method, CONFIG), ListedSamples(DISCS), asked, progress=False)


def test_multimask_adds_the_best_of_three_and_leaves_final_alone() -> None:
    method = build_method("zero_shot", small_sam())
    config = replace(CONFIG, prompt="point1", metrics=("iou",))
    alone, _ = evaluate(predict_with(method, config), ListedSamples(DISCS), config, progress=False)
    config = replace(config, multimask=True)
    three, _ = evaluate(predict_with(method, config), ListedSamples(DISCS), config, progress=False)
    assert set(three["output"]) == {"final", "best_of_3"} and set(alone["output"]) == {"final"}
    assert np.allclose(three[three["output"] == "final"]["iou"], alone["iou"])
    answers = predict_with(method, config)(DISCS[:1], [make_prompts("point1", DISCS[0].masks, "listed/000")])[0]
    assert answers["final"].shape == (1, 1, 48, 64) and answers["best_of_3"].shape == (1, 3, 48, 64)
    overlaps = [
        (guess & DISCS[0].masks[0]).sum() / (guess | DISCS[0].masks[0]).sum()
        for guess in (answers["best_of_3"][0] > 0).numpy()
    ]
    first = three[(three["image"] == "000") & (three["output"] == "best_of_3")]["iou"].item()
    assert first == pytest.approx(max(overlaps))


def test_multimask_is_refused_where_a_method_has_passes_of_its_own() -> None:
    with pytest.raises(InputError, match="own decoder alone, and spt has passes of its own"):
        predict_with(build_method("spt", small_sam()), replace(CONFIG, multimask=True))


@pytest.mark.parametrize(("changes", "message"), [
    ({"metrics": ("iuo",)}, "unknown metric of masks 'iuo'; known: iou"), ({"prompt": "boxx"}, "prompt"),
])  # fmt: skip
def test_what_is_not_known_is_refused_at_once(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EvaluationConfig(**changes)


def test_cached_embeddings_give_the_same_up_to_half_precision(tmp_path: Path) -> None:
    method = build_method("zero_shot", small_sam())
    config = replace(CONFIG, metrics=("mae",))
    plain, _ = evaluate(predict_with(method, config), ListedSamples(DISCS), config, progress=False)
    cache = EmbeddingCache(tmp_path)
    for keep in (None, 100, 0, None):  # bytes of each file: a damaged one is encoded anew
        for path in tmp_path.rglob("*.npy") if keep is not None else ():
            path.write_bytes(path.read_bytes()[:keep])
        cached, _ = evaluate(predict_with(method, config, cache), ListedSamples(DISCS), config, progress=False)
        assert np.abs(cached["mae"] - plain["mae"]).max() < 5e-3
    assert len(list(tmp_path.rglob("*.npy"))) == len(DISCS)
    lora = build_method("lora", small_sam())
    evaluate(predict_with(lora, config, EmbeddingCache(tmp_path / "lora")), ListedSamples(DISCS), config, False)
    assert not (tmp_path / "lora").exists()


def test_everything_mode_takes_segment_anythings_masks_by_predicted_iou_and_by_the_truth() -> None:
    method = build_method("zero_shot", small_sam())
    config = replace(CONFIG, prompt="none", metrics=("iou",), everything=3, preprocess="pad")
    rows, _ = evaluate(predict_everything(method, config), ListedSamples(DISCS), config, progress=False)
    generator = SamAutomaticMaskGenerator(
        official_twin(small_sam()), 3, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    for sample in DISCS[:3]:
        found = generator.generate(sample.image)
        overlaps = [
            (one["segmentation"] & sample.masks[0]).sum() / (one["segmentation"] | sample.masks[0]).sum()
            for one in found
        ]
        surest = overlaps[int(np.argmax([one["predicted_iou"] for one in found]))]
        scores = rows[rows["image"] == sample.id].set_index("output")["iou"]
        assert scores["best_by_truth"] == pytest.approx(max(overlaps), abs=1e-3)
        assert scores["final"] == pytest.approx(surest, abs=1e-3)


def test_everything_mode_sees_the_picture_as_the_cell_says() -> None:
    """Stretched to the square and back: a picture of twice the width has the square's masks, twice as wide."""
    method = build_method("zero_shot", small_sam())
    config = replace(CONFIG, prompt="none", metrics=("mae",), everything=2, preprocess="stretch")  # needs logits
    wide = replace(DISCS[0], image=DISCS[0].image.repeat(2, axis=1), masks=DISCS[0].masks.repeat(2, axis=2))
    nothing = [Prompts(torch.zeros(1, dtype=torch.int64))]
    with torch.no_grad():
        square, stretched = (predict_everything(method, config)([one], nothing)[0] for one in (DISCS[0], wide))
    for output in ("final", "best_by_truth"):
        for one, other in zip(stretched[output][0], square[output][0], strict=True):
            assert ((one > 0) == (other > 0).repeat_interleave(2, dim=-1)).float().mean() > 0.96
    assert stretched["final"][0][0].abs().max() == 20


def test_one_kind_of_prompt_after_another_encodes_a_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build_method("lora", small_sam())
    config = replace(CONFIG, metrics=("mae",))
    expected = {}
    for prompt in ("box", "point1"):
        own = replace(config, prompt=prompt)
        expected[prompt] = evaluate(predict_with(method, own), ListedSamples(DISCS), own, progress=False)[0]
    encoded = []
    encode = method.encode
    monkeypatch.setattr(method, "encode", lambda images: encoded.extend(images) or encode(images))
    known: dict = {}
    for prompt in ("box", "point1"):
        own = replace(config, prompt=prompt)
        found, _ = evaluate(predict_with(method, own, known=known), ListedSamples(DISCS), own, progress=False)
        assert np.array_equal(found["mae"], expected[prompt]["mae"])
    assert len(encoded) == len(DISCS) == len(known)


def test_threads_change_neither_rows_nor_errors() -> None:
    method = build_method("lora", small_sam())
    tables = []
    for workers in (0, 3):
        config = replace(CONFIG, batch_size=2, workers=workers)
        tables.append(evaluate(predict_with(method, config), ListedSamples(DISCS), config, progress=False)[0])
    assert tables[0].equals(tables[1])
    with pytest.raises(ValueError, match="mae needs logits"):
        wrong = replace(config, metrics=("mae",))
        evaluate(predict_with(method, config), ListedSamples(DISCS), wrong, progress=False)


def test_box_noise_moves_jittered_boxes_and_no_others() -> None:
    boxes: dict[tuple, np.ndarray] = {}

    def remember(samples, prompts):
        boxes[place] = np.concatenate([prompt.boxes.numpy() for prompt in prompts])
        return [{"final": torch.zeros(len(s.masks), 1, *s.image.shape[:2])} for s in samples]

    for place in (("box", 0.1), ("box", 0.4), ("box_jitter", 0.1), ("box_jitter", 0.4)):
        config = replace(CONFIG, prompt=place[0], box_noise=place[1], metrics=("iou",), batch_size=99)
        evaluate(remember, ListedSamples(DISCS), config, progress=False)
    assert np.array_equal(boxes["box", 0.1], boxes["box", 0.4])
    small, large = (np.abs(boxes["box_jitter", noise] - boxes["box", 0.1]).mean() for noise in (0.1, 0.4))
    assert 0 < small < large


def test_out_of_memory_says_what_was_tried_and_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build_method("zero_shot", small_sam())

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(method, "encode", fail)
    config = replace(CONFIG, batch_size=4)
    with pytest.raises(InputError, match="in prediction at batch_size 4, 64 px, .* 90 px: set batch_size 2"):
        evaluate(predict_with(method, config), ListedSamples(DISCS), config, progress=False)
    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", fail)
    with pytest.raises(InputError, match="in everything mode with 4 points a side, 64x64 px: set a smaller backbone"):
        predict = predict_everything(method, replace(config, everything=4))
        evaluate(predict, ListedSamples(DISCS), config, progress=False)


# ---------------------------------------------------------------- mask prompts, and the baselines without a network


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (40, 120), (64, 64)])
@pytest.mark.parametrize("mode", ["pad", "stretch"])
def test_mask_prompt_lies_where_the_picture_does(size: tuple[int, int], mode: str) -> None:
    y, x = np.mgrid[: size[0], : size[1]]
    mask = ((y / size[0] - 0.5) ** 2 + (x / size[1] - 0.4) ** 2 < 0.1)[None]
    preprocess = Preprocess(64, mode)
    low = Preprocess(256, mode).inner_size(*size)
    moved = model_prompts(make_prompts("mask", mask, "key", low_resolution=low), preprocess, size, 32).masks
    assert moved.shape == (1, 1, 32, 32) and set(moved.unique().tolist()) <= {-8.0, 8.0}
    there = preprocess.masks(mask, 32)[0, 0] > 0.5
    found = moved[0, 0] > 0
    assert (found & there).sum() / (found | there).sum() > 0.7  # its edges are noisy
    height, width = Preprocess(32, mode).inner_size(*size)
    assert not found[height:].any() and not found[:, width:].any()


def test_mask_prompt_drawn_at_its_own_size_is_not_resampled() -> None:
    """A picture whose sides are rounded otherwise at 1,024 pixels than at 256."""
    mask = np.random.default_rng(0).random((1, 298, 400)) > 0.5
    low = Preprocess(256).inner_size(298, 400)
    given = make_prompts("mask", mask, "key", low_resolution=low)
    moved = model_prompts(given, Preprocess(1024), (298, 400), 256).masks
    assert low != tuple(side // 4 for side in Preprocess(1024).inner_size(298, 400))
    assert torch.equal(moved[:, :, : low[0], : low[1]], given.masks)


def test_mask_prompt_of_a_very_long_picture() -> None:
    long = Sample("long", "listed", "test", np.zeros((12, 400, 3), np.uint8), rectangle(2, 50, 9, 300, (12, 400))[None])
    config = replace(CONFIG, prompt="mask", preprocess="pad", metrics=("iou",))
    rows, _ = evaluate(
        predict_with(build_method("zero_shot", small_sam()), config), ListedSamples([long]), config, progress=False
    )
    assert len(rows) == 1


@pytest.mark.parametrize("mode", ["pad", "stretch"])
def test_truth_at_mask_size_keeps_what_the_grid_holds(mode: str) -> None:
    """Squares of four pixels on a grid of a quarter stay whole; lines of a pixel come back four wide, or not at all."""
    config = replace(CONFIG, preprocess=mode, mask_size=16, metrics=("iou", "mae"))
    masks = np.zeros((3, 64, 64), bool)
    masks[0, 16:48, 8:24] = True
    masks[1, 32] = True
    masks[2, 32:35, :32] = True
    samples = [Sample(f"{i}", "listed", "test", np.zeros((64, 64, 3), np.uint8), masks[i][None]) for i in range(3)]
    rows, _ = evaluate(predict_truth(config), ListedSamples(samples), config, progress=False)
    assert set(rows["output"]) == {"at_mask_size"}
    whole, line, thick = rows["iou"]
    assert whole > 0.97 and line == 0  # covered by a quarter: below a half
    assert 0.5 < thick < 0.9
    assert rows["mae"][0] < 0.05  # as sure of its pixels as a mask is


def test_ellipse_and_grabcut_are_measured_like_a_network() -> None:
    rows, _ = evaluate(predict_classical("ellipse"), ListedSamples(DISCS), CONFIG, progress=False)
    mask, row = DISCS[0].masks[0], rows.iloc[0]
    columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    guess = ellipse([columns[0], lines[0], columns[-1], lines[-1]], *mask.shape)
    assert row["iou"] == pytest.approx((guess & mask).sum() / (guess | mask).sum())
    assert (rows["iou"] > 0.9).all()  # discs are ellipses
    cut, _ = evaluate(predict_classical("grabcut"), ListedSamples(DISCS[:2]), CONFIG, progress=False)
    assert (cut["iou"] > 0.9).all()
    with pytest.raises(InputError, match="grabcut needs a box"):
        evaluate(predict_classical("grabcut"), ListedSamples(DISCS), replace(CONFIG, prompt="point1"), progress=False)
    with pytest.raises(InputError, match="unknown classical baseline 'watershed'; known: "):
        predict_classical("watershed")


@pytest.mark.parametrize("per_object", [False, True])
@pytest.mark.parametrize("metrics", [("iou", "boundary_iou"), ("mae",)])
def test_pictures_of_very_many_objects_are_measured_the_same(
    per_object: bool, metrics: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As crops, and predicted an object at a time: the same numbers as with a plane an object."""
    masks = np.concatenate([disc_sample(number).masks for number in range(5)])
    sample = replace(disc_sample(0), masks=masks, object_class=())
    asked = replace(CONFIG, metrics=metrics, target="union" if per_object else "instances", per_object=per_object)
    ask = predict_with(build_method("zero_shot", small_sam()), asked)
    planes, _ = evaluate(ask, ListedSamples([sample]), asked, progress=False)
    monkeypatch.setattr("samtune.evaluation.MOST_BYTES", 0)
    if not per_object:
        sample = replace(sample, masks=CroppedMasks(cropped(masks), masks.shape[1:]))
    few, _ = evaluate(ask, ListedSamples([sample]), asked, progress=False)
    assert len(planes) == (1 if per_object else 5) and planes.equals(few)
    late = ask([sample], [make_prompts("box", masks, "key")])[0]["final"]
    assert isinstance(late, LazyMasks) and len(late) == 5
