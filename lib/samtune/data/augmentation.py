"""What training images go through, with their masks: flip, large-scale jitter, and for a rival of ASAM much more."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torchvision.transforms import v2

from samtune.common.errors import InputError
from samtune.data.sample import CroppedMasks, moved, pack_masks

AUGMENTATIONS = ("none", "flip", "flip_jitter", "strong")
LONGEST_SIDE = 32_766  # pixels: cv2.warpAffine counts in 16 bits
# Strong augmentation of uint8 pictures; each part but colour is applied to half of them.
STRONG = v2.Compose(
    [
        v2.ColorJitter(0.5, 0.5, 0.5, 0.1),
        v2.RandomApply([v2.GaussianBlur(9, (0.1, 3.0))]),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomApply([v2.GaussianNoise(sigma=0.05)]),
        v2.ToDtype(torch.uint8, scale=True),
        v2.RandomApply([v2.JPEG((20, 90))]),
    ]
)


def augment(
    image: np.ndarray,
    masks: np.ndarray | CroppedMasks,
    kind: str,
    seed: Sequence[int],
    key: str,
    least_scale: float = 0.1,
) -> tuple[np.ndarray, np.ndarray | CroppedMasks]:
    """An image flipped or jittered in scale, with its masks: uint8 `(H, W, 3)` and bool `(N, H, W)` of the same size.

    Args:
        image: uint8 `(H, W, 3)`.
        masks: bool `(N, H, W)`.
        kind: "none"; "flip" (horizontally, half of the time); "flip_jitter" (also large-scale jitter: the image is
            scaled by `least_scale` to 2.0, then padded with grey 128 and mask 0, or cropped, to its size. A crop keeps
            at least one pixel of a mask); "strong" (also `STRONG`: colour, blur, noise and JPEG compression).
        seed: with `key`, of the random numbers.
        key: names the sample.
        least_scale: 0.1 in HQ-SAM, SPT and ASAM.

    Raises `InputError` for a side that OpenCV cannot jitter.
    """
    if kind == "none":
        return image, masks
    digest = np.frombuffer(key.encode(), np.uint8).astype(np.uint32)
    rng = np.random.default_rng([*seed, *digest.tolist()])
    if rng.random() < 0.5:
        masks = masks.flipped() if isinstance(masks, CroppedMasks) else masks[:, :, ::-1]
        image = image[:, ::-1]
    if kind in ("flip_jitter", "strong"):
        height, width = image.shape[:2]
        if max(height, width) > LONGEST_SIDE:
            limit = f"OpenCV jitters up to {LONGEST_SIDE:,} pixels a side"
            raise InputError(f"{key} is {width}x{height} pixels, {limit}: cut it, and its masks, into parts")
        scale = rng.uniform(least_scale, 2.0)
        rows, columns = np.nonzero(masks.any(0))
        pixel = rng.integers(max(1, len(rows)))
        kept = np.array([columns[pixel], rows[pixel]]) if len(rows) else np.array([width // 2, height // 2])
        end = np.array([width, height])
        low, high = np.maximum(end * (1 - scale), -scale * kept), np.minimum(0, end - 1 - scale * kept)
        shift = rng.uniform(low, high) if scale > 1 else np.zeros(2)
        view = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        image = cv2.warpAffine(np.ascontiguousarray(image), view, (width, height), borderValue=(128, 128, 128))

        def jitter(plane: np.ndarray) -> np.ndarray:
            return cv2.warpAffine(plane, view, (width, height), flags=cv2.INTER_NEAREST) > 0

        masks = pack_masks(moved(masks, jitter, (height, width), (scale, scale), tuple(shift[::-1])), (height, width))
    if kind == "strong":
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(int(rng.integers(2**31)))
            image = STRONG(torch.from_numpy(np.array(image)).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(image), masks if isinstance(masks, CroppedMasks) else np.ascontiguousarray(masks)
