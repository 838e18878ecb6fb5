"""Two baselines without a network: an ellipse in the box, and GrabCut."""

from collections.abc import Sequence

import cv2
import numpy as np

ITERATIONS = 5  # of GrabCut


def ellipse(box: Sequence[float] | np.ndarray, height: int, width: int) -> np.ndarray:
    """The filled ellipse inscribed in a box, bool `(height, width)`.

    Args:
        box: x0, y0, x1, y1, maxima inclusive: its sides are x1 - x0 + 1 and y1 - y0 + 1.
        height: of the mask.
        width: of the mask.

    A pixel belongs to the ellipse if its centre does. A box of one pixel gives that pixel.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    columns = (np.arange(width) - (x0 + x1) / 2) / ((x1 - x0 + 1) / 2)
    rows = (np.arange(height) - (y0 + y1) / 2) / ((y1 - y0 + 1) / 2)
    return rows[:, None] ** 2 + columns[None] ** 2 <= 1


def grabcut(image: np.ndarray, box: Sequence[float] | np.ndarray) -> np.ndarray:
    """OpenCV's GrabCut (Rother et al. 2004) started from a box: bool `(H, W)`. The same input gives the same mask.

    Args:
        image: uint8 `(H, W, 3)`.
        box: x0, y0, x1, y1, maxima inclusive; all outside is background.

    Where GrabCut finds no foreground, or has too few pixels inside or outside the box to start, the result is the whole
    box.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width - 1), min(y1, height - 1)
    region = np.zeros((height, width), bool)
    region[y0 : y1 + 1, x0 : x1 + 1] = True
    labels = np.zeros((height, width), np.uint8)
    cv2.setRNGSeed(0)  # its colour clusters start at random
    try:
        cv2.grabCut(image, labels, (x0, y0, x1 - x0 + 1, y1 - y0 + 1), None, None, ITERATIONS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:
        return region
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found if found.any() else region
