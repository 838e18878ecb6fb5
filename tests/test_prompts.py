"""Prompts against torchvision, SAM's own transforms, a plain noisy mask, and what must not change them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from scipy.stats import chisquare
from segment_anything.modeling import PromptEncoder
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops import masks_to_boxes

from samtune.common.errors import InputError
from samtune.prompts import KINDS, Prompts, correction_points, large_parts, make_prompts, noisy_masks


def blobs(count: int = 5, height: int = 60, width: int = 90) -> np.ndarray:
    random = np.random.default_rng(3)
    rows, columns = np.mgrid[:height, :width]
    masks = []
    for _ in range(count):
        y, x, radius = random.uniform(15, height - 15), random.uniform(15, width - 15), random.uniform(4, 14)
        masks.append((rows - y) ** 2 + (columns - x) ** 2 < radius**2)
    return np.stack(masks)


def test_box_by_hand_ends_on_the_last_foreground_pixel() -> None:
    mask = np.zeros((1, 8, 10), bool)
    mask[0, 2:5, 3:9] = True
    assert make_prompts("box", mask, "a").boxes.tolist() == [[3, 2, 8, 4]]


def test_boxes_equal_torchvision() -> None:
    masks = blobs()
    assert torch.equal(make_prompts("box", masks, "a").boxes, masks_to_boxes(torch.from_numpy(masks)))


def test_box_touching_every_border() -> None:
    assert make_prompts("box", np.ones((1, 4, 7), bool), "a").boxes.tolist() == [[0, 0, 6, 3]]


def test_jitter_moves_centre_by_half_and_side_by_whole_noise_at_most() -> None:
    masks = np.repeat(blobs(1, 200, 200), 300, axis=0)
    tight, moved = make_prompts("box", masks, "a").boxes, make_prompts("box_jitter", masks, "a", box_noise=0.2).boxes
    side = tight[:, 2:] - tight[:, :2]
    centre_shift = ((moved[:, 2:] + moved[:, :2]) - (tight[:, 2:] + tight[:, :2])) / 2 / side
    side_change = (moved[:, 2:] - moved[:, :2]) / side - 1
    for share, limit in ((centre_shift, 0.1), (side_change, 0.2)):
        assert limit * 0.9 < share.abs().max() <= limit + 1e-5
        assert share.mean().abs() < 4 * limit / np.sqrt(3 * share.numel())  # uniform around 0
    assert torch.equal(make_prompts("box_jitter", masks, "a", box_noise=0.0).boxes, tight)
    usual = make_prompts("box_jitter", masks, "a").boxes  # as in HQ-SAM's script
    assert torch.equal(usual, make_prompts("box_jitter", masks, "a", box_noise=0.1).boxes)


def test_jittered_box_stays_in_the_image() -> None:
    boxes = make_prompts("box_jitter", np.ones((50, 20, 30), bool), "a", box_noise=0.9).boxes
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 29 and boxes[:, 3].max() <= 19


def test_points_are_distinct_foreground_pixels() -> None:
    masks = blobs()
    prompts = make_prompts("point10", masks, "a")
    assert prompts.points.dtype == torch.float32 and (prompts.labels == 1).all()
    for mask, points in zip(masks, prompts.points.long().tolist(), strict=True):
        assert len({tuple(point) for point in points}) == 10
        assert all(mask[y, x] for x, y in points)


def test_every_foreground_pixel_is_as_likely() -> None:
    mask = np.zeros((1, 5, 6), bool)
    mask[0, 1:3, 2:6] = True
    drawn = [tuple(make_prompts("point1", mask, str(key)).points[0, 0].tolist()) for key in range(1600)]
    counts = [drawn.count((x, y)) for y in (1, 2) for x in (2, 3, 4, 5)]
    assert sum(counts) == 1600 and chisquare(counts).pvalue > 1e-3


def test_fewer_pixels_than_points_gives_padding() -> None:
    mask = np.zeros((1, 9, 9), bool)
    mask[0, 4, 2:5] = True
    prompts = make_prompts("point5", mask, "a")
    assert prompts.labels.tolist() == [[1, 1, 1, -1, -1]]
    assert sorted(prompts.points[0, :3].tolist()) == [[2, 4], [3, 4], [4, 4]]


def test_centre_click_is_farthest_from_the_edge_and_the_border_is_an_edge() -> None:
    mask = np.zeros((2, 20, 30), bool)
    mask[0, 2:9, 3:10] = True  # 7 x 7: its middle
    mask[0, 2:4, 10:25] = True  # and a thin tail
    mask[1, :9, :5] = True  # in a corner: columns 0-4, rows 0-8
    prompts = make_prompts("point_centre", mask, "a")
    assert prompts.points[0].tolist() == [[6, 5]] and prompts.labels.tolist() == [[1], [1]]
    assert prompts.points[1, 0, 0] == 2 and 2 <= prompts.points[1, 0, 1] <= 6
    for blob, (x, y) in zip(blobs(), make_prompts("point_centre", blobs(), "a").points[:, 0].long(), strict=True):
        distance = distance_transform_edt(np.pad(blob, 1))[1:-1, 1:-1]
        assert distance[y, x] == pytest.approx(distance.max(), abs=1e-3)
    assert make_prompts("box+point_centre", mask, "a").boxes is not None
    with pytest.raises(InputError):
        make_prompts("point5+point_centre", mask, "a")


def test_points_nest_across_kinds() -> None:
    masks = blobs()
    ten = make_prompts("point10", masks, "a").points
    assert torch.equal(make_prompts("point1", masks, "a").points, ten[:, :1])
    assert torch.equal(make_prompts("box+point5", masks, "a").points, ten[:, :5])


@pytest.mark.parametrize("kind", ["box_jitter", "point5", "mask"])
def test_prompts_depend_on_seed_key_and_object_alone(kind: str) -> None:
    masks = blobs()

    def values(masks: np.ndarray, key: str = "a", seed: int = 0) -> torch.Tensor:
        prompts = make_prompts(kind, masks, key, seed, low_resolution=(32, 32))
        return next(v for v in (prompts.boxes, prompts.points, prompts.masks) if v is not None)

    first = values(masks)
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(values(masks), first)
    assert torch.equal(values(masks[:2]), first[:2])
    assert not torch.equal(values(masks, key="b"), first)
    assert not torch.equal(values(masks, seed=1), first)


def test_noisy_mask_equals_plain_formula() -> None:
    masks = blobs(3, 120, 200)
    seeds = range(3)
    ours = noisy_masks(masks, (64, 48), (0.0, 1.0), [np.random.default_rng(seed) for seed in seeds])
    for index in seeds:
        clean = F.interpolate(torch.from_numpy(masks[index]).float()[None, None], (64, 48), mode="bilinear")
        again = F.interpolate(F.interpolate(clean, (8, 6), mode="bilinear"), (64, 48), mode="bilinear")
        noise = torch.from_numpy(np.random.default_rng(index).standard_normal((64, 48), dtype=np.float32))
        expected = (clean + noise * ((clean - again).abs() >= 0.01).float() > 0.5).float()
        assert torch.equal(ours[index], expected[0])
    assert (ours != noisy_masks(masks, (64, 48), (0.0, 1.0), [np.random.default_rng(9)] * 3)).any()


def test_mask_prompt_is_clean_away_from_edges_and_takes_its_values() -> None:
    mask = np.zeros((1, 256, 256), bool)
    mask[0, :, :128] = True
    low = make_prompts("mask", mask, "a", low_resolution=(64, 64), mask_values=(-3.0, 5.0)).masks[0, 0]
    assert set(low.unique().tolist()) == {-3.0, 5.0}
    assert (low[:, :20] == 5).all() and (low[:, 44:] == -3).all()
    edge = (low[:, 30:34] == 5).float().mean()
    assert 0.3 < edge < 0.7 and (low[:, 30:32] == -3).any()  # noise of std 1 flips many pixels at the edge
    usual = make_prompts("mask", mask, "a", low_resolution=(64, 64)).masks[0, 0]
    assert torch.equal(usual, torch.where(low == 5, 8.0, -8.0))


def test_none_has_prompts_without_content() -> None:
    prompts = make_prompts("none", blobs(3), "a")
    assert len(prompts) == 3
    assert prompts.boxes is None and prompts.points is None and prompts.masks is None


def test_combination_holds_all_parts() -> None:
    masks = blobs()
    prompts = make_prompts("box+point1+mask", masks, "a", low_resolution=(16, 16))
    assert torch.equal(prompts.boxes, make_prompts("box", masks, "a").boxes)
    assert torch.equal(prompts.masks, make_prompts("mask", masks, "a", low_resolution=(16, 16)).masks)
    assert prompts.points.shape == (5, 1, 2)


def test_no_masks_give_no_prompts() -> None:
    for kind in KINDS:
        assert len(make_prompts(kind, np.zeros((0, 8, 8), bool), "a", low_resolution=(4, 4))) == 0


@pytest.mark.parametrize("kind", ["boxes", "point0", "point", "none+box", "box+box_jitter", "point1+point5", ""])
def test_unknown_or_contradicting_kind_is_named(kind: str) -> None:
    with pytest.raises(InputError, match="prompt"):
        make_prompts(kind, blobs(), "a")


def test_unknown_kind_lists_the_nearest_first() -> None:
    with pytest.raises(InputError, match="known: box_jitter"):
        make_prompts("box_jiter", blobs(), "a")


def test_empty_mask_is_an_input_error_naming_sample_and_object() -> None:
    masks = blobs()
    masks[3] = False
    with pytest.raises(InputError, match=r"tiles/7.*object 3"):
        make_prompts("box", masks, "tiles/7")


def test_mask_prompt_needs_a_size() -> None:
    with pytest.raises(ValueError, match="low_resolution"):
        make_prompts("mask", blobs(), "a")


def test_scaled_equals_sams_own_transform() -> None:
    masks = blobs(height=60, width=90)
    transform, scale = ResizeLongestSide(1024), 1024 / 90
    height = int(60 * scale + 0.5)
    prompts = make_prompts("box+point5", masks, "a")
    moved = prompts.scaled(1024 / 90, height / 60)
    assert torch.allclose(moved.points, transform.apply_coords_torch(prompts.points, (60, 90)))
    assert torch.allclose(moved.boxes, transform.apply_boxes_torch(prompts.boxes, (60, 90)))


def test_concatenate_pads_clicks_and_keeps_images() -> None:
    masks = blobs()
    joined = Prompts.concatenate([make_prompts(f"point{k}", masks[:2], "a").at_image(k) for k in (1, 3)])
    assert joined.image_index.tolist() == [1, 1, 3, 3]
    assert joined.labels.tolist() == [[1, -1, -1]] * 2 + [[1, 1, 1]] * 2
    assert torch.equal(joined[2:].points, make_prompts("point3", masks[:2], "a").points)
    assert torch.equal(joined[joined.image_index == 1].points[:, :1], make_prompts("point1", masks[:2], "a").points)


def test_concatenate_refuses_mixed_kinds() -> None:
    masks = blobs()
    with pytest.raises(ValueError, match="boxes"):
        Prompts.concatenate([make_prompts("box", masks, "a"), make_prompts("point1", masks, "a")])
    with pytest.raises(ValueError, match="points"):
        Prompts.concatenate([make_prompts("none", masks, "a"), make_prompts("point1", masks, "a")])
    with pytest.raises(ValueError, match="nothing"):
        Prompts.concatenate([])


def test_shapes_are_checked() -> None:
    index = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="boxes"):
        Prompts(index, boxes=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="together"):
        Prompts(index, points=torch.zeros(2, 1, 2))
    with pytest.raises(ValueError, match="masks"):
        Prompts(index, masks=torch.zeros(2, 8, 8))


def test_padded_masks_grow_right_and_down() -> None:
    prompts = make_prompts("mask", np.ones((1, 30, 40), bool), "a", low_resolution=(3, 4))
    grown = prompts.with_padded_masks(4, 4, -8.0).masks
    assert grown.shape == (1, 1, 4, 4) and (grown[..., 3, :] == -8).all()
    assert torch.equal(grown[..., :3, :], prompts.masks)


def test_sams_prompt_encoder_takes_every_kind() -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(32, (8, 8), (128, 128), 8)
    masks = blobs()
    tokens = {"box": 2, "point5": 6, "box+point1": 3, "mask": 0}  # points alone get one padding token
    for kind, count in tokens.items():
        prompts = make_prompts(kind, masks, "a", low_resolution=(32, 32))
        points = None if prompts.points is None else (prompts.points, prompts.labels)
        sparse, dense = encoder(points, prompts.boxes, prompts.masks)
        assert sparse.shape == (5, count, 32) and dense.shape == (5, 32, 8, 8)


def test_click_lies_in_the_error_and_is_labelled_by_side() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 1, 12, 17, generator=generator)
    truth = torch.rand(200, 1, 12, 17, generator=generator) > 0.5
    points, labels = correction_points(logits, truth, generator)
    assert points.shape == (200, 1, 2) and labels.shape == (200, 1)
    for mask, target, (x, y), label in zip(logits, truth, points[:, 0].long().tolist(), labels[:, 0], strict=True):
        assert (mask[0, y, x] > 0) != target[0, y, x]
        assert label == target[0, y, x]
    assert 0.4 < labels.float().mean() < 0.6


def test_click_is_uniform_over_the_error() -> None:
    truth = torch.zeros(1, 4, 5, dtype=torch.bool)
    truth[0, 1:3, 1:4] = True
    prediction = truth.clone()
    prediction[0, 0, :] = True
    prediction[0, 2, 3] = False
    wrong = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (3, 2)]
    many, generator = (3000, 4, 5), torch.Generator().manual_seed(1)
    points, _ = correction_points(prediction.expand(many), truth.expand(many), generator)
    drawn = [tuple(point) for point in points[:, 0].long().tolist()]
    counts = [drawn.count(place) for place in wrong]
    assert sum(counts) == 3000 and chisquare(counts).pvalue > 1e-3


def test_click_without_error() -> None:
    truth = torch.zeros(2, 6, 6, dtype=torch.bool)
    truth[0, 2, 3] = True
    points, labels = correction_points(truth.clone(), truth, torch.Generator().manual_seed(0))
    assert points[0].tolist() == [[3, 2]] and labels.tolist() == [[1], [0]]


def test_click_goes_to_the_centre_of_the_pixel_in_model_pixels() -> None:
    truth = torch.zeros(1, 8, 8)
    truth[0, 5, 2] = 1
    points, _ = correction_points(torch.full((1, 8, 8), -1.0), truth, stride=4)
    assert points.tolist() == [[[9.5, 21.5]]]  # pixel 2 covers 8..11, pixel 5 covers 20..23


def test_clicks_join_a_mask_and_older_clicks() -> None:
    masks = blobs()
    prompts = make_prompts("box", masks, "a")
    logits = torch.zeros(5, 1, 16, 16)
    once = prompts.with_points(torch.ones(5, 1, 2), torch.ones(5, 1, dtype=torch.int64)).with_masks(logits)
    twice = once.with_points(torch.zeros(5, 1, 2), torch.zeros(5, 1, dtype=torch.int64))
    assert twice.labels.tolist() == [[1, 0]] * 5 and twice.points.shape == (5, 2, 2)
    assert twice.masks is logits and torch.equal(twice.boxes, prompts.boxes)


def test_parts_below_the_share_go_and_the_rest_stays() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8] = True  # 36 pixels
    mask[12:14, 12:14] = True  # 4 of 41: 9.8%
    mask[14, 14] = True  # touches only at a corner: a part of its own
    kept = {share: large_parts(mask, share).sum() for share in (0.0, 0.05, 0.1, 0.5, 0.95)}
    assert kept == {0.0: 41, 0.05: 40, 0.1: 36, 0.5: 36, 0.95: 0}
    assert np.array_equal(large_parts(mask, 0.1)[2:8, 2:8], np.ones((6, 6), bool))
    one = mask & (np.arange(20) < 9)
    assert large_parts(one, 0.5) is one and not large_parts(np.zeros((5, 5), bool), 0.5).any()


def test_prompts_by_clicks_are_all_of_them_without_padding() -> None:
    labels = torch.tensor([[1, -1, 0], [-1, -1, -1], [1, 1, 0], [-1, 1, 0]])
    points = torch.arange(24).view(4, 3, 2).float()
    prompts = Prompts(torch.arange(4), torch.arange(16).view(4, 4).float(), points, labels)
    groups = prompts.by_clicks()
    assert [positions.tolist() for positions, _ in groups] == [[1], [0, 3], [2]]
    nothing, two, three = (group for _, group in groups)
    assert nothing.points is None and nothing.labels is None and nothing.boxes.tolist() == [[4, 5, 6, 7]]
    assert two.labels.tolist() == [[1, 0], [1, 0]] and two.image_index.tolist() == [0, 3]
    assert two.points.tolist() == [[[0, 1], [4, 5]], [[20, 21], [22, 23]]]
    assert torch.equal(three.points, points[2:3]) and torch.equal(three.labels, labels[2:3])
    (whole,) = Prompts(torch.arange(3)).by_clicks()
    assert whole[0].tolist() == [0, 1, 2] and len(whole[1]) == 3
