"""From an image to the model's square and back: `pad` as SamPredictor does, `stretch` as SPT and ASAM do."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samtune.common.errors import unknown
from samtune.prompts import Prompts
from samtune.sam.build import PIXEL_MEAN, PIXEL_STD

MODES = ("pad", "stretch")
PIXELS_AT_ONCE = 2**26  # of masks that are enlarged together: bounds memory on large pictures


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

    def masks(self, masks: np.ndarray, mask_size: int) -> Tensor:
        """bool `(N, H, W)` -> float32 `(N, 1, mask_size, mask_size)`: the share of each pixel that the mask covers.

        It is not exact where one side shrinks and the other grows, see `resized`.
        """
        height, width = self.inner_size(*masks.shape[1:])
        canvas = np.zeros((len(masks), self.size, self.size), np.float32)
        for index, mask in enumerate(masks):
            canvas[index, :height, :width] = cv2.resize(
                mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
            )
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
        height, width = self.inner_size(*original_size)
        if self.mode == "stretch":
            return F.interpolate(logits, original_size, mode="bilinear", align_corners=False)
        # Original pixel centres in the square's coordinates [-1, 1]; F.interpolate cannot leave the padding out.
        y = (torch.arange(original_size[0]) + 0.5) / original_size[0] * (2 * height / self.size) - 1
        x = (torch.arange(original_size[1]) + 0.5) / original_size[1] * (2 * width / self.size) - 1
        grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=-1).to(logits)
        return F.grid_sample(
            logits, grid.expand(len(logits), -1, -1, -1), "bilinear", padding_mode="border", align_corners=False
        )

    def enlarged(self, logits: Tensor, original_size: tuple[int, int], binary: bool = True) -> Tensor:
        """`logits` of P prompts at `original_size`: `(P, M, H, W)`, bool (above 0), or float with `binary=False`.

        A few prompts at a time, so that it needs little more memory than the result.
        """
        prompts, count = logits.shape[:2]
        answer = logits.new_empty((prompts, count, *original_size), dtype=torch.bool if binary else logits.dtype)
        few = max(1, PIXELS_AT_ONCE // (count * max(math.prod(original_size), self.size**2)))
        for first in range(0, prompts, few):
            part = self.logits(logits[first : first + few], original_size)
            answer[first : first + few] = part > 0 if binary else part
        return answer
