"""Every kind of image becomes the uint8 pixels that a person sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_gen.data import DataError, ImageFolder
from tests.data.pictures import noise, opened, write


def pixels_of(path: Path, cache: Path, **settings: object) -> np.ndarray:
    """(H, W, C) of the one image in a folder."""
    return (
        opened(ImageFolder(path=str(path.parent)), cache, **settings).train.images_NHWC[0].numpy()
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp"])
def test_lossless_files_keep_every_pixel(tmp_path: Path, extension: str, channels: int) -> None:
    expected = noise(9, 14, channels)
    options = {"lossless": True} if extension == "webp" else {}
    path = write(tmp_path / "images" / f"a.{extension}", expected, **options)
    # WebP has no grey: such a file is read as RGB with equal channels.
    got = pixels_of(path, tmp_path / "cache", channels=channels)
    assert np.array_equal(got, expected.reshape(9, 14, channels))


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    path = write(tmp_path / "images" / "a.JPEG", noise(16, 16, 3), quality=95)
    expected = np.asarray(Image.open(path))
    assert np.array_equal(pixels_of(path, tmp_path / "cache"), expected)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("I;16", 1), ("RGB", 3), ("P", 3)]
)
def test_channels_follow_the_first_image(tmp_path: Path, mode: str, channels: int) -> None:
    path = write(tmp_path / "images" / "a.png", Image.new(mode, (4, 4)))
    assert pixels_of(path, tmp_path / "cache").shape == (4, 4, channels)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (10, 20, 30, 0)
    rgba[1, 0] = (0, 0, 0, 51)  # a fifth of black on white: 204
    got = pixels_of(write(tmp_path / "rgba" / "a.png", rgba), tmp_path / "cache")
    assert got[0, 0].tolist() == [10, 20, 30]
    assert got[0, 1].tolist() == [255, 255, 255]
    assert got[1, 0].tolist() == [204, 204, 204]

    grey = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    got = pixels_of(write(tmp_path / "la" / "a.png", grey), tmp_path / "cache")
    assert got.ravel().tolist() == [7, 255]

    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 100, 0])
    palette.putpixel((1, 0), 1)
    path = write(tmp_path / "palette" / "a.png", palette, transparency=1)
    assert pixels_of(path, tmp_path / "cache").tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 128 * 257, 200 * 257 + 128, 200 * 257 + 129, 65535]], np.uint16)
    path = write(tmp_path / "images" / "a.png", Image.fromarray(deep))
    got = pixels_of(path, tmp_path / "cache")
    assert got.ravel().tolist() == [0, 1, 128, 200, 201, 255]


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90° clockwise
    path = write(tmp_path / "images" / "a.png", noise(4, 6, 3), exif=exif)
    assert np.array_equal(pixels_of(path, tmp_path / "cache"), np.rot90(noise(4, 6, 3), -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_make_an_image_corrupt(tmp_path: Path) -> None:
    path = write(tmp_path / "images" / "a.png", noise(4, 6, 3), exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert np.array_equal(pixels_of(path, tmp_path / "cache"), noise(4, 6, 3))


def test_center_crop_takes_pixels_of_the_original(tmp_path: Path) -> None:
    path = write(tmp_path / "images" / "a.png", noise(10, 17, 3))
    expected = noise(10, 17, 3)[2:8, 5:11]
    assert np.array_equal(pixels_of(path, tmp_path / "cache", center_crop=6), expected)
    same = pixels_of(path, tmp_path / "cache", center_crop=6, image_size=6)
    assert np.array_equal(same, expected)
    with pytest.raises(
        DataError, match=r"data\.center_crop: 11 is more than .*a\.png.* 10 or less"
    ):
        pixels_of(path, tmp_path / "cache", center_crop=11)


@pytest.mark.parametrize("shape_HW", [(40, 60), (60, 40), (33, 47), (5, 9)])
@pytest.mark.parametrize("size_HW", [(16, 16), (12, 20), (7, 3)])
def test_resizing_covers_and_keeps_the_aspect(
    tmp_path: Path, shape_HW: tuple[int, int], size_HW: tuple[int, int]
) -> None:
    """A picture of its own coordinates: the centre stays in the centre, both axes scale alike."""
    height, width = shape_HW
    scale = min(height / size_HW[0], width / size_HW[1])
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 255 / width, y * 255 / height, 0 * x], axis=-1).round().astype(np.uint8)
    path = write(tmp_path / "images" / "a.png", ramps)
    got = pixels_of(path, tmp_path / "cache", image_size=size_HW)
    assert got.shape == (*size_HW, 3)
    out_y, out_x = np.mgrid[: size_HW[0], : size_HW[1]]
    want_x = width / 2 + (out_x + 0.5 - size_HW[1] / 2) * scale - 0.5
    want_y = height / 2 + (out_y + 0.5 - size_HW[0] / 2) * scale - 0.5
    # Away from the border, where a ramp has no neighbours to average with.
    inside = (
        slice(size_HW[0] // 3, -(size_HW[0] // 3)),
        slice(size_HW[1] // 3, -(size_HW[1] // 3)),
    )
    tolerance = 2 + 255 * max(1 / width, 1 / height) * 0.2
    assert np.abs(got[..., 0] - want_x * 255 / width)[inside].max() < tolerance
    assert np.abs(got[..., 1] - want_y * 255 / height)[inside].max() < tolerance


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    path = write(tmp_path / "images" / "a.png", stripes)
    got = pixels_of(path, tmp_path / "cache", image_size=8).astype(int)
    assert np.abs(got - 127).max() < 12  # nearest neighbour would give 0 or 255


def test_images_that_differ_in_size_need_an_image_size(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png", noise(8, 8, 3))
    write(tmp_path / "images" / "b.png", noise(8, 10, 3))
    with pytest.raises(DataError, match=r"data\.image_size: .*a\.png is 8×8 .*b\.png 8×10; set"):
        opened(ImageFolder(path=str(tmp_path / "images")), tmp_path / "cache")
    store = opened(ImageFolder(path=str(tmp_path / "images")), tmp_path / "cache", image_size=8)
    assert store.train.images_NHWC.shape == (2, 8, 8, 3)


def test_settings_that_no_image_can_have_are_refused(tmp_path: Path) -> None:
    folder = ImageFolder(path=str(write(tmp_path / "images" / "a.png", noise(8, 8, 3)).parent))
    for settings, message in [
        ({"channels": 17}, r"data\.channels: 17 is not in 1 to 16"),
        ({"image_size": 0}, r"data\.image_size: 0"),
        ({"center_crop": 0}, r"data\.center_crop: 0"),
        ({"held_out_fraction": 1.0}, r"data\.held_out_fraction: 1\.0"),
    ]:
        with pytest.raises(DataError, match=message):
            opened(folder, tmp_path / "cache", **settings)
