"""Metrics: values worked out by hand, and medpy, MONAI, PySODMetrics, scikit-image and plain code beside them."""

import math
import zlib

import numpy as np
import py_sod_metrics
import pytest
import torch
from medpy.metric import binary as medpy
from monai.metrics import SSIMMetric, compute_dice, compute_hausdorff_distance, compute_iou
from scipy.ndimage import binary_erosion, gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from samtune import metrics


def rectangle(top: int, left: int, bottom: int, right: int, height: int = 40, width: int = 60) -> np.ndarray:
    """True in rows top..bottom-1 and columns left..right-1."""
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def blob_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Ragged masks of several parts, some touching the image's border, and a disturbed copy of each."""
    random = np.random.default_rng(2)
    pairs = []
    for height, width in ((50, 70), (64, 64), (33, 90), (128, 40)):
        field = gaussian_filter(random.standard_normal((height, width)), 4)
        other = field + 0.4 * gaussian_filter(random.standard_normal((height, width)), 3)
        pairs.append((other > 0.06, field > 0.06))
    return pairs


def soft_map(truth: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(zlib.crc32(truth.tobytes()))
    return np.clip(gaussian_filter(truth.astype(float), 2) + 0.1 * random.standard_normal(truth.shape), 0, 1)


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


EMPTY = np.zeros((40, 60), bool)


def test_iou_and_dice_by_hand() -> None:
    first, second = rectangle(0, 0, 4, 5), rectangle(2, 1, 6, 5)  # 20 and 16 pixels, 8 in common
    assert metrics.iou(first, second) == 8 / 28
    assert metrics.dice(first, second) == 16 / 36


@pytest.mark.parametrize("metric", [metrics.iou, metrics.dice, metrics.boundary_iou])
def test_overlaps_of_empty_equal_and_disjoint_masks(metric) -> None:
    mask = rectangle(5, 5, 20, 30)
    assert metric(mask, mask) == 1
    assert metric(EMPTY, mask) == metric(mask, EMPTY) == metric(mask, rectangle(25, 35, 30, 50)) == 0
    assert metric(EMPTY, EMPTY) == 1


def test_iou_and_dice_equal_monai_and_medpy() -> None:
    for prediction, truth in blob_pairs():
        assert metrics.iou(prediction, truth) == pytest.approx(compute_iou(batch(prediction), batch(truth)).item())
        assert metrics.dice(prediction, truth) == pytest.approx(compute_dice(batch(prediction), batch(truth)).item())
        assert metrics.dice(prediction, truth) == pytest.approx(medpy.dc(prediction, truth))


def test_boundary_iou_by_hand() -> None:
    # 30 x 40: diagonal 50, so one erosion. Truth 10 x 10: ring of 36. Prediction one column to the right.
    truth, prediction = rectangle(10, 10, 20, 20, 30, 40), rectangle(10, 11, 20, 21, 30, 40)
    # Rings: top and bottom rows share columns 11..19 (18 pixels); the sides share nothing else: truth's right column
    # (19) and prediction's left column (11) meet the other's rows only at top and bottom.
    assert metrics.boundary_iou(prediction, truth) == 18 / (36 + 36 - 18)
    # 10 x 10: 2% of the diagonal is nothing, so one erosion all the same. Rings of 12, which share 3 + 3 pixels.
    truth, prediction = rectangle(2, 2, 6, 6, 10, 10), rectangle(2, 3, 6, 7, 10, 10)
    assert metrics.boundary_iou(prediction, truth) == 6 / (12 + 12 - 6)


def test_the_images_border_bounds_an_object() -> None:
    full = np.ones((30, 40), bool)
    # One erosion: the band is the frame, 2 * 40 + 2 * 28 = 136 pixels; a mask without its outer ring has none there.
    inner = rectangle(1, 1, 29, 39, 30, 40)
    assert metrics.boundary_iou(full, inner) == 0
    assert metrics.boundary_iou(full, full) == 1
    half = rectangle(0, 0, 30, 20, 30, 40)  # band 2 * 20 + 2 * 28 = 96, of it in the frame 20 + 20 + 28 = 68
    assert metrics.boundary_iou(full, half) == 68 / (136 + 96 - 68)


@pytest.mark.parametrize("scale", [1, 4])
def test_boundary_iou_equals_plain_erosion(scale: int) -> None:
    for prediction, truth in blob_pairs():
        prediction, truth = (np.kron(mask, np.ones((scale, scale), bool)) for mask in (prediction, truth))
        times = max(1, int(round(0.02 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))))
        bands = [m & ~binary_erosion(m, np.ones((3, 3)), times, border_value=0) for m in (prediction, truth)]
        expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
        assert metrics.boundary_iou(prediction, truth) == pytest.approx(expected, abs=1e-12)


