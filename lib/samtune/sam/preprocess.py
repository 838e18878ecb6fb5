"""From an image to the model's square and back: `pad` as SamPredictor does, `stretch` as SPT and ASAM do.

(SPT's code shrinks pictures without smoothing; here both modes average over what falls on a pixel.)
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samtune.common.errors import unknown
from samtune.data.sample import Crop, CroppedMasks, moved
from samtune.prompts import Prompts
from samtune.sam.build import PIXEL_MEAN, PIXEL_STD

MODES = ("pad", "stretch")


@dataclass(frozen=True)
class Preprocess:
    """How images, masks and prompts get to the model's square, and logits back.

    Fields:
        size: side of the square S, in pixels.
        mode: "pad" (the longest side becomes S, the rest is padded at the right and below) or "stretch" (both sides
            become S).

    Raises `InputError` on an unknown mode.
    """

    size: int
    mode: str = "pad"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("preprocessing", self.mode, MODES)

    def inner_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in model pixels of the image's part of the square; at least 1 each."""
        if self.mode == "stretch":
            return self.size, self.size
        scale = self.size / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def resized(self, image: np.ndarray) -> np.ndarray:
        """uint8 `(H, W, 3)` -> uint8 at `inner_size`; by area averaging where it shrinks, else bilinear.

        Where one side shrinks and the other grows, OpenCV's area averaging is bilinear for both.
        """
        height, width = self.inner_size(*image.shape[:2])
        shrinks = height * width < image.shape[0] * image.shape[1]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(image, (width, height), interpolation=interpolation)

    def image(self, image: np.ndarray) -> Tensor:
        """uint8 `(H, W, 3)` RGB -> normalised float32 `(3, S, S)`; padding is zero after normalising, as in SAM."""
        return self.normalised(self.resized(image))

    def normalised(self, resized: np.ndarray) -> Tensor:
        """uint8 `(h, w, 3)` RGB at `inner_size` -> normalised and padded, float32 `(3, S, S)`."""
        height, width = resized.shape[:2]
        mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
        planes = torch.from_numpy(resized).permute(2, 0, 1)
        pixels = planes.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)
        padding = (0, self.size - width, 0, self.size - height)
        return F.pad(pixels, padding) if any(padding) else pixels

    def shares(self, masks: np.ndarray | CroppedMasks) -> list[Crop]:
        """The share of each pixel of the square that a mask covers, for each of bool `(N, H, W)`: float32 values near
        the object, and where; elsewhere it is zero.

        It is not exact where one side shrinks and the other grows, see `resized`.
        """
        height, width = self.inner_size(*masks.shape[1:])

        def resize(plane: np.ndarray) -> np.ndarray:
            return cv2.resize(plane.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)

        return moved(masks, resize, (height, width), (height / masks.shape[1], width / masks.shape[2]))

    def masks(self, masks: np.ndarray | CroppedMasks, mask_size: int) -> Tensor:
        """bool `(N, H, W)` -> float32 `(N, 1, mask_size, mask_size)`: the share of each pixel that the mask covers."""
        canvas = np.zeros((len(masks), self.size, self.size), np.float32)
        for square, (window, values) in zip(canvas, self.shares(masks), strict=True):
            square[window] = values
        whole = torch.from_numpy(canvas)[:, None]
        return whole if mask_size == self.size else F.adaptive_avg_pool2d(whole, mask_size)  # the same, but not slow

    def prompts(self, prompts: Prompts, original_size: tuple[int, int]) -> Prompts:
        """Boxes and points from pixels of an image of `original_size` (H, W) to model pixels.

        As in SamPredictor, coordinates are multiplied by the scale. SPT's code takes them from the resized mask
        instead, where a box's inclusive maximum can lie up to one original pixel further out.
        """
        height, width = self.inner_size(*original_size)
        return prompts.scaled(width / original_size[1], height / original_size[0])

    def logits(self, logits: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Low-resolution logits `(P, M, h, w)` -> `(P, M, H, W)` at `original_size`, in one bilinear step."""
        rows, columns = self._weights(logits, original_size)
        with torch.autocast(logits.device.type, enabled=False):
            return rows @ logits @ columns.T

    def enlarged(self, logits: Tensor, original_size: tuple[int, int], binary: bool = True) -> Tensor:
        """`logits` of P prompts at `original_size`: `(P, M, H, W)`, bool (above 0), or float with `binary=False`.

        For bool masks only the rows and columns that a logit above 0 reaches are computed.
        """
        if not binary:
            return self.logits(logits, original_size)
        rows, columns = self._weights(logits, original_size)
        masks = torch.zeros(*logits.shape[:2], *original_size, dtype=torch.bool, device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            for low, mask in zip(logits.flatten(0, 1), masks.flatten(0, 1), strict=True):
                inside = (low > 0).to(rows)
                window = _reached(rows, inside.amax(1)), _reached(columns, inside.amax(0))
                mask[window] = rows[window[0]] @ low @ columns[window[1]].T > 0
        return masks

    def _weights(self, logits: Tensor, original_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What the rows of `(..., h, w)` count in each row of the image, `(H, h)`, and so the columns, `(W, w)`."""
        sides = zip(logits.shape[-2:], self.inner_size(*original_size), original_size, strict=True)
        rows, columns = (self._along(*side).to(logits) for side in sides)
        return rows, columns

    def _along(self, low: int, inner: int, original: int) -> Tensor:
        """Weights `(original, low)` along one side, of which `inner` of `size` pixels show the image."""
        return bilinear(low, original, low * inner / self.size)


@lru_cache(maxsize=16)
def bilinear(low: int, high: int, covered: float) -> Tensor:
    """Weights `(high, low)` with which `high` pixels are read from the first `covered` of `low` ones.

    Pixel centres are at .5; beyond the first and the last one the border is repeated.
    """
    places = ((torch.arange(high, dtype=torch.float64) + 0.5) * covered / high - 0.5).clamp(0, low - 1)
    return (1 - (places[:, None] - torch.arange(low)).abs()).clamp(min=0).float()


def _reached(weights: Tensor, inside: Tensor) -> slice:
    """From the first to the last of H rows `(H, h)` in which one of `inside`, `(h,)`, counts."""
    places = torch.nonzero(weights @ inside)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
