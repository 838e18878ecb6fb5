"""Small trees of the layouts in which data sets are published, for the tests of their loaders."""

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32


def blob(top: int, left: int, height: int = 6, width: int = 8) -> np.ndarray:
    """A filled rectangle as bool (24, 32)."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


NOTHING = np.zeros((HEIGHT, WIDTH), dtype=bool)


def save(path: Path, pixels: np.ndarray, palette: bool = False) -> Path:
    """Write an array by the suffix of `path`; bool becomes 0/255; `palette` writes a colour-mapped PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels)
    if palette:
        picture.putpalette([value for index in range(256) for value in (index, 255 - index, index // 2)])
    picture.save(path)
    return path


def photo(path: Path, seed: int = 0) -> Path:
    """A colour picture of noise, 32 x 24 pixels."""
    return save(path, np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def grey_photo(path: Path, seed: int = 0) -> Path:
    """A grey picture of noise, 32 x 24 pixels."""
    return save(path, np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))


def all_ids(dataset) -> list[str]:
    """The ids of all three splits; each in one split only."""
    ids = [id for split in ("train", "val", "test") for id in dataset.ids(split)]
    assert len(ids) == len(set(ids))
    return sorted(ids)