def test_hd95_by_hand() -> None:
    # One pixel against a row of 20 beginning there: distances 0 one way; 0..19 the other.
    dot, line = rectangle(10, 10, 11, 11), rectangle(10, 10, 11, 30)
    assert metrics.hd95_strict(dot, line) == pytest.approx(np.percentile(range(20), 95))  # 18.05
    assert metrics.hd95_transunet(dot, line) == pytest.approx(np.percentile([0, *range(20)], 95))  # 18
    assert metrics.hd95_strict(line, line) == metrics.hd95_transunet(line, line) == 0
    assert metrics.hd95_strict(dot, rectangle(13, 14, 14, 15)) == 5  # 3-4-5 triangle


def test_a_missed_object_counts_the_diagonal_strictly_and_nothing_for_transunet() -> None:
    truth = rectangle(5, 5, 20, 30)
    diagonal = math.sqrt(40**2 + 60**2)
    assert metrics.hd95_strict(EMPTY, truth) == metrics.hd95_strict(truth, EMPTY) == diagonal
    assert metrics.hd95_transunet(EMPTY, truth) == metrics.hd95_transunet(truth, EMPTY) == 0
    assert metrics.hd95_strict(EMPTY, EMPTY) == metrics.hd95_transunet(EMPTY, EMPTY) == 0


def test_hd95_equals_medpy_pooled_and_monai_strict() -> None:
    apart = 0
    for prediction, truth in blob_pairs():
        pooled, strict = metrics.hd95_transunet(prediction, truth), metrics.hd95_strict(prediction, truth)
        assert pooled == pytest.approx(medpy.hd95(prediction, truth))
        peer = compute_hausdorff_distance(batch(prediction), batch(truth), include_background=True, percentile=95)
        assert strict == pytest.approx(peer.item(), rel=1e-5)
        apart += pooled != strict
    assert apart >= 2  # the two rules are different rules


def test_both_kinds_of_hd95_measure_the_distances_once() -> None:
    metrics._distances.cache_clear()
    for prediction, truth in (pairs := blob_pairs()):
        metrics.hd95_transunet(prediction, truth), metrics.hd95_strict(prediction, truth)
    known = metrics._distances.cache_info()
    assert known.hits == known.misses == len(pairs)


@pytest.mark.parametrize(
    ("name", "peer", "read"),
    [
        ("s_measure", py_sod_metrics.Smeasure, lambda result: result["sm"]),
        ("e_measure_max", py_sod_metrics.Emeasure, lambda result: result["em"]["curve"].max()),
        ("e_measure_mean", py_sod_metrics.Emeasure, lambda result: result["em"]["curve"].mean()),
        ("e_measure_adaptive", py_sod_metrics.Emeasure, lambda result: result["em"]["adp"]),
        ("weighted_f", py_sod_metrics.WeightedFmeasure, lambda result: result["wfm"]),
        ("mae", py_sod_metrics.MAE, lambda result: result["mae"]),
    ],
)
def test_map_metrics_equal_pysodmetrics_on_8_bit_pictures(name, peer, read) -> None:
    for _, truth in blob_pairs():
        grey = np.round(soft_map(truth) * 255).astype(np.uint8)
        assert grey.min() == 0 and grey.max() == 255  # so that their stretching changes nothing
        metric = peer()
        metric.step(grey, truth.astype(np.uint8) * 255)
        assert metrics.METRICS[name](grey / 255, truth) == pytest.approx(read(metric.get_results()), abs=1e-12)


def test_weighted_f_and_s_measure_of_a_perfect_map() -> None:
    truth = rectangle(10, 10, 30, 40)
    assert metrics.weighted_f(truth, truth) == pytest.approx(1)
    assert metrics.s_measure(truth, truth) == pytest.approx(1)
    assert metrics.e_measure_adaptive(truth, truth) == pytest.approx(1, abs=1e-3)
    assert metrics.weighted_f(EMPTY, truth) == pytest.approx(0)


def test_s_measure_of_an_object_at_the_far_edge_is_a_number() -> None:
    truth = np.zeros((20, 20), bool)
    truth[:, -1] = True  # right of its centre there is no pixel
    assert metrics.s_measure(truth.astype(float), truth) == pytest.approx(1, abs=1e-3)
    assert 0 < metrics.s_measure(np.full((20, 20), 0.3), truth) < 0.7


def test_maps_are_not_stretched() -> None:
    truth = rectangle(10, 10, 30, 40)
    assert metrics.mae(np.where(truth, 0.6, 0.4), truth) == pytest.approx(0.4)


def test_mae_by_hand() -> None:
    truth = rectangle(0, 0, 1, 2, 2, 2)
    assert metrics.mae(np.array([[1.0, 0.5], [0.25, 0.0]]), truth) == (0.5 + 0.25) / 4


def pictures() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    first = gaussian_filter(random.uniform(0, 255, (40, 50, 3)), (2, 2, 0))
    first = (first - first.min()) / np.ptp(first) * 255
    second = np.clip(first + random.normal(0, 12, first.shape), 0, 255)
    return first.astype(np.uint8), second.astype(np.uint8)


