"""What a sample is, and how a picture or a mask becomes one."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
import scipy.io
import tifffile
from PIL import Image, ImageOps

from samtune.common.errors import InputError, unknown

Target = Literal["union", "instances"]
TARGETS = ("union", "instances")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Sample:
    """One image with its objects.

    `image` uint8 `(H, W, 3)` RGB; `masks` bool `(N, H, W)`, N >= 0; `ignore` bool `(H, W)`, true where nothing is
    scored (void, outside the field of view; background to the losses in training), or None; `object_class` one name
    per mask, or empty; `group` the patient or sequence that must not be torn apart by a split; `caption` a sentence,
    or "".
    """

    id: str
    dataset: str
    split: str
    image: np.ndarray
    masks: np.ndarray
    ignore: np.ndarray | None = None
    object_class: tuple[str, ...] = field(default=())
    group: str = ""
    caption: str = ""


class Dataset(Protocol):
    """A data set: lists ids without opening an image, loads one sample at a time.

    `dropped` counts what the listing left out, by reason (an empty mask, an image without annotation).
    """

    name: str
    dropped: dict[str, int]

    def ids(self, split: str) -> list[str]:
        """Sorted sample ids of "train", "val" or "test"."""

    def load(self, id: str) -> Sample:
        """Read one sample; raises `InputError` naming the file when it cannot be read."""


def target_masks(sample: Sample, target: Target) -> np.ndarray:
    """What the prompts are made from and the prediction is scored against, bool `(N, H, W)`.

    "instances": the sample's masks as they are; "union": all of them as one mask, N = 1 (N = 0 where the sample
    has none, or only empty ones).
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if target == "instances":
        return sample.masks
    union = sample.masks.any(axis=0, keepdims=True)
    return union if union.any() else sample.masks[:0]


def stack_masks(masks: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """A list of N masks `(H, W)` as bool `(N, H, W)`; right for N = 0 too, with `shape` the image's (H, W)."""
    return np.stack(masks).astype(bool) if masks else np.zeros((0, *shape), dtype=bool)


def check_same_size(image: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path) -> None:
    """Raise `InputError` with both sizes unless image `(H, W, ...)` and mask `(H, W)` agree; nothing is resized."""
    if image.shape[:2] != mask.shape[-2:]:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape[-2:]
        raise InputError(
            f"image {image_path} is {width}x{height} pixels but mask {mask_path} is {mask_width}x{mask_height} "
            "(width x height); masks are never resized, make them match"
        )


def read_image(path: str | Path) -> np.ndarray:
    """A picture file as uint8 `(H, W, 3)` RGB.

    Turned upright as its EXIF tag says; alpha is dropped (not blended); grey is repeated three times; 16-bit values
    are divided by 257, or, where none exceeds 4095 (255), taken as 12-bit (8-bit) data, with a warning that says so.
    Raises `InputError` with path and reason when the file is missing, truncated or no such picture.
    """
    path = Path(path)
    pixels = _to_eight_bits(_read_pixels(path), path)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (2, 4):  # the last channel is alpha
        pixels = pixels[..., :-1]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] != 3:
        raise InputError(f"cannot read image {path}: {pixels.shape[2]} channels, expected 1 to 4")
    return np.ascontiguousarray(pixels)


