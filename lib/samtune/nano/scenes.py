"""Training images of the nano SAM: crops of real ones, composites of their objects, and procedural scenes.

Only sets that may be trained on are used (bsds500 train, ccp train, car-parts train). Each image depends only on the
bank and on the generator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from samtune.data.procedural.natural import natural_scene
from samtune.data.registry import open_dataset
from samtune.data.sample import Sample
from samtune.prompts import large_parts

Scene = tuple[np.ndarray, np.ndarray]  # image uint8 (S, S, 3), masks bool (N, S, S)
TrainingScene = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # and the main object's mask (S, S), if there is one
REPEATS = {"bsds500": 4}  # few pictures, but the most general ones: two fifths of all, not a seventh
LARGEST_SIDE = 384  # bank pictures are shrunk to this: more detail than the nano SAM's 256 pixels can show


@dataclass(frozen=True)
class Picture:
    """An image of the bank, with its objects.

    Fields:
        image: uint8 `(H, W, 3)`.
        corners: of each object's box: (x, y) of its top left.
        cutouts: each object's mask in its box, bool.
        whole: indices of objects that may be pasted elsewhere (a person, a car, a region).
        main: index of the object to predict without a prompt, if there is one.
    """

    image: np.ndarray
    corners: list[tuple[int, int]]
    cutouts: list[np.ndarray]
    whole: tuple[int, ...] = ()
    main: int | None = None


def bank_picture(image: np.ndarray, masks: np.ndarray, whole: set[int], main: int | None = None) -> Picture:
    """An image of the bank: shrunk to `LARGEST_SIDE`, masks cropped to their boxes.

    Args:
        image: uint8 `(H, W, 3)`.
        masks: bool `(N, H, W)`.
        whole: see `Picture`.
        main: see `Picture`.
    """
    scale = min(1.0, LARGEST_SIDE / max(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    corners, cutouts, kept_whole, kept_main = [], [], [], None
    for index, mask in enumerate(masks):
        shrunk = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127
        rows, columns = np.flatnonzero(shrunk.any(1)), np.flatnonzero(shrunk.any(0))
        if len(rows) < 4 or len(columns) < 4:
            continue
        if index in whole:
            kept_whole.append(len(cutouts))
        if index == main:
            kept_main = len(cutouts)
        corners.append((int(columns[0]), int(rows[0])))
        cutouts.append(shrunk[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())
    return Picture(small, corners, cutouts, tuple(kept_whole), kept_main)


def random_view(picture: Picture, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An affine map, 2 x 3, from bank pixels to the `size` square, and its linear part, 2 x 2.

    It shows the whole image (padded or stretched) or a random crop.
    """
    height, width = picture.image.shape[:2]
    flip = rng.random() < 0.5
    kind = rng.random()
    if kind < 0.25:  # SAM's own preprocessing: longest side, padded to the right and below
        scale_x = scale_y = size / max(height, width)
        angle, target = 0.0, (width * scale_x / 2, height * scale_y / 2)
        centre = (width / 2, height / 2)
    elif kind < 0.45:  # SPT's and ASAM's: stretched to the square
        scale_x, scale_y = size / width, size / height
        angle, target, centre = 0.0, (size / 2, size / 2), (width / 2, height / 2)
    else:
        side = np.exp(rng.uniform(np.log(0.3), np.log(1.1))) * max(height, width)
        stretch = np.exp(rng.normal(0, 0.12))
        scale_x, scale_y = size / side * stretch, size / side / stretch
        angle = np.deg2rad(rng.normal(0, 10))
        centre = (rng.uniform(0.15, 0.85) * width, rng.uniform(0.15, 0.85) * height)
        target = (size / 2, size / 2)
    if flip:
        scale_x = -scale_x
    cosine, sine = np.cos(angle), np.sin(angle)
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([scale_x, scale_y])
    return np.hstack([linear, (np.array(target) - linear @ np.array(centre))[:, None]]).astype(np.float32), linear


def warp_cutout(picture: Picture, index: int, view: np.ndarray, size: int) -> np.ndarray:
    """Object `index` of an image under `view`: soft mask float32 `(size, size)` in [0, 1]."""
    shift = view.copy()
    shift[:, 2] += view[:, :2] @ np.array(picture.corners[index], np.float32)
    cutout = picture.cutouts[index].astype(np.float32)
    return cv2.warpAffine(cutout, shift, (size, size), flags=cv2.INTER_LINEAR)