def test_psnr_by_hand_and_by_scikit_image() -> None:
    first, second = pictures()
    shifted = np.full((8, 8, 3), 100, np.uint8)
    assert metrics.psnr(shifted, shifted + np.uint8(5)) == pytest.approx(10 * math.log10(255**2 / 25))
    assert metrics.psnr(first, second) == pytest.approx(peak_signal_noise_ratio(second, first, data_range=255))
    assert metrics.psnr(first / 255, second / 255) == pytest.approx(metrics.psnr(first, second))
    assert metrics.psnr(first, first) == math.inf


def test_ssim_equals_monai() -> None:
    first, second = (torch.from_numpy(p).double().permute(2, 0, 1)[None] for p in pictures())
    peer = SSIMMetric(2, data_range=255.0, win_size=11, kernel_sigma=1.5)(first, second).item()
    assert 0.3 < peer < 0.98
    assert metrics.ssim(*pictures()) == pytest.approx(peer, abs=1e-4)
    assert metrics.ssim(pictures()[0], pictures()[0]) == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_ignored_pixels_do_not_count(name: str) -> None:
    prediction, truth = blob_pairs()[0]
    prediction = soft_map(truth) if name in metrics.MAP_METRICS else prediction
    metric = metrics.METRICS[name]
    ignore = np.zeros(truth.shape, bool)
    assert metric(prediction, truth, ignore) == metric(prediction, truth)
    ignore[:, :20] = True
    changed_prediction, changed_truth = prediction.copy(), truth.copy()
    changed_prediction[:, :20] = 1
    changed_truth[:, :20] = truth[::-1, :20]
    assert metric(changed_prediction, changed_truth, ignore) == pytest.approx(metric(prediction, truth, ignore))
    assert metric(changed_prediction, changed_truth) != pytest.approx(metric(prediction, truth))


def test_box_iou_is_that_of_the_boxes_around_all_parts() -> None:
    corners = rectangle(0, 0, 1, 1) | rectangle(3, 4, 4, 5)  # two pixels that span 4 rows and 5 columns
    assert metrics.box_iou(corners, rectangle(0, 0, 4, 5)) == 1
    assert metrics.box_iou(corners, rectangle(0, 0, 2, 5)) == 0.5
    assert metrics.box_iou(corners, EMPTY) == 0 and metrics.box_iou(EMPTY, EMPTY) == 1


def test_ignored_pixels_are_cut_from_masks_and_left_out_of_the_mean() -> None:
    first, second = rectangle(0, 0, 4, 5), rectangle(2, 1, 6, 5)
    ignore = rectangle(0, 0, 2, 60)  # takes 10 pixels of the first, none of the second
    assert metrics.iou(first, second, ignore) == 8 / (10 + 16 - 8)
    truth, wrong = rectangle(0, 0, 1, 2, 2, 2), np.array([[1.0, 0.5], [0.25, 0.0]])
    assert metrics.mae(wrong, truth, np.array([[False, True], [False, False]])) == 0.25 / 3


@pytest.mark.parametrize("name", sorted(metrics.MASK_METRICS))
def test_mask_metrics_are_symmetric_and_know_no_side(name: str) -> None:
    metric = metrics.MASK_METRICS[name]
    for prediction, truth in blob_pairs():
        value = metric(prediction, truth)
        assert metric(truth, prediction) == pytest.approx(value)
        assert metric(prediction[:, ::-1], truth[:, ::-1]) == pytest.approx(value)
        assert metric(prediction.T, truth.T) == pytest.approx(value)
        assert metric(torch.from_numpy(prediction), torch.from_numpy(truth)) == value


@pytest.mark.parametrize("name", sorted(metrics.MASK_METRICS))
def test_logits_or_another_size_are_refused_as_masks(name: str) -> None:
    with pytest.raises(ValueError, match="bool"):
        metrics.MASK_METRICS[name](EMPTY.astype(float), EMPTY)
    with pytest.raises(ValueError, match="one size"):
        metrics.MASK_METRICS[name](EMPTY, EMPTY[:-1])


@pytest.mark.parametrize("name", sorted(metrics.MAP_METRICS))
def test_maps_beyond_zero_to_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metrics.MAP_METRICS[name](np.full((40, 60), 1.5), EMPTY)
    with pytest.raises(ValueError, match="bool"):
        metrics.MAP_METRICS[name](np.zeros((40, 60)), EMPTY.astype(np.uint8))


def test_pictures_of_two_types_are_refused() -> None:
    first, second = pictures()
    with pytest.raises(ValueError, match="one type"):
        metrics.psnr(first, second / 255)


def test_size_classes_are_cocos() -> None:
    areas = (1, 1023, 1024, 9215, 9216, 10**6)
    assert [metrics.size_class(a) for a in areas] == ["small", "small", "medium", "medium", "large", "large"]
