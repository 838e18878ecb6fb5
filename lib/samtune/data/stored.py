"""Image files as they are stored: their own values, turned upright."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps

from samtune.common.errors import InputError

Image.MAX_IMAGE_PIXELS = None  # the user names the file: an orthophoto is large, and no attack
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said by one `InputError`
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # orientations that swap width and height
GREY, WHITE_IS_ZERO = tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE
PALETTE = tifffile.PHOTOMETRIC.PALETTE
ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
LOSSY_TIFF = (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG_LOSSY)


@dataclass(frozen=True)
class Stored:
    """The contents of an image file, turned upright.

    Fields:
        colours: bool, uint8 or uint16, `(H, W)` or `(H, W, 3)` RGB, as they are to be shown.
        alpha: `(H, W)` of the same type, or None.
        lossy: compression has changed the values (JPEG, lossy WebP).
        white_is_zero: the file says that 0 is shown as white.
    """

    colours: np.ndarray
    alpha: np.ndarray | None = None
    lossy: bool = False
    white_is_zero: bool = False


def read_stored(path: Path, palette_indices: bool = False) -> Stored:
    """The file's own values. Raises `InputError` with path and reason where it cannot be read or has several pages."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        if path.suffix.lower() in (".tif", ".tiff") and (stored := _tiff(path, palette_indices)):
            return stored
        with Image.open(path) as picture:
            if picture.format != "MPO" and (frames := getattr(picture, "n_frames", 1)) > 1:
                raise _several(path, frames)  # (a phone's MPO is one picture and its depth)
            picture.load()
            if picture.format == "PNG" and png_depth(path) == 16:  # Pillow would cut 16-bit colour to 8 bits
                return _deep_png(path, picture.getexif().get(ORIENTATION, 1))
            lossy = picture.format in ("JPEG", "MPO") or "jpeg" in str(picture.info.get("compression"))
            lossy |= picture.format == "WEBP" and _is_lossy_webp(path)
            ImageOps.exif_transpose(picture, in_place=True)
            return Stored(*_pillow_pixels(picture, palette_indices), lossy)
    except InputError:
        raise
    except Exception as error:  # Pillow and tifffile raise many kinds on damaged files
        raise InputError(f"cannot read image {path}: {error or type(error).__name__}") from error


def orientation(path: Path) -> int:
    """The orientation (1 to 8) in an image's header; 1 where there is none or it cannot be read."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as file:
                return _tiff_orientation(file.pages[0])
        with Image.open(path) as picture:
            if picture.format == "PNG" and not _has_metadata(path):  # Pillow would decode the picture to look for it
                return 1
            return picture.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1


def _has_metadata(path: Path) -> bool:
    """Has a PNG file a chunk of EXIF or of text, which may hold it?"""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            if head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def png_depth(path: Path) -> int:
    """Bits of a value in a PNG file of grey or colour; 0 for a palette's and for other files."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24] if header[:4] == b"\x89PNG" and header[25] != 3 else 0


def is_deep(path: Path) -> bool:
    """Does the header say 16 bits for a value?"""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as file:
                return file.pages[0].dtype == np.uint16
        return path.suffix.lower() == ".png" and png_depth(path) == 16
    except Exception:
        return False


def _several(path: Path, pages: int) -> InputError:
    return InputError(f"{path} has {pages} pages; one is read: save one page (or channel) a file")


