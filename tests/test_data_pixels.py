"""Reading pictures and masks: every coding that the kit meets, and every one that it must refuse."""

import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image, PngImagePlugin

from samtune.common.errors import InputError
from samtune.data.pixels import (
    check_same_size,
    image_size,
    read_image,
    read_index_map,
    read_mask,
    read_mat,
)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_plain_pictures_come_back_as_they_are(tmp_path, picture):
    for suffix in ("png", "bmp", "tif"):
        Image.fromarray(picture).save(tmp_path / f"a.{suffix}")
        assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), picture)


def test_grey_is_repeated_and_alpha_dropped_not_blended(tmp_path, picture):
    alpha = np.zeros((5, 7, 1), dtype=np.uint8)
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.concatenate([picture, alpha], axis=2)).save(tmp_path / "rgba.png")
    Image.fromarray(np.concatenate([picture[..., :1], alpha], axis=2), "LA").save(tmp_path / "la.png")
    tifffile.imwrite(
        tmp_path / "rgba.tif", np.concatenate([picture, alpha], axis=2), photometric="rgb", extrasamples=["unassalpha"]
    )
    grey = np.stack([picture[..., 0]] * 3, axis=2)
    assert np.array_equal(read_image(tmp_path / "grey.png"), grey)
    assert np.array_equal(read_image(tmp_path / "la.png"), grey)
    assert np.array_equal(read_image(tmp_path / "rgba.png"), picture)
    assert np.array_equal(read_image(tmp_path / "rgba.tif"), picture)


def test_palette_and_one_bit_pictures(tmp_path):
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for suffix in ("png", "gif", "tif"):
        indices.save(tmp_path / f"a.{suffix}")
        assert read_image(tmp_path / f"a.{suffix}")[1, 0].tolist() == [70, 80, 90]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    assert read_image(tmp_path / "bit.png")[0].tolist() == [[255] * 3, [0] * 3]


# What a viewer must do with the stored pixels, by the EXIF standard's table (independent of Pillow's own code).
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.transpose(a, (1, 0, 2)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(
        tmp_path / "a.tif", picture, photometric="rgb", extratags=[(274, "H", 1, orientation, True)], metadata=None
    )
    expected = UPRIGHT[orientation](picture)
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)


def test_sixteen_bits_are_divided_by_257(tmp_path, picture):
    deep = picture.astype(np.uint16) * 257
    deep[0, 0] = 65535
    picture[0, 0] = 255
    tifffile.imwrite(tmp_path / "rgb.tif", deep, photometric="rgb")
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(deep, -1, 0), photometric="rgb", planarconfig="separate")
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "rgb.png"), deep[..., ::-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("rgb.tif", "planar.tif", "rgb.png"):
            assert np.array_equal(read_image(tmp_path / name), picture), name
        assert np.array_equal(read_image(tmp_path / "grey.png")[..., 1], picture[..., 0])


def test_twelve_bit_data_is_scaled_by_its_range_and_says_so(tmp_path):
    values = np.array([[0, 4095], [2048, 819]], dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    with pytest.warns(UserWarning, match="12-bit"):
        image = read_image(tmp_path / "a.tif")
    assert image[..., 0].tolist() == [[0, 255], [128, 51]]


def test_eight_bit_data_in_a_sixteen_bit_file_is_not_darkened(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 255], [7, 100]], np.uint16), photometric="minisblack")
    with pytest.warns(UserWarning, match="8-bit"):
        assert read_image(tmp_path / "a.tif")[..., 0].tolist() == [[0, 255], [7, 100]]


def test_three_samples_tagged_minisblack_are_colour(tmp_path, picture):
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="minisblack", planarconfig="contig", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].samplesperpixel == 3
    with pytest.raises(OSError):
        Image.open(tmp_path / "a.tif").load()
    assert np.array_equal(read_image(tmp_path / "a.tif"), picture)


def test_bad_files_are_named_with_the_reason(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png", "cut.tif"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=f"cannot read image .*{name}: ."):
            read_image(tmp_path / name)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match="cannot read image .*text.png"):
        read_image(tmp_path / "text.png")
    with pytest.raises(InputError, match="no such file: .*absent.png"):
        read_image(tmp_path / "absent.png")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(InputError, match="float.tif: TIFF values of type float32"):
        read_image(tmp_path / "float.tif")


def mask_file(folder, values, name="m.png"):
    Image.fromarray(np.asarray(values, dtype=np.uint8 if np.max(values) < 256 else np.uint16)).save(folder / name)
    return folder / name


