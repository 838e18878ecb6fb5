"""Metrics of one mask, probability map or image at the original resolution; each docstring states its convention.

Every function in `METRICS` is called as `metric(prediction, truth, ignore=None)` and returns a float:

- `MASK_METRICS`: two masks, bool `(H, W)`.
- `MAP_METRICS`: probabilities in [0, 1] `(H, W)` and a bool mask.

`psnr` and `ssim` compare two images `(H, W, 3)` and are not in `METRICS`.

Torch tensors on the CPU are taken too. `ignore`, bool `(H, W)`, is true where nothing is scored: those pixels are set
to background in prediction and truth first, so that the edge of the ignored area becomes an edge of both.

`evaluate` leaves out images without foreground in the truth, and counts them. What a metric gives on an empty mask
nevertheless is in its docstring. Wrong shapes or types raise `ValueError`.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from scipy.spatial import cKDTree

from samtune.data.sample import box_around

SQUARE = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def iou(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Intersection over union; 1 if both masks are empty, 0 if one is."""
    prediction, truth = _masks(prediction, truth, ignore)
    return _iou(prediction, truth)


def dice(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Dice, 2 |A and B| / (|A| + |B|), no smoothing; 1 if both masks are empty, 0 if one is.

    (PraNet's script, whose rows stand in the polyp table of SAM-SP's paper, takes the mean over all thresholds of a
    map. TransUNet's script gives 1 to a prediction where the truth is empty, and 0 to two empty masks. `evaluate`
    leaves such images out.)
    """
    prediction, truth = _masks(prediction, truth, ignore)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else 1.0


def boundary_iou(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """IoU of the masks' inner boundary bands (Cheng et al. 2021, the authors' code; SPT and ASAM score so).

    A band is the mask minus its erosion by a 3 x 3 square, repeated max(1, round(0.02 * image diagonal)) times. The
    image is padded with one pixel of zeros, so that its border bounds objects. 1 if both bands are empty, 0 if one is.
    """
    size = np.shape(truth)
    prediction, truth = _masks(prediction, truth, ignore)
    iterations = max(1, round(0.02 * math.hypot(*size)))
    return _iou(_band(prediction, SQUARE, iterations), _band(truth, SQUARE, iterations))


def box_iou(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """IoU of the tight boxes around the two masks: how good a box prompt the prediction would make.

    1 if both masks are empty, 0 if one is.
    """
    prediction, truth = _masks(prediction, truth, ignore)
    return _iou(_filled_box(prediction), _filled_box(truth))


def hd95_transunet(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """95% Hausdorff distance by the rule of TransUNet and SAMed, in pixels.

    It pools the surface distances of both directions and takes the 95th percentile (medpy's `hd95`). If a mask is empty
    the distance is 0, so that missing an object IMPROVES the mean: read it beside `hd95_strict`. The surface is those
    pixels of the mask of which one of 4 neighbours is outside the mask or the image.
    """
    prediction, truth = _masks(prediction, truth, ignore)
    if not (prediction.any() and truth.any()):
        return 0.0
    return float(np.percentile(np.concatenate(_surface_distances(prediction, truth)), 95))


def hd95_strict(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """95% Hausdorff distance, strict: in pixels.

    It takes the larger of the two directions' 95th percentiles (MONAI). If one mask is empty, the distance is the
    image's diagonal, sqrt(H^2 + W^2); if both are, it is 0. Surface as in `hd95_transunet`.
    """
    size = np.shape(truth)
    prediction, truth = _masks(prediction, truth, ignore)
    if not (prediction.any() and truth.any()):
        return math.hypot(*size) if prediction.any() or truth.any() else 0.0
    return float(max(np.percentile(distances, 95) for distances in _surface_distances(prediction, truth)))


def s_measure(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """S-measure (Fan et al. 2017, alpha 0.5) by PySODMetrics, on probabilities without rescaling.

    This holds for all map metrics here. The field's scripts read 8-bit images and stretch each to [0, 1] first, which
    hides a map that is certain of nothing. Ignored pixels count as background in prediction and truth.
    """
    return float(_sod_metric("Smeasure", prediction, truth, ignore)["sm"])


def e_measure_max(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """E-measure (Fan et al. 2018) by PySODMetrics, at the best of 256 thresholds FOR THIS IMAGE.

    Its mean over images is at least the usual "max E", for which one threshold is chosen for the whole set. Ignored
    pixels count as background in prediction and truth.
    """
    return float(_sod_metric("Emeasure", prediction, truth, ignore)["em"]["curve"].max())


def e_measure_mean(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """E-measure by PySODMetrics, mean over 256 thresholds. Ignored pixels count as background."""
    return float(_sod_metric("Emeasure", prediction, truth, ignore)["em"]["curve"].mean())


def e_measure_adaptive(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """E-measure by PySODMetrics at twice the map's mean (at most 1). Ignored pixels count as background."""
    return float(_sod_metric("Emeasure", prediction, truth, ignore)["em"]["adp"])


def weighted_f(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Weighted F-measure (Margolin et al. 2014, beta 1) by PySODMetrics; 0 if the truth is empty.

    Ignored pixels count as background in prediction and truth.
    """
    return float(_sod_metric("WeightedFmeasure", prediction, truth, ignore)["wfm"])


def mae(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Mean absolute error of the probabilities over the pixels that are not ignored."""
    prediction, truth, scored = _map(prediction, truth, ignore)
    return float(np.abs(prediction - truth)[scored].mean())


def psnr(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error over all channels; infinite for equal images.

    The peak is 255 for uint8 and 1 for float images.
    """
    prediction, truth, peak = _images(prediction, truth)
    error = np.square(prediction - truth).mean()
    return float(10 * np.log10(peak**2 / error)) if error else math.inf


def ssim(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels (sigma 1.5), mean over the channels.

    By scikit-image, without sample covariance. Windows that reach beyond the image are left out. Images need at least
    11 pixels a side.
    """
    from skimage.metrics import structural_similarity

    prediction, truth, peak = _images(prediction, truth)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    _, similarity = structural_similarity(prediction, truth, data_range=peak, full=True, **options)
    return float(similarity[5:-5, 5:-5].ravel().mean())


Metric = Callable[..., float]
MASK_METRICS: dict[str, Metric] = {
    function.__name__: function for function in (iou, boundary_iou, dice, box_iou, hd95_transunet, hd95_strict)
}
MAP_METRICS: dict[str, Metric] = {
    function.__name__: function
    for function in (s_measure, e_measure_max, e_measure_mean, e_measure_adaptive, weighted_f, mae)
}
METRICS: dict[str, Metric] = MASK_METRICS | MAP_METRICS


def size_class(area: int) -> str:
    """COCO's size class of an object: "small" below 32^2 foreground pixels at the original resolution, "medium" below
    96^2, else "large".
    """
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def _masks(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Both masks, checked, with ignored pixels set to background, cropped to the box around their union.

    All outside is background, so that areas, boundary bands and surfaces are those of the whole image.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(f"masks must be bool, not {prediction.dtype} and {truth.dtype}")
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"masks must be (H, W) of one size, not {prediction.shape} and {truth.shape}")
    if ignore is not None:
        scored = ~np.asarray(ignore, bool)
        prediction, truth = prediction & scored, truth & scored
    boxes = [box for box in (box_around(prediction), box_around(truth)) if box[0].stop]
    sides = zip(*boxes, strict=True) if boxes else [(slice(0, 0),)] * 2
    window = tuple(slice(min(one.start for one in side), max(one.stop for one in side)) for side in sides)
    return prediction[window], truth[window]


def _iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def _filled_box(mask: np.ndarray) -> np.ndarray:
    """The tight box around a mask, as a mask: all between its first and last row and column."""
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    between = [np.logical_or.accumulate(line) & np.logical_or.accumulate(line[::-1])[::-1] for line in (rows, columns)]
    return np.outer(*between)


def _band(mask: np.ndarray, kernel: np.ndarray, iterations: int) -> np.ndarray:
    """The pixels that `iterations` erosions remove from a mask; outside the image is zero."""
    padded = np.pad(mask.view(np.uint8), 1)
    return mask & (cv2.erode(padded, kernel, iterations=iterations)[1:-1, 1:-1] == 0)


def _surface_distances(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each surface pixel to the other mask's surface, in both directions; no mask may be empty.

    The last ones are remembered: both kinds of HD95 ask for them.
    """
    masks = np.stack([prediction, truth])
    return _distances(masks.tobytes(), masks.shape)


@lru_cache(maxsize=2)
def _distances(masks: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.argwhere(_band(mask, CROSS, 1)) for mask in np.frombuffer(masks, bool).reshape(shape))
    return cKDTree(second).query(first)[0], cKDTree(first).query(second)[0]


def _map(
    prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checked float64 probabilities, bool truth, both 0 where ignored; and bool: where they are scored."""
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth)
    if truth.dtype != bool or prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"expected maps (H, W) and a bool truth, not {prediction.shape}, {truth.shape} {truth.dtype}")
    if not (prediction.min() >= 0 and prediction.max() <= 1):
        raise ValueError(f"probabilities must lie in [0, 1], not {prediction.min()} to {prediction.max()}")
    scored = np.ones(truth.shape, bool) if ignore is None else ~np.asarray(ignore, bool)
    return prediction * scored, truth & scored, scored


def _sod_metric(name: str, prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> dict:
    import py_sod_metrics  # takes seconds to import, and few runs need it

    prediction, truth, _ = _map(prediction, truth, ignore)
    metric = getattr(py_sod_metrics, name)()
    if name == "Smeasure":  # beside an object at the far edge there are quarters without a pixel: of no weight, not NaN
        ssim = metric.ssim
        metric.ssim = lambda prediction, truth: ssim(prediction, truth) if truth.size else 0.0
    metric.step(prediction, truth, normalize=False)
    return metric.get_results()


def _images(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Two checked float64 images, and the peak value."""
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim != 3 or prediction.dtype != truth.dtype:
        raise ValueError(
            f"expected pictures (H, W, 3) of one type, not {prediction.shape} {prediction.dtype} "
            f"and {truth.shape} {truth.dtype}"
        )
    peak = 255.0 if truth.dtype == np.uint8 else 1.0
    return prediction.astype(np.float64), truth.astype(np.float64), peak
