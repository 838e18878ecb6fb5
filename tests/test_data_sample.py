"""Reading pictures and masks: every coding that the kit meets, and every one that it must refuse."""

import warnings

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from samtune.common.errors import InputError
from samtune.data.pixels import (
    check_same_size,
    read_image,
    read_index_map,
    read_mask,
    read_mat,
)
from samtune.data.sample import Sample, stack_masks, target_masks


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


def test_targets():
    masks = np.zeros((2, 2, 3), dtype=bool)
    masks[0, 0, 0] = masks[1, 1, 2] = True
    sample = Sample("a", "d", "test", np.zeros((2, 3, 3), dtype=np.uint8), masks)
    assert np.array_equal(target_masks(sample, "instances"), masks)
    union = target_masks(sample, "union")
    assert union.shape == (1, 2, 3) and union.sum() == 2 and union.dtype == bool
    empty = Sample("a", "d", "test", sample.image, stack_masks([], (2, 3)))
    assert target_masks(empty, "union").shape == (0, 2, 3)
    blank = Sample("a", "d", "test", sample.image, np.zeros((1, 2, 3), dtype=bool))
    assert target_masks(blank, "union").shape == (0, 2, 3)
    with pytest.raises(InputError, match="unknown target 'unoin'; known: union"):
        target_masks(sample, "unoin")
