"""What an image is generated from: the colour-coded mask image of the mask ControlNet, and a caption."""

import cv2
import numpy as np

from samtune.common.errors import InputError
from samtune.data.sample import Sample
from samtune.prompts import tight_boxes

MOST_MASKS = 140  # the most masks of one image that are attacked, as in ASAM's code
MOST_OBJECTS = 255  # an index map is uint8, 0 is what no object covers


def _palette() -> np.ndarray:
    """uint8 `(256, 3)`: black, then a colour an object, each as far as can be from those before it."""
    levels = np.linspace(0, 255, 9).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = [0]
    distance = np.full(len(grid), np.inf)
    for _ in range(MOST_OBJECTS):
        distance = np.minimum(distance, np.square(grid - grid[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return grid[chosen].astype(np.uint8)


PALETTE = _palette()


def index_map(masks: np.ndarray, size: int) -> np.ndarray:
    """Masks bool `(N, H, W)` -> uint8 `(size, size)`: 1 + the index of the object that a pixel shows, or 0.

    The picture is stretched to the square, as ASAM does. Objects that overlap: the smaller one lies on top, by the
    areas in the original. A pixel is an object's when half of it is covered, so that a number, and with it a colour,
    never mixes with another, whatever the size. Raises `InputError` for more than 255 masks.
    """
    if len(masks) > MOST_OBJECTS:
        raise InputError(f"{len(masks)} objects in one picture; a colour-coded mask image holds {MOST_OBJECTS}")
    numbers = np.zeros((size, size), np.uint8)
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        covered = cv2.resize(masks[index].astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        numbers[covered >= 0.5] = index + 1
    return numbers


def colour_coded(masks: np.ndarray, size: int) -> np.ndarray:
    """The nano ControlNet's condition: masks bool `(N, H, W)` -> uint8 `(size, size, 3)`, a colour of its own each."""
    return PALETTE[index_map(masks, size)]


def asam_colour_coded(masks: np.ndarray, size: int) -> np.ndarray:
    """As ASAM's authors colour it, which their ControlNet knows: masks bool `(N, H, W)` -> uint8 `(size, size, 3)`.

    Objects are ranked by the area of their boxes, the largest first and lowest; the k-th of N has as its 24-bit colour
    k / N of white, red the lowest byte. Colours are resized with the picture, and so mix at the edges.
    """
    picture = np.zeros((*masks.shape[1:], 3), np.uint8)
    boxes = tight_boxes(masks)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    for rank, index in enumerate(np.argsort(-areas, kind="stable"), 1):
        colour = (2**24 - 1) * rank // len(masks)
        picture[masks[index]] = (colour % 256, colour // 256 % 256, colour // 65536)
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)


def caption(sample: Sample) -> str:
    """The sample's own caption, or one from its classes: "a photograph of dress, hair and shoes"."""
    if sample.caption:
        return sample.caption
    names = sorted({name.replace("_", " ") for name in sample.object_class})
    if not names:
        return "a photograph"
    return "a photograph of " + " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