def test_masks_are_cut_above_127(tmp_path):
    assert read_mask(mask_file(tmp_path, [[0, 127, 128, 255]])).tolist() == [[False, False, True, True]]
    assert read_mask(mask_file(tmp_path, [[0, 251, 0]])).tolist() == [[False, True, False]]
    assert not read_mask(mask_file(tmp_path, np.zeros((3, 3)))).any()
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    assert read_mask(tmp_path / "bit.png").tolist() == [[True, False]]
    tifffile.imwrite(tmp_path / "deep.tif", np.array([[0, 65535, 32000]], dtype=np.uint16))
    assert read_mask(tmp_path / "deep.tif").tolist() == [[False, True, False]]
    rgba = np.zeros((1, 2, 4), dtype=np.uint8)
    rgba[0, 0] = 255
    assert read_mask(mask_file(tmp_path, rgba)).tolist() == [[True, False]]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([4, 2, 4, 252, 254, 252])  # DRIVE's second observer: nearly black and white
    palette.save(tmp_path / "drive.gif")
    assert read_mask(tmp_path / "drive.gif").tolist() == [[False, True]]


@pytest.mark.parametrize(("bits", "values"), [(2, [0, 1, 2, 3]), (4, [0, 1, 2, 15])])
def test_numbers_in_grey_of_few_bits_are_the_files_own(tmp_path, bits, values):
    """As compact writers store them; Pillow spreads such values over 0 to 255."""
    packed = bytes([0]) + np.packbits(np.unpackbits(np.uint8(values)[:, None], axis=1)[:, -bits:].ravel()).tobytes()
    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    written = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    (tmp_path / "few.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))
    assert read_index_map(tmp_path / "few.png").tolist() == [values]


def test_small_numbers_in_colour_channels_are_refused_not_folded(tmp_path):
    codes = np.uint8([[[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]])
    Image.fromarray(codes).save(tmp_path / "codes.png")
    with pytest.raises(InputError, match="codes.png is a colour picture; a mask needs one value per pixel"):
        read_index_map(tmp_path / "codes.png")


def test_sixteen_bits_under_another_suffix_are_read(tmp_path):
    deep = np.uint16([[0, 300], [4000, 65535]])
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg")[..., 0].tolist() == [[0, 1], [16, 255]]


def test_soft_rims_of_masks_are_no_index_map(tmp_path):
    disc = np.hypot(*np.mgrid[-30:31, -30:31]) < 20
    Image.fromarray((disc * 255).astype(np.uint8)).save(tmp_path / "m.jpg", quality=70)
    assert (read_mask(tmp_path / "m.jpg") != disc).mean() < 0.02
    values = (disc * 255).astype(np.uint8)
    values[0, :9] = 11  # CVC-ClinicDB holds masks of exactly 0, 11 and 255
    assert np.array_equal(read_mask(mask_file(tmp_path, values)), disc)


@pytest.mark.parametrize("values", [[[0, 1]], [[1, 1]]])
def test_masks_coded_zero_one_are_refused_with_the_option(tmp_path, values):
    with pytest.raises(InputError, match=r"m.png is coded 0/1.*values.*1.*mask_coding='binary1'"):
        read_mask(mask_file(tmp_path, values))


@pytest.mark.parametrize("values", [
    [[0, 1, 2, 3]], [[0, 7, 7]], [[0, 15, 2, 255]], [[100, 0, 0]], [[0] + [3, 150] * 20], [[*range(201)]],
    [[0, 300]], [[*range(301)]], [[0] + [26001, 33002] * 20],
])  # fmt: skip
def test_index_maps_are_refused_as_masks_with_the_option(tmp_path, values):
    with pytest.raises(InputError, match=r"m.png looks like an index map.*values.*mask_coding='index'"):
        read_mask(mask_file(tmp_path, values))


def test_sixteen_bit_masks_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 65535, 20000, 65535]], np.uint16)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True, False, True]]
    Image.fromarray(np.array([[0, 255]], np.uint16)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True]]


def test_colour_masks_are_refused(tmp_path):
    colours = np.zeros((2, 2, 3), dtype=np.uint8)
    colours[0, 0] = 128, 0, 0
    with pytest.raises(InputError, match="colour picture.*mask_coding='index'"):
        read_mask(mask_file(tmp_path, colours))


def test_index_maps_keep_palette_indices_and_sixteen_bits(tmp_path):
    indices = Image.fromarray(np.array([[0, 1], [2, 255]], dtype=np.uint8), "P")
    indices.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [99] * 759)
    indices.save(tmp_path / "voc.png")
    assert read_index_map(tmp_path / "voc.png").tolist() == [[0, 1], [2, 255]]
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_index_map(tmp_path / "deep.png").tolist() == [[0, 300]]
    assert read_index_map(tmp_path / "deep.png").dtype == np.int32


