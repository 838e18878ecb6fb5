"""What more than one part of the kit does with a plain mask."""

import numpy as np
from scipy import ndimage


def large_parts(mask: np.ndarray, share: float) -> np.ndarray:
    """bool `(h, w)` without its connected parts (4 neighbours) of less than `share` of its foreground."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    return (areas >= max(1, share * areas.sum()))[labels]