def warp_image(image: np.ndarray, view: np.ndarray, linear: np.ndarray, size: int) -> np.ndarray:
    """An image under `view`, first blurred where it shrinks. Outside is SAM's mean colour (zero after normalising)."""
    shrink = 1 / np.sqrt(abs(np.linalg.det(linear)))
    if shrink > 1.2:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 * shrink)
    return cv2.warpAffine(
        image, view, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(124, 116, 104)
    )


def crop_scene(picture: Picture, size: int, rng: np.random.Generator) -> tuple[Scene, int | None]:
    """A random view of one image with all its objects, and the index of its main object."""
    view, linear = random_view(picture, size, rng)
    image = warp_image(picture.image, view, linear, size)
    masks = [warp_cutout(picture, index, view, size) > 0.5 for index in range(len(picture.cutouts))]
    return (image, np.array(masks, bool).reshape(-1, size, size)), picture.main


def paste_scene(bank: Sequence[Picture], size: int, rng: np.random.Generator) -> Scene:
    """Objects of other images pasted over a view of one, with soft edges and changed colours; they
    hide what is below.
    """
    background = bank[rng.integers(len(bank))]
    (image, below), _ = crop_scene(background, size, rng)
    below = below[rng.permutation(len(below))[:6]]
    if rng.random() < 0.3:  # an unfocused background: its own objects no longer count
        image, below = cv2.GaussianBlur(image, (0, 0), rng.uniform(1.5, 6)), below[:0]
    canvas = image.astype(np.float32)
    masks = list(below)
    for _ in range(rng.integers(2, 9)):
        source = bank[rng.integers(len(bank))]
        if not source.whole:
            continue
        index = int(rng.choice(source.whole))
        height, width = source.cutouts[index].shape
        scale = np.exp(rng.uniform(np.log(0.06), np.log(0.7))) * size / max(height, width)
        scale = min(scale, 2.0)
        angle = np.deg2rad(rng.normal(0, 20))
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear[:, 0] *= rng.choice([-1, 1])
        x, y = source.corners[index]
        centre = np.array([x + width / 2, y + height / 2])
        view = np.hstack([linear, (rng.uniform(0, size, 2) - linear @ centre)[:, None]]).astype(np.float32)
        alpha = warp_cutout(source, index, view, size)
        if alpha.sum() < 12:
            continue
        pasted = warp_image(source.image, view, linear, size).astype(np.float32)
        pasted = pasted * rng.uniform(0.7, 1.3) + rng.normal(0, 12, 3)
        if rng.random() < 0.7:
            alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.3, 1.0))
        if rng.random() < 0.3:  # a soft shadow, so that not every edge is a cut
            shadow = np.roll(cv2.GaussianBlur(alpha, (0, 0), size / 40), rng.integers(-4, 8, 2), (0, 1))
            canvas *= 1 - 0.4 * shadow[..., None]
        canvas = canvas * (1 - alpha[..., None]) + pasted * alpha[..., None]
        over = alpha > 0.5
        masks = [mask & ~over for mask in masks] + [over]
    return canvas.clip(0, 255).astype(np.uint8), np.array(masks, bool).reshape(-1, size, size)


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 `(S, S, 3)` with random exposure, contrast, colour cast, saturation, blur and noise."""
    x = image.astype(np.float32) / 255
    if rng.random() < 0.8:
        x = np.clip(x, 0, 1) ** np.exp(rng.normal(0, 0.25))
        x = (x - 0.5) * np.exp(rng.normal(0, 0.2)) + 0.5 + rng.normal(0, 0.06)
        x = x * np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    saturation = 0.0 if rng.random() < 0.08 else np.exp(rng.normal(0, 0.25))
    grey = x.mean(-1, keepdims=True)
    x = grey + (x - grey) * np.float32(saturation)
    if rng.random() < 0.15:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.3:
        x = x + rng.normal(0, rng.uniform(0.005, 0.04), x.shape).astype(np.float32)
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def training_scene(
    bank: Sequence[Picture],
    size: int,
    rng: np.random.Generator,
    shares: tuple[float, ...] = (0.5, 0.3, 0.2),
    mosaic: float = 0.3,
) -> TrainingScene:
    """One training image: uint8 `(S, S, 3)`, masks bool `(N, S, S)`, and the main object's mask or None.

    Objects thinner than 3 or smaller than 12 pixels are left out; an image without objects is drawn again.

    Args:
        bank: of images.
        size: S.
        rng: draws everything.
        shares: of real crops, composites and procedural scenes.
        mosaic: share of images made of four images of half the size, because small objects are the hard ones.
    """
    if rng.random() < mosaic:
        return _mosaic_scene([training_scene(bank, size // 2, rng, shares, mosaic=0.0) for _ in range(4)])
    kinds: list[Callable[[], tuple[Scene, int | None]]] = [
        lambda: crop_scene(bank[rng.integers(len(bank))], size, rng),
        lambda: (paste_scene(bank, size, rng), None),
        lambda: (natural_scene(rng, size), None),
    ]
    while True:
        (image, masks), main = kinds[rng.choice(3, p=shares)]()
        main_mask = None if main is None or masks[main].mean() < 0.02 else masks[main]
        # Occlusion leaves crumbs that nobody would click.
        masks = np.array([large_parts(mask, 0.1) for mask in masks], bool).reshape(-1, size, size)
        keep = [
            m.sum() >= 12 and min(np.ptp(np.flatnonzero(m.any(0))), np.ptp(np.flatnonzero(m.any(1)))) >= 2
            for m in masks
        ]
        if any(keep):
            return photometric(image, rng), masks[keep], main_mask


def _mosaic_scene(parts: Sequence[TrainingScene]) -> TrainingScene:
    """Four scenes as one, with all their objects and no main object."""
    side = len(parts[0][0])
    image, frames = np.zeros((2 * side, 2 * side, 3), np.uint8), []
    for place, (small, masks, _) in enumerate(parts):
        top, left = side * (place // 2), side * (place % 2)
        image[top : top + side, left : left + side] = small
        frames.append(np.zeros((len(masks), 2 * side, 2 * side), bool))
        frames[-1][:, top : top + side, left : left + side] = masks
    return image, np.concatenate(frames), None


def picture_bank(sets: Sequence[str] = ("bsds500", "ccp", "car-parts"), limit: int | None = None) -> list[Picture]:
    """The training images of `sets` (the first `limit` of each) with all their objects; some sets `REPEATS` times.

    bsds500 has the regions of up to three annotators. In ccp the person, in car-parts the car is added as an object.
    Raises `InputError` when a set is not there.
    """
    bank: list[Picture] = []
    for name in sets:
        first = len(bank)
        dataset = open_dataset(name, whole=True) if name == "ccp" else open_dataset(name)
        others = [open_dataset(name, annotator=k) for k in (1, 2)] if name == "bsds500" else []
        for id in dataset.ids("train")[:limit]:
            sample = dataset.load(id)
            masks, main = np.asarray(sample.masks), None
            area = masks.mean((1, 2))
            whole = set(np.flatnonzero((area > 0.003) & (area < 0.35)).tolist())
            if name == "ccp":
                main = len(masks) - 1
                whole = {main, *np.flatnonzero(area[:-1] > 0.01)[:3].tolist()}
            elif name == "car-parts" and len(masks):
                masks, main = np.concatenate([masks, masks.any(0, keepdims=True)]), len(masks)
                whole = {main}
            extra = [other.load(id).masks for k, other in enumerate(others, 1) if dataset.annotators(id) > k]
            if len(masks):
                bank.append(bank_picture(sample.image, np.concatenate([masks, *extra]), whole, main))
        bank += bank[first:] * (REPEATS.get(name, 1) - 1)
    return bank


def training_sheet(bank: Sequence[Picture], count: int, size: int) -> list[Sample]:
    """`count` training images of the nano SAM as samples, for a contact sheet."""
    samples = []
    for index in range(count):
        image, masks, _ = training_scene(bank, size, np.random.default_rng([0, index]))
        samples.append(Sample(f"training picture {index}", "nano", "train", image, masks))
    return samples