def _pillow_pixels(picture: Image.Image, palette_indices: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours and alpha."""
    if picture.mode == "P" and palette_indices:
        return _numbers(np.asarray(picture), np.array(picture.getpalette(), np.uint8).reshape(-1, 3)), None
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values {values.min()} to {values.max()} do not fit 16 bits")
        return values.astype(np.uint16), None
    if picture.mode == "F":
        raise ValueError("floating-point picture; save it with 8 or 16 bits")
    if picture.mode in ("LA", "RGBA") or (picture.mode in ("P", "PA", "RGB", "L") and picture.has_transparency_data):
        pixels = np.asarray(picture.convert("RGBA"))
        return pixels[..., :3], pixels[..., 3]
    return np.asarray(picture if picture.mode in ("1", "L", "RGB") else picture.convert("RGB")), None


def _numbers(indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The indices of a palette image `(H, W)`.

    Raises `ValueError` where the palette `(K, 3)` is grey and its black is not index 0: in GIF files grey numbers are
    renumbered, and the darkest becomes 0.
    """
    colours = palette[indices]
    if not np.ptp(colours, axis=-1).any() and ((colours[..., 0] == 0) != (indices == 0)).any():
        raise ValueError("its palette's greys and numbers disagree on what is 0; save the numbers as PNG")
    return indices


def _is_lossy_webp(path: Path) -> bool:
    """Is the image in a chunk "VP8 " (lossy), not "VP8L"?"""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8 ", b"VP8L"):
                return head[:4] == b"VP8 "
            length = int.from_bytes(head[4:], "little")
            file.seek(length + length % 2, 1)
    return False


def _deep_png(path: Path, turned: int) -> Stored:
    pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("broken 16-bit PNG")
    pixels = _upright(pixels, turned)
    if pixels.ndim == 2:
        return Stored(pixels)
    return Stored(pixels[..., 2::-1], pixels[..., 3] if pixels.shape[2] == 4 else None)


def _tiff(path: Path, palette_indices: bool) -> Stored | None:
    """The values of a TIFF; None for colour models (CMYK, YCbCr ...) that Pillow converts to RGB.

    tifffile reads it, because Pillow refuses three samples tagged MINISBLACK (CVC-ClinicDB's colour frames), cuts
    16-bit colour to 8 bits and scrambles images that are stored turned, and OpenCV reads those frames as grey.
    """
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        # Bits 0 and 2 of the kind: a smaller copy, a transparency mask.
        pages = sum(not int(getattr(one, "subfiletype", 0)) & 0b101 for one in file.pages)
        pages = max(pages, int((file.imagej_metadata or {}).get("images", 1)), page.imagedepth)
        if pages > 1:
            raise _several(path, pages)
        model, turned, samples = page.photometric, _tiff_orientation(page), page.samplesperpixel
        if model not in (GREY, WHITE_IS_ZERO, PALETTE, tifffile.PHOTOMETRIC.RGB):
            if turned != 1:
                raise ValueError(f"a TIFF of colour model {model.name} that is stored turned; save it as PNG")
            return None
        if page.dtype not in (bool, np.uint8, np.uint16) or (model != PALETTE and page.bitspersample not in (1, 8, 16)):
            raise ValueError(f"TIFF values of type {page.dtype}; save it with 8 or 16 bits")
        has_alpha = samples in (2, 4) and bool(page.extrasamples) and page.extrasamples[-1] in ALPHA
        if samples - has_alpha not in (1, 3):
            raise InputError(
                f"{path} has {samples} channels, none of them tagged as alpha; expected 1, 3, or these and alpha"
            )
        pixels = page.asarray()
        if model == PALETTE:
            palette = (page.colormap >> 8).astype(np.uint8).T
            pixels = pixels.astype(np.uint8)
            pixels = _numbers(pixels, palette) if palette_indices else palette[pixels]
        lossy = page.compression in LOSSY_TIFF
    if samples > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        pixels = np.moveaxis(pixels, 0, -1)
    if not pixels.size or pixels.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError("its header and its values disagree (damaged?)")
    pixels = _upright(pixels, turned)
    alpha = pixels[..., -1] if has_alpha else None
    colours = pixels if pixels.ndim == 2 else pixels[..., 0] if samples == 2 else pixels[..., :3]
    if model == WHITE_IS_ZERO:
        colours = ~colours  # of bool, uint8, uint16: white less the value
    return Stored(colours, alpha, lossy, model == WHITE_IS_ZERO)


def _tiff_orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo TIFF/EXIF orientation 1 to 8: 2 and 4 are mirrored, 3 is turned by 180 degrees, 5 to 8 have rows and columns
    swapped.
    """
    if orientation in TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
