"""Pictures and masks of all kinds of storage, made by hypothesis: read right, or refused by one line with the file.

A mask is never changed in silence: what is read is what was written, or its void and its coding are refused.
"""

import io
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from samtune.common.errors import InputError
from samtune.data.files import IMAGE_SUFFIXES, readable
from samtune.data.folder import MASK_CODINGS, FolderDataset
from samtune.data.pixels import image_size, read_image, read_index_map, read_mask

FUZZ = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
LOSSLESS = ("bmp", "gif", "png", "tif", "webp", "PNG", "TIFF")
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='/\\:*?"<>|\0'), min_size=1, max_size=12
).filter(lambda name: not name.startswith(".") and len(name.encode()) < 100 and name.strip() == name)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: np.rot90,
}
warnings.filterwarnings("ignore", "16-bit pictures")


def one_line(error: InputError, *files: Path) -> bool:
    """Does the message name one of the files, on one line?"""
    text = str(error)
    return "\n" not in text.strip() and any(str(file) in text for file in files)


def write(path: Path, pixels: np.ndarray, orientation: int, mode: str) -> None:
    """`pixels` uint8 `(H, W)` or `(H, W, 3)` stored as `mode` asks; the suffix says in which format."""
    suffix = path.suffix.lower()
    if mode == "deep":
        deep = pixels.astype(np.uint16) * 257
        if suffix in (".tif", ".tiff"):
            tag = [(274, "H", 1, orientation, True)]
            tifffile.imwrite(path, deep, photometric="rgb" if deep.ndim == 3 else "minisblack", extratags=tag)
            return
        if suffix == ".png":
            path.write_bytes(cv2.imencode(".png", deep[..., ::-1] if deep.ndim == 3 else deep)[1].tobytes())
            return
    picture = Image.fromarray(pixels)
    if mode == "alpha" and suffix not in (".jpg", ".bmp", ".gif"):
        picture.putalpha(255)
    if mode == "palette" and pixels.ndim == 2 and suffix not in (".webp", ".jpg"):
        picture = Image.fromarray(pixels, "P")
        picture.putpalette([value for index in range(256) for value in (index,) * 3])
    if mode == "bit" and pixels.ndim == 2 and suffix in (".png", ".tif", ".tiff", ".bmp"):
        picture = Image.fromarray(pixels > 127)
    options = {"lossless": True} if suffix == ".webp" else {}
    if suffix in (".tif", ".tiff"):
        options["tiffinfo"] = {274: orientation}
    elif suffix in (".png", ".webp", ".jpg"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    picture.save(path, **options)


def turns(path: Path, mode: str) -> bool:
    """Does `write` note the orientation in this format?"""
    suffix = path.suffix.lower()
    return suffix not in (".bmp", ".gif") and not (mode == "deep" and suffix == ".png")


@FUZZ
@given(
    NAMES, SIZES, st.sampled_from(LOSSLESS), st.sampled_from(["plain", "deep", "alpha", "palette", "bit"]),
    st.integers(1, 8), st.integers(0, 2**32 - 1), st.booleans(),
)  # fmt: skip
def test_pictures_come_back_as_they_are(name, size, suffix, mode, orientation, seed, colour):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3) if colour else size, dtype=np.uint8)
    pixels.flat[0] = 255  # a deep picture that keeps to fewer bits is brightened, as it says
    if suffix == "gif" or mode == "bit":
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        pixels = pixels if pixels.ndim == 2 else np.repeat(pixels[..., :1], 3, axis=2)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.{suffix}"
        write(path, pixels, orientation, mode)
        expected = UPRIGHT[orientation](pixels) if turns(path, mode) else pixels
        expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
        found = read_image(path)
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
        assert image_size(path) == expected.shape[:2]