def test_mat_files(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"values": np.arange(3)})
    assert read_mat(tmp_path / "a.mat", "values").ravel().tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="no variable 'labels'; found: values"):
        read_mat(tmp_path / "a.mat", "labels")
    (tmp_path / "b.mat").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot read .*b.mat"):
        read_mat(tmp_path / "b.mat", "x")


def test_sizes_must_agree_and_both_are_named(tmp_path):
    with pytest.raises(InputError, match="image a.jpg is 7x5 pixels but mask b.png is 8x5"):
        check_same_size(np.zeros((5, 7, 3)), np.zeros((5, 8)), "a.jpg", "b.png")
    check_same_size(np.zeros((5, 7, 3)), np.zeros((2, 5, 7)), "a.jpg", "b.png")


def test_an_exif_orientation_is_named_where_it_is_the_cause(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "plain.jpg")
    with pytest.raises(InputError, match=r"turned.jpg is 20x30 .* 30x20 .*EXIF orientation \(6\)"):
        check_same_size(read_image(tmp_path / "turned.jpg"), np.zeros((20, 30)), tmp_path / "turned.jpg", "m.png")
    with pytest.raises(InputError, match="make them match$"):
        check_same_size((20, 30), (30, 20), tmp_path / "plain.jpg", "m.png")


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_sizes_from_headers_are_those_of_the_pictures(tmp_path, picture, orientation):
    """TIFF in tifffile's and in Pillow's hands, 16-bit PNG, and JPEG."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = picture.astype(np.uint16) * 257
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", extratags=tag)
    indices = Image.fromarray(picture[..., 0], "P")
    indices.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    indices.save(tmp_path / "palette.tif", tiffinfo={274: orientation})
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(picture).save(tmp_path / "plain.png", exif=exif)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    plain, whole = (tmp_path / "plain.png").read_bytes(), (tmp_path / "deep.png").read_bytes()
    start = plain.index(b"eXIf") - 4
    chunk = plain[start : start + 12 + int.from_bytes(plain[start : start + 4], "big")]
    (tmp_path / "deep.png").write_bytes(whole[:33] + chunk + whole[33:])  # after the header's chunk
    for name in ("a.tif", "palette.tif", "a.jpg", "deep.png"):
        assert image_size(tmp_path / name) == read_image(tmp_path / name).shape[:2], name
        assert image_size(tmp_path / name) == UPRIGHT[orientation](picture).shape[:2], name
    assert np.array_equal(read_image(tmp_path / "a.tif"), UPRIGHT[orientation](picture))
    assert np.array_equal(read_image(tmp_path / "deep.png"), UPRIGHT[orientation](picture))
    assert np.array_equal(read_image(tmp_path / "palette.tif")[..., 0], UPRIGHT[orientation](picture)[..., 0])


def test_the_size_of_a_png_is_read_without_decoding_it(tmp_path, picture, monkeypatch):
    for name, wanted in (("plain.png", 0), ("with_text.png", 1)):  # EXIF may be inside text
        text = PngImagePlugin.PngInfo()
        if wanted:
            text.add_text("Software", "a camera")
        Image.fromarray(picture).save(tmp_path / name, pnginfo=text)
        loaded = []
        load = PngImagePlugin.PngImageFile.load
        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: loaded.append(1) or load(self))  # noqa: B023
        assert image_size(tmp_path / name) == picture.shape[:2]
        monkeypatch.undo()
        assert len(loaded) >= wanted and (wanted or not loaded)


@pytest.mark.parametrize("greys", [(128, 255), (85, 170, 255), (128, 200), (60, 255)])
def test_classes_as_greys_are_no_binary_mask(tmp_path, greys):
    values = np.zeros((64, 96))
    for number, grey in enumerate(greys):
        values[10 + 12 * number : 20 + 12 * number, 20:50] = grey
    for name in ("m.png", "m.tif", "m.bmp"):
        with pytest.raises(InputError, match=f"{name} looks like an index map.*{greys[0]}.*mask_coding='index'"):
            read_mask(mask_file(tmp_path, values, name))
    touching = np.zeros((64, 96))
    touching[10:40, 10:40], touching[10:40, 40:80] = greys[0], greys[-1]
    with pytest.raises(InputError, match="looks like an index map"):
        read_mask(mask_file(tmp_path, touching))


@pytest.mark.parametrize("zoom", [2, 4])
def test_antialiased_rims_stay_allowed(tmp_path, zoom):
    disc = np.hypot(*np.mgrid[-60:61, -60:61]) < 40
    soft = cv2.GaussianBlur(disc.astype(np.float32), (0, 0), 1.2)
    small = cv2.resize(disc.astype(np.float32), None, fx=1 / zoom, fy=1 / zoom, interpolation=cv2.INTER_AREA)
    for name, values in {
        "smooth.png": cv2.resize(soft, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC),
        "small.png": small,
        "steps.png": np.kron(small, np.ones((4, 4))),  # a rim 4 pixels wide
    }.items():
        values = (values.clip(0, 1) * 255).round()
        assert np.array_equal(read_mask(mask_file(tmp_path, values, name)), values > 127), name


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_in_the_alpha_channel_alone_is_taken(tmp_path, colour, mode):
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:12] = True
    layer = Image.new(mode, (30, 20), (colour,) * (len(mode) - 1) + (0,))
    layer.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
    for suffix in ("png", "tif"):
        layer.save(tmp_path / f"m.{suffix}")
        assert np.array_equal(read_mask(tmp_path / f"m.{suffix}"), mask)
    with pytest.raises(InputError, match="alpha"):
        read_index_map(tmp_path / "m.png")


def test_white_that_is_transparent_is_refused(tmp_path):
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[3:9, 4:12] = 255
    assert read_mask(mask_file(tmp_path, pixels)).sum() == 48
    pixels[3:5, 4:12, 3] = 0  # an eraser took these away, and left their colour
    with pytest.raises(InputError, match="m.png marks pixels that its alpha channel makes transparent"):
        read_mask(mask_file(tmp_path, pixels))


@pytest.mark.parametrize(("name", "options"), [("m.jpg", {}), ("m.webp", {}), ("m.tif", {"compression": "jpeg"})])
def test_numbers_do_not_survive_lossy_formats(tmp_path, name, options):
    labels = np.zeros((32, 48), np.uint8)
    labels[4:12, 5:20], labels[20:30, 8:30] = 1, 2
    Image.fromarray(labels).save(tmp_path / name, **options)
    with pytest.raises(InputError, match=f"{name} is saved with loss"):
        read_index_map(tmp_path / name)
    Image.fromarray(labels).save(tmp_path / "whole.webp", lossless=True, exif=Image.Exif())
    assert np.array_equal(read_index_map(tmp_path / "whole.webp"), labels)


def test_further_pages_are_refused_and_smaller_copies_are_not(tmp_path, picture):
    pages = [Image.fromarray(picture), Image.fromarray(picture[::-1])]
    for name in ("a.tif", "a.gif", "a.webp", "a.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match=f"{name} has 2 pages"):
                read(tmp_path / name)
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 5, 7), np.uint8), imagej=True)
    with pytest.raises(InputError, match="stack.tif has 3 pages"):
        read_mask(tmp_path / "stack.tif")
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(picture, photometric="rgb", subifds=0)
        file.write(picture[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "pyramid.tif"), picture)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_without_a_tag_are_not_alpha(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig", metadata=None)
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match=f"a.tif has {channels} channels, none of them tagged as alpha"):
            read(tmp_path / "a.tif")


def test_masks_whose_zero_is_white_are_refused_and_pictures_are_not(tmp_path):
    values = np.array([[0, 255], [255, 0]], np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", values, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "m.tif")[..., 0], 255 - values)
    with pytest.raises(InputError, match="m.tif is a TIFF whose 0 is shown as white"):
        read_mask(tmp_path / "m.tif")


@pytest.mark.parametrize(("top", "bits"), [(4000, 12), (16000, 14)])
def test_one_scale_a_folder_for_sixteen_bits_in_spite_of_a_hot_pixel(tmp_path, top, bits):
    scene = np.linspace(0, top, 64 * 96).reshape(64, 96).round().astype(np.uint16)
    for number in range(3):
        frame = scene.copy()
        if number == 1:
            frame[5, 5] = 60000
        tifffile.imwrite(tmp_path / f"frame{number}.tif", frame)
    with pytest.warns(UserWarning, match=f"{tmp_path.name}, hardly a value above {2**bits - 1}: read as {bits}-bit"):
        first = read_image(tmp_path / "frame0.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        second = read_image(tmp_path / "frame1.tif")
    differs = np.argwhere((first != second).any(2))
    assert differs.tolist() == [[5, 5]] and second[5, 5].tolist() == [255] * 3
    assert np.array_equal(first[..., 0], (scene * 255.0 / (2**bits - 1)).round())


def test_pictures_beyond_pillows_limit_are_read(tmp_path):
    limit = 178_956_970  # above twice this size Pillow speaks of an attack
    Image.new("1", (20_000, limit // 20_000 + 1)).save(tmp_path / "large.png")
    assert np.prod(image_size(tmp_path / "large.png")) > limit
    assert read_mask(tmp_path / "large.png").size > limit
