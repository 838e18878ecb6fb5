"""Reads image files as images, masks or index maps."""

import warnings
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import scipy.io
import tifffile
from PIL import Image

from samtune.common.errors import InputError
from samtune.data.files import pictures
from samtune.data.stored import TURNED, is_deep, orientation, png_depth, read_stored

SCALED = {2: 85, 4: 17}  # by bits of a grey PNG: what Pillow multiplies its values by
LOOKED_AT = 32  # 16-bit files of a folder, to find the range of its values
OUTLIERS = 1e-3  # share of values that may exceed that range: hot pixels


def read_image(path: str | Path, white: int | None = None) -> np.ndarray:
    """An image file as uint8 `(H, W, 3)` RGB.

    It is turned upright by its EXIF tag; alpha is dropped, not blended; grey is repeated three times. 16-bit values are
    divided by 257; where the 16-bit images of the folder use only 14, 12 or 8 bits, they are scaled from those, with
    one warning for each folder. `white`: scale them from this value, whatever their folder.

    Raises `InputError` with path and reason when the file is missing, truncated or no image, or has several pages, or
    channels other than grey, colour and alpha.
    """
    path = Path(path)
    pixels = _to_eight_bits(read_stored(path).colours, path, white)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def white_of_folder(folder: Path) -> int | None:
    """The value that `read_image` takes for white in the 16-bit images of a folder; None where it has none."""
    deep = any(is_deep(path) for path in pictures(folder))
    return _full_scale(folder, folder.stat().st_mtime_ns) if deep else None


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image turned upright; read from its header if possible."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as file:
                height, width = file.pages[0].imagelength, file.pages[0].imagewidth
        else:
            with Image.open(path) as picture:
                width, height = picture.size
    except Exception:  # read_image says why it cannot be read
        return read_image(path).shape[:2]
    return (width, height) if orientation(path) in TURNED else (height, width)


def check_same_size(
    image: np.ndarray | tuple[int, int], mask: np.ndarray | tuple[int, int], image_path: Path, mask_path: Path
) -> None:
    """Raise `InputError` with both sizes unless image and mask have the same. Nothing is resized.

    Args:
        image: an array `(H, W, ...)`, or (H, W).
        mask: an array `(..., H, W)`, or (H, W).
        image_path: for the message, which also names an EXIF orientation if that is the cause.
        mask_path: for the message.
    """
    size = tuple(image if isinstance(image, tuple) else image.shape[:2])
    mask_size = tuple(mask if isinstance(mask, tuple) else mask.shape[-2:])
    if size != mask_size:
        cause = ""
        if size == mask_size[::-1] and (tag := orientation(Path(image_path))) in TURNED:
            cause = (
                f"; the picture's EXIF orientation ({tag}) turns it upright, and the mask seems to be drawn on the "
                "picture as stored"
            )
        raise InputError(
            f"image {image_path} is {size[1]}x{size[0]} pixels but mask {mask_path} is {mask_size[1]}x{mask_size[0]} "
            f"(width x height); masks are never resized, make them match{cause}"
        )