@FUZZ
@given(
    NAMES, SIZES, st.sampled_from([*LOSSLESS, "jpg"]), st.sampled_from(["plain", "deep", "alpha", "palette", "bit"]),
    st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=5, unique=True), st.integers(0, 2**32 - 1),
    st.booleans(),
)  # fmt: skip
def test_masks_are_read_right_or_refused(name, size, suffix, mode, orientation, levels, seed, blocks):
    """Areas, or single pixels, of any levels: as 0/255, as 0/1, as numbers."""
    rng = np.random.default_rng(seed)
    pixels = rng.choice(np.array(levels, np.uint8), size)
    if blocks:
        pixels = np.kron(pixels, np.ones((8, 8), np.uint8))
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.{suffix}"
        write(path, pixels, orientation, mode)
        stored = (
            np.where(pixels > 127, 255, 0)
            if mode == "bit" and suffix in ("png", "tif", "bmp", "PNG", "TIFF")
            else pixels
        )
        expected = (UPRIGHT[orientation](stored) if turns(path, mode) else stored).astype(int)
        try:
            mask = read_mask(path)
            # Where two classes of one file fill areas, there is no one right cut.
            lossy = suffix == "jpg"
            assert mask.shape == expected.shape and (lossy or np.array_equal(mask, expected > 127))
            if blocks and not lossy:
                assert len({level for level in np.unique(expected) if level > 15}) <= 1 or expected.max() > 239
        except InputError as error:
            assert one_line(error, path)
            assert np.count_nonzero(np.unique(expected)) > 1 or 0 < expected.max() < 128 or suffix == "jpg"
        try:
            numbers = read_index_map(path)
            full = 257 if mode == "deep" and suffix in ("png", "tif", "PNG", "TIFF") else 1
            is_bit = mode == "bit" and suffix in ("png", "tif", "bmp", "PNG", "TIFF")
            assert np.array_equal(numbers > 0, expected * full > 0)
            assert is_bit or suffix == "gif" or np.array_equal(numbers, expected * full)
        except InputError as error:
            assert one_line(error, path) and suffix in ("jpg", "gif")


@FUZZ
@given(st.binary(max_size=80), st.sampled_from(IMAGE_SUFFIXES), st.integers(0, 200), st.integers(0, 255))
def test_damaged_files_are_one_line(contents, suffix, place, value):
    """Anything at all, and whole pictures with one byte changed, or cut off."""
    pixels = np.arange(20 * 30, dtype=np.uint32).reshape(20, 30).astype(np.uint8)
    format = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    changed = bytearray(buffer.getvalue())
    changed[place % len(changed)] = value
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        for broken in (contents, bytes(changed), bytes(changed[: max(place, 1)])):
            path.write_bytes(broken)
            for read in (read_image, read_mask, read_index_map):
                try:
                    assert read(path).shape[:2] >= (1, 1)
                except InputError as error:
                    assert str(path) in str(error)


@FUZZ
@given(
    st.lists(NAMES, min_size=3, max_size=5, unique_by=lambda name: readable(name).lower()),
    st.lists(st.sampled_from([0, 1, 2, 7, 127, 128, 200, 254, 255]), min_size=1, max_size=4, unique=True),
    st.sampled_from(MASK_CODINGS), st.sampled_from(["union", "instances"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_own_folders_are_read_right_or_refused(names, levels, coding, target, seed):
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        images, masks = Path(folder) / "images", Path(folder) / "masks"
        images.mkdir()
        masks.mkdir()
        truth = {}
        for name in names:
            pixels = np.kron(rng.choice(np.array(levels, np.uint8), (2, 3)), np.ones((6, 6), np.uint8))
            Image.fromarray(pixels).save(images / f"{name}.bmp")
            Image.fromarray(pixels).save(masks / f"{name}.png")
            truth[readable(name)] = pixels
        try:
            dataset = FolderDataset(images, masks, coding, split="test", target=target)
        except InputError as error:
            files = [
                folder / f"{name}.{suffix}" for folder in (images, masks) for name in names for suffix in ("bmp", "png")
            ]
            assert one_line(error, images, masks, *files)
            return
        for id in dataset.ids("test"):
            found, pixels = dataset.load(id).masks, truth[id]
            wanted = pixels > 127 if coding == "binary255" else pixels > 0
            assert np.array_equal(found.any(0), wanted) and found.sum(0).max() == 1
            objects = len(set(np.unique(pixels)) - {0}) if coding == "index" and target == "instances" else 1
            assert len(found) == objects