def read_mask(path: str | Path) -> np.ndarray:
    """A binary mask file as bool `(H, W)`: true where the value exceeds 127 (of 255; 16-bit masks are scaled).

    Raises `InputError` with the values found and the option to use when the file is coded 0/1 or looks like an
    index map (numbers far from white, or without a gap, or small ones beside a void of 255), and when it cannot be
    read.
    """
    path = Path(path)
    grey = _single_channel(_read_pixels(path), path)
    if grey.dtype == bool:
        return grey
    values = np.unique(grey) if grey.dtype != np.uint8 else np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    found = ", ".join(str(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
    if values.tolist() in ([0, 1], [1]):
        raise InputError(f"mask {path} is coded 0/1, not 0/255 (values {found}); say so: mask_coding='binary1'")
    white = 255 if values[-1] <= 255 else 65535
    # White is hardly dimmed by palettes and JPEG; numbers end anywhere, or leave none out.
    # (Stray pixels are neither: magnetic-tile has a mask of 25 of them, none above 176.)
    is_dark = 0 < values[-1] < 0.5 * white
    is_dark |= 2 < len(values) < (grey > 0).sum() / 8 and values[-1] < 0.75 * white
    is_counted = 2 < len(values) <= white and np.array_equal(values, np.arange(values[0], values[0] + len(values)))
    # Grey rims (JPEG, smoothing) are thin; classes beside a void of 255 cover more than the void does.
    high, low = values[values > 0.5 * white], (grey > 0) & (grey < 0.5 * white)
    void_beside_classes = high.tolist() == [white] and low.sum() > (grey == white).sum()
    if is_dark or is_counted or void_beside_classes:
        raise InputError(
            f"mask {path} looks like an index map, where a 0/255 mask is due (values {found}); "
            "if each number is an object or class, say so: mask_coding='index'"
        )
    return grey > 0.5 * white


def read_index_map(path: str | Path) -> np.ndarray:
    """A file whose values are class or object numbers, as int32 `(H, W)`; palette pictures give their indices."""
    path = Path(path)
    return _single_channel(_read_pixels(path, palette_indices=True), path).astype(np.int32)


def read_mat(path: str | Path, key: str) -> np.ndarray:
    """Variable `key` of a MATLAB file (before v7.3); raises `InputError` with path and reason."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        contents = scipy.io.loadmat(path)
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise InputError(f"cannot read {path}: {error}") from error
    if key not in contents:
        names = ", ".join(name for name in contents if not name.startswith("__"))
        raise InputError(f"{path} has no variable {key!r}; found: {names or 'none'}")
    return contents[key]


def _read_pixels(path: Path, palette_indices: bool = False) -> np.ndarray:
    """The file's own values, upright: bool, uint8 or uint16, `(H, W)` or `(H, W, C)`, channels in RGB order."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            pixels = _read_tiff(path)
            if pixels is not None:
                return pixels
        with Image.open(path) as picture:
            picture.load()
            if picture.format == "PNG" and _png_depth(path) == 16:  # Pillow would cut 16-bit colour to 8 bits
                return _read_deep_png(path)
            ImageOps.exif_transpose(picture, in_place=True)
            return _pillow_pixels(picture, palette_indices)
    except InputError:
        raise
    except Exception as error:  # Pillow and tifffile raise many kinds on damaged files
        raise InputError(f"cannot read image {path}: {error or type(error).__name__}") from error


def _pillow_pixels(picture: Image.Image, palette_indices: bool) -> np.ndarray:
    if picture.mode == "P":
        return np.asarray(picture if palette_indices else picture.convert("RGB"))
    if picture.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return np.asarray(picture)
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values {values.min()} to {values.max()} do not fit 16 bits")
        return values.astype(np.uint16)
    if picture.mode == "F":
        raise ValueError("floating-point picture; save it with 8 or 16 bits")
    return np.asarray(picture.convert("RGB"))


def _png_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


def _read_deep_png(path: Path) -> np.ndarray:
    pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("broken 16-bit PNG")
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _read_tiff(path: Path) -> np.ndarray | None:
    """A TIFF's values; None for the kinds (palette, CMYK, JPEG colour ...) that Pillow turns into RGB itself.

    tifffile, because Pillow refuses three samples tagged MINISBLACK (CVC-ClinicDB's colour frames), OpenCV reads
    those as grey, and Pillow cuts 16-bit colour to 8 bits.
    """
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if page.photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
            return None
        if page.bitspersample not in (1, 8, 16) or page.dtype not in (bool, np.uint8, np.uint16):
            raise ValueError(f"TIFF values of type {page.dtype}; save it with 8 or 16 bits")
        pixels = page.asarray()
        orientation = page.tags.get("Orientation")
    if page.samplesperpixel > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        pixels = np.moveaxis(pixels, 0, -1)
    return _upright(pixels, int(orientation.value) if orientation else 1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo TIFF/EXIF orientation 1 to 8: 2 and 4 mirror, 3 turns by 180, 5 to 8 also swap rows and columns."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _to_eight_bits(pixels: np.ndarray, path: Path) -> np.ndarray:
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        full = next(limit for limit in (255, 4095, 65535) if pixels.max() <= limit)
        if full < 65535:
            bits = full.bit_length()
            warnings.warn(f"{path}: 16-bit file without a value above {full}, read as {bits}-bit", stacklevel=3)
        return (pixels * (255.0 / full)).round().astype(np.uint8)
    return pixels


def _single_channel(pixels: np.ndarray, path: Path) -> np.ndarray:
    """The one value per pixel of a mask or index map: nearly equal colour channels count as one, alpha is dropped.

    Nearly (up to 8 of 255), because old palettes hold black and white as (4, 2, 4) and (252, 254, 252).
    """
    if pixels.ndim == 3:
        colours = pixels[..., :-1] if pixels.shape[2] in (2, 4) else pixels
        if np.ptp(colours.astype(np.int32), axis=2).max() > 8:
            raise InputError(
                f"mask {path} is a colour picture; a mask needs one value per pixel "
                "(if its palette's numbers are objects or classes, say so: mask_coding='index')"
            )
        pixels = colours[..., 0]
    return pixels