def read_mask(path: str | Path) -> np.ndarray:
    """A binary mask file as bool `(H, W)`: true where the value is above 127 (of 255; 16-bit masks are scaled).

    Where all colours are equal and alpha is not, alpha is the mask. Raises `InputError` when the file cannot be read;
    and, with the values found and the option to use, when it is coded 0/1 or looks like an index map (see
    `_like_an_index_map`).
    """
    path = Path(path)
    grey = _one_value(path)
    if grey.dtype == bool:
        return grey
    values = np.unique(grey) if grey.dtype != np.uint8 else np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    found = ", ".join(str(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
    if values.tolist() in ([0, 1], [1]):
        advice = "say so: mask_coding='binary1' (or multiply it by 255)"
        raise InputError(f"mask {path} is coded 0/1, not 0/255 (values {found}); {advice}")
    white = 255 if values[-1] <= 255 else 65535
    if _like_an_index_map(grey, values, white):
        raise InputError(
            f"mask {path} looks like an index map, where a 0/255 mask is due (values {found}); "
            "if each number is an object or class, say so: mask_coding='index'"
        )
    return grey > 0.5 * white


def read_index_map(path: str | Path) -> np.ndarray:
    """A file whose values number classes or objects, as int32 `(H, W)`; palette images give their indices.

    Raises `InputError` also for lossy formats, which change numbers.
    """
    return _one_value(Path(path), numbers=True).astype(np.int32)


def read_mat(path: str | Path, key: str) -> np.ndarray:
    """Variable `key` of a MATLAB file (before v7.3). Raises `InputError` with path and reason."""
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


def _like_an_index_map(grey: np.ndarray, values: np.ndarray, white: int) -> bool:
    """Do the values of a mask `(H, W)` look like numbers of objects or classes?

    In a black-and-white mask, palettes and JPEG keep white nearly white, and grey edges (smoothing, JPEG) are thin and
    lie between black and white. Numbers can end anywhere, are consecutive, or fill areas of their own. (Single grey
    pixels mean nothing: magnetic-tile has a mask of 25 of them, none above 176; CVC-ClinicDB has wide areas of values
    up to 16.)
    """
    if 0 < values[-1] < 0.5 * white:
        return True
    if 2 < len(values) < (grey > 0).sum() / 8 and values[-1] < 0.75 * white:
        return True
    if 2 < len(values) <= white and np.array_equal(values, np.arange(values[0], values[0] + len(values))):
        return True
    # Classes beside a void of 255 cover more than the void does.
    high, low = values[values > 0.5 * white], (grey > 0) & (grey < 0.5 * white)
    if high.tolist() == [white] and low.sum() > (grey == white).sum():
        return True
    if (values > white / 16).sum() < 2:  # one level of grey is one object, however bright
        return False
    # A grey that fills 3 x 3 pixels or more, and is not both near black and near white, is no rim.
    black, light = grey < white / 16, grey > white * 15 / 16
    block, near = np.ones((3, 3), np.uint8), np.ones((11, 11), np.uint8)
    flat = ~black & ~light & (cv2.dilate(grey, block) == cv2.erode(grey, block))
    between = cv2.dilate(black.astype(np.uint8), near) & cv2.dilate(light.astype(np.uint8), near)
    return np.count_nonzero(flat & (between == 0)) >= 4


def _one_value(path: Path, numbers: bool = False) -> np.ndarray:
    """The one value for each pixel of a mask, or with `numbers` of an index map. Raises `InputError` where it is not
    clear.

    In a binary mask colour channels that differ by at most 8 of 255 count as equal: old palettes have black and white
    as (4, 2, 4) and (252, 254, 252).
    """
    stored = read_stored(path, palette_indices=numbers)
    if stored.white_is_zero:
        raise InputError(
            f"mask {path} is a TIFF whose 0 is shown as white (MINISWHITE), so that its numbers and what one sees are "
            "opposite; save it as PNG"
        )
    if numbers and stored.lossy:
        raise InputError(f"mask {path} is saved with loss (JPEG or lossy WebP), which changes numbers; save it as PNG")
    colours, alpha = stored.colours, stored.alpha
    if alpha is not None and alpha.min() == alpha.max():
        alpha = None  # says nothing
    if alpha is not None and not numbers and (colours == colours[0, 0]).all():
        return alpha
    if colours.ndim == 3:
        if np.ptp(colours.astype(np.int32), axis=2).max() > (0 if numbers else 8):
            hint = (
                "the mask seems to be in the alpha channel: flatten it"
                if alpha is not None
                else ("if its palette's numbers are objects or classes, say so: mask_coding='index'")
            )
            raise InputError(f"mask {path} is a colour picture; a mask needs one value per pixel ({hint})")
        colours = colours[..., 0]
    if alpha is not None:
        full = np.iinfo(alpha.dtype).max
        marked = colours > (0 if numbers else full / 2)
        if (marked & (alpha <= full / 2)).any() or (numbers and not np.ptp(colours)):
            raise InputError(f"mask {path} marks pixels that its alpha channel makes transparent; flatten it")
    if numbers and png_depth(path) in SCALED:  # grey of 2 or 4 bits, which Pillow spreads over 0 to 255
        return colours // SCALED[png_depth(path)]
    return colours


def _to_eight_bits(pixels: np.ndarray, path: Path, white: int | None = None) -> np.ndarray:
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        full = white or _full_scale(path.parent, path.parent.stat().st_mtime_ns)
        if np.count_nonzero(pixels > full) > OUTLIERS * pixels.size:
            warnings.warn(
                f"{path}: {np.mean(pixels > full):.1%} of its values lie above {full}, where the 16-bit pictures of "
                "its folder end; they are shown as white",
                stacklevel=3,
            )
        return (np.minimum(pixels, full) * (255.0 / full)).round().astype(np.uint8)
    return pixels


@lru_cache(maxsize=256)
def _full_scale(folder: Path, changed: int) -> int:
    """The value of white in the 16-bit images of a folder: 65535; or 16383, 4095 or 255 where they use fewer bits.

    All images of a folder get one scale, so that those of one series do not differ in brightness. `LOOKED_AT` of them,
    evenly spaced by name, are read. A few values (`OUTLIERS`) may be above 14 or 12 bits. `changed`: the folder's time
    of change, which makes the cache forget.
    """
    deep = [path for path in pictures(folder) if is_deep(path)]
    if not deep:  # of a kind whose header is not read
        return 65535
    values, above = 0, {255: 0, 4095: 0, 16383: 0}
    for path in deep[:: -(-len(deep) // LOOKED_AT)]:
        try:
            pixels = read_stored(path).colours
        except InputError:  # said when that file's turn comes
            continue
        values += pixels.size
        for limit in above:
            above[limit] += np.count_nonzero(pixels > limit)
    full = 65535
    if not above[255]:
        full = 255
    elif fewer := [limit for limit in (4095, 16383) if above[limit] <= OUTLIERS * values]:
        full = fewer[0]
    if full < 65535:
        reason = f"hardly a value above {full}: read as {full.bit_length()}-bit"
        warnings.warn(f"16-bit pictures in {folder}, {reason}", stacklevel=5)
    return full
