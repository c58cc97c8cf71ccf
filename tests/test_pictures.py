"""What a picture file holds is the images, pixel for pixel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ray_gen.data.decode import look_at
from ray_gen.data.pictures import Bands, read_picture
from ray_gen.errors import Refused
from ray_gen.pixels import PixelFormat
from ray_gen.runs import pictures
from ray_gen.runs.captions import Captions, count_shown, drawable


def rows(count: int, steps: int, channels: int = 1) -> torch.Tensor:
    """(R, S, C, 4, 6), each image of one level of its own."""
    levels = torch.arange(1, count * steps + 1).reshape(count, steps, 1, 1, 1) / 255
    return levels.expand(count, steps, channels, 4, 6)


def test_a_grid_is_in_reading_order_on_white() -> None:
    picture = pictures.grid(rows(1, 5)[0], columns=2)
    assert picture.shape == (3 * 6 + 2, 2 * 8 + 2, 1)
    assert picture[2, 2, 0] == 1
    assert picture[2, 10, 0] == 2
    assert picture[14, 2, 0] == 5
    assert set(np.unique(picture)) == {1, 2, 3, 4, 5, 255}
    assert pictures.grid(rows(1, 5)[0]).shape == (2 * 6 + 2, 3 * 8 + 2, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_written_as_a_grid_an_animation_an_array_or_files(
    tmp_path: Path, channels: int
) -> None:
    images = rows(2, 3, channels)
    said = pictures.save_rows(images, tmp_path / "a.png", zoom=2)
    assert said == f"{tmp_path}/a.png: 2 rows of 3 steps"
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape[:2] == (2 * (2 * 6 + 2), 2 * (3 * 8 + 2))
    assert picture.ndim == (2 if channels == 1 else 3)

    said = pictures.save_rows(images, tmp_path / "a.gif")
    assert said.endswith("2 rows of 3 steps, forwards and backwards")
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4
        assert animation.info["loop"] == 0
        for frame, step in enumerate((0, 1, 2, 1)):
            animation.seek(frame)
            expected = pictures.grid(images[:, step])
            found = np.asarray(animation.convert("L"))
            assert np.array_equal(found, expected[:, :, 0])

    pictures.save_rows(images, tmp_path / "a.npz")
    written = np.load(tmp_path / "a.npz")["images"]
    assert written.shape == (2, 3, 4, 6, channels)
    assert written[:, :, 0, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]

    pictures.save_rows(images, tmp_path / "folder")
    files = sorted((tmp_path / "folder").iterdir())
    assert [np.asarray(Image.open(file)).flat[0] for file in files] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Refused, match="already contains PNG files"):
        pictures.save_rows(images, tmp_path / "folder")


@pytest.mark.parametrize("size", [28, 64, 256])
def test_images_are_shown_as_large_as_a_person_needs(size: int) -> None:
    assert 80 <= size * pictures.zoom_of(size, size) <= max(size, 130)
    assert pictures.zoom_of(4, 4) == 4


def test_a_zoomed_grid_is_the_grid_with_larger_pixels() -> None:
    images = random_images(5, 3)
    plain = pictures.grid(images, 3)
    assert np.array_equal(pictures.grid(images, 3, zoom=4), plain.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_captions_stand_beside_the_images_and_change_none(channels: int) -> None:
    images = random_images(6, channels)
    plain = pictures.grid(images, 3, zoom=4)
    height, width, _ = plain.shape
    told = Captions(columns=["cat", "", "a long name of a class"], rows=["one", ""])
    picture = pictures.grid(images, 3, zoom=4, captions=told)
    assert np.array_equal(picture[-height:, -width:], plain)
    above, beside = picture[:-height, -width:], picture[-height:, :-width]
    right = 4 * (17 + 2)
    starts = range(8, 3 * right, right)
    inks = [(above[:, start : start + right - 8] < 128).any() for start in starts]
    assert inks == [True, False, True]
    down = 4 * (12 + 2)
    assert [(beside[start : start + down] < 128).any() for start in (0, down)] == [True, False]
    assert (picture[:-height, :-width] == 255).all()


def test_the_classes_of_samples_have_a_column_each() -> None:
    names = ["cat", "dog", "cow"]
    images = torch.arange(1, 25).reshape(24, 1, 1, 1).expand(24, 1, 8, 8) / 255
    picture = pictures.samples_grid(images, names)
    lefts = range(2, picture.shape[1] - 2, 10)
    columns = [set(np.unique(picture[-80:, left : left + 8])) for left in lefts]
    of_each = [{(level - 1) % 3 for level in levels & set(range(1, 25))} for levels in columns]
    assert of_each == [{0}, {1}, {2}, {0}, {1}, {2}]
    assert [count_shown(n) % max(n, 1) for n in range(17)] == [0] * 17
    assert all(50 <= count_shown(n) <= 80 for n in range(17))
    assert count_shown(0) == count_shown(1000) == 64


def test_numbers_and_classes_of_many_samples_stand_above_them() -> None:
    images = random_images(4, 1)
    numbered = pictures.samples_grid(images, numbered=True)
    assert len(numbered) > len(pictures.samples_grid(images))
    told = pictures.samples_grid(images, [f"{i}" for i in range(20)], numbered=True, zoom=4)
    bare = pictures.samples_grid(images, numbered=True, zoom=4)
    assert (told < 128).sum() > (bare < 128).sum()


def test_a_name_that_the_font_lacks_is_written_without_accents_or_as_a_number() -> None:
    assert drawable("cat 3", "0") == "cat 3"
    assert drawable("Äpfel", "1") == "Apfel"
    assert drawable("中文", "2") == "2"


def test_a_film_shows_the_frames_there_and_back(tmp_path: Path) -> None:
    images = rows(1, 3, 3)[:, :, :, :3, :5].repeat_interleave(30, 3).repeat_interleave(30, 4) * 60
    said = pictures.save_rows(images, tmp_path / "a.mp4")
    assert said.endswith("1 row of 3 steps, forwards and backwards")
    with av.open(str(tmp_path / "a.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 4
    for found, step in zip(frames, (0, 1, 2, 1), strict=True):
        expected = pictures.grid(images[:, step])
        height, width, _ = expected.shape
        assert (len(found) % 2, found.shape[1] % 2) == (0, 0)
        assert np.abs(found[:height, :width].astype(int) - expected).mean() < 3


def test_a_film_without_its_package_is_refused_with_the_remedy(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'ray_gen\[video\]', or write a .gif"):
        pictures.check_film(tmp_path / "a.mp4", "--output")


def random_images(count: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, 12, 17, generator=generator)


def test_transparent_images_lie_on_a_checkerboard_that_grows_with_the_zoom() -> None:
    images = torch.zeros(2, 4, 32, 40)
    images[1, 3] = 1.0  # opaque black
    picture = pictures.grid(images, 2, gap=0, opacity=True, zoom=3)
    nothing, black = picture[:, :120], picture[:, 120:]
    assert not black.any()
    assert set(np.unique(nothing)) == {191, 217}
    corners = nothing[::24, ::24, 0]  # squares of 8 pixels, three times as large
    rows, columns = np.indices(corners.shape)
    assert np.array_equal(corners == 217, (rows + columns) % 2 == 0)
    assert np.array_equal(nothing, np.kron(corners, np.ones((24, 24)))[..., None].repeat(3, 2))


@pytest.mark.parametrize("channels", [2, 4])
def test_half_transparent_images_are_mixed_with_it(channels: int) -> None:
    images = torch.full((1, channels, 16, 16), 0.2)
    images[:, -1] = 0.3
    picture = pictures.grid(images, gap=0, opacity=True)
    assert picture.shape == (16, 16, channels - 1)
    mixed = {round(255 * (0.3 * 0.2 + 0.7 * grey)) for grey in (0.75, 0.85)}
    assert set(np.unique(picture)) == mixed


@pytest.mark.parametrize("channels", [2, 4])
def test_opaque_images_are_shown_as_those_without_opacity(channels: int) -> None:
    images = random_images(5, channels)
    images[:, -1] = 1.0
    shown = pictures.grid(images, opacity=True)
    assert np.array_equal(shown, pictures.grid(images[:, :-1]))


@pytest.mark.parametrize("channels", [4, 7])
def test_of_many_channels_a_grid_shows_the_first_three_and_says_so(
    tmp_path: Path, channels: int
) -> None:
    images = random_images(5, channels)
    assert np.array_equal(pictures.grid(images), pictures.grid(images[:, :3]))
    _is_said(images, f", channels 1 to 3 of {channels} as red, green and blue", tmp_path)


def test_of_two_channels_a_grid_shows_both(tmp_path: Path) -> None:
    images = random_images(5, 2)
    picture = pictures.grid(images, 5, gap=0)
    assert np.array_equal(picture[..., :1], pictures.grid(images[:, :1], 5, gap=0))
    assert np.array_equal(picture[..., 1:2], pictures.grid(images[:, 1:], 5, gap=0))
    assert not picture[..., 2].any()
    _is_said(images, ", channels 1 and 2 as red and green", tmp_path)
    pairs = pictures.grid(pictures.in_turn_rows(images, images, 4), 4)
    assert (pairs[-15:-3, -18:-3] == 255).all()  # no image: white, not yellow


def _is_said(images: torch.Tensor, told: str, tmp_path: Path) -> None:
    assert pictures.save_samples(iter([images]), 5, tmp_path / "a.png").endswith(told)
    assert pictures.save_pairs([(images, images)], tmp_path / "b.png").endswith(told)
    for name in ("c.png", "c.gif"):
        assert pictures.save_rows(images[None], tmp_path / name).endswith(told)


KINDS = {
    (1, 8, False): (".png", "L"),
    (2, 8, False): (".tiff", None),
    (2, 8, True): (".png", "LA"),
    (3, 8, False): (".png", "RGB"),
    (4, 8, False): (".tiff", None),
    (4, 8, True): (".png", "RGBA"),
    (5, 8, False): (".tiff", None),
    (16, 8, False): (".tiff", None),
    (1, 16, False): (".png", "I;16"),
    (2, 16, False): (".tiff", None),
    (2, 16, True): (".tiff", None),
    (3, 16, False): (".tiff", None),
    (4, 16, False): (".tiff", None),
    (4, 16, True): (".tiff", None),
    (5, 16, False): (".tiff", None),
}
"""The kind of file, and Pillow's mode of a PNG, by channels, bits and opacity."""


@pytest.mark.parametrize(("channels", "bits", "opacity"), KINDS)
def test_files_and_arrays_hold_every_channel_and_bit(
    tmp_path: Path, channels: int, bits: int, opacity: bool
) -> None:
    form = PixelFormat(bits, opacity=opacity)
    images = random_images(3, channels)
    most, dtype = 2**bits - 1, {8: np.uint8, 16: np.uint16}[bits]
    expected = np.rint(images.numpy() * np.float32(most)).astype(dtype).transpose(0, 2, 3, 1)
    kind, mode = KINDS[channels, bits, opacity]
    said = pictures.save_samples(iter([images]), 3, tmp_path / "folder", form=form)
    assert said == f"{tmp_path}/folder: 3 {kind[1:].upper()} files"
    files = sorted((tmp_path / "folder").iterdir())
    assert [file.name for file in files] == [f"00000{n}{kind}" for n in range(3)]
    for file, levels in zip(files, expected, strict=True):
        if mode is not None:
            with Image.open(file) as image:
                assert image.mode == mode
                found = np.asarray(image)
        else:
            found = tifffile.imread(file)
        assert found.dtype == dtype
        assert np.array_equal(found.reshape(levels.shape), levels)
        with file.open("rb") as stream:  # as data to train on
            read = read_picture(stream)
        if isinstance(read, Bands):
            assert np.array_equal(read.values_HWC, levels)
        if isinstance(read, Bands) or bits == 8:
            look = look_at(read)
            assert (look.channels, look.alpha) == (channels - opacity, opacity)
    with pytest.raises(Refused, match=f"already contains {kind[1:].upper()} files"):
        pictures.save_samples(iter([images]), 3, tmp_path / "folder", form=form)

    said = pictures.save_samples(iter([images[:2], images[2:]]), 3, tmp_path / "a.npz", form=form)
    assert said == f"{tmp_path}/a.npz: `images`, uint{bits} {expected.shape}"
    assert np.array_equal(np.load(tmp_path / "a.npz")["images"], expected)
    pictures.save_rows(images[None], tmp_path / "b.npz", form=form)
    assert np.array_equal(np.load(tmp_path / "b.npz")["images"], expected[None])
    pictures.save_pairs([(images, 1 - images)], tmp_path / "c.npz", form=form)
    with np.load(tmp_path / "c.npz") as pairs:
        assert np.array_equal(pairs["images"], expected)
        assert pairs["reconstructions"].dtype == dtype


@pytest.mark.parametrize(
    ("channels", "opacity"), [(n, False) for n in (1, 2, 3, 4, 5, 16)] + [(2, True), (4, True)]
)
@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.npz", "folder"])
def test_images_of_any_channels_are_written_in_any_way(
    tmp_path: Path, channels: int, opacity: bool, name: str
) -> None:
    images = random_images(6, channels)
    form = PixelFormat(opacity=opacity)
    pictures.save_rows(images.unflatten(0, (2, 3)), tmp_path / name, form=form)
    colours = 1 if channels - opacity == 1 else 3
    if name.endswith("f"):
        with Image.open(tmp_path / name) as animation:
            assert animation.n_frames == 4
    elif name == "a.png":
        grid = np.asarray(Image.open(tmp_path / name))
        assert grid.shape == (2 * 14 + 2, 3 * 19 + 2, 3)[: 3 if colours == 3 else 2]
    groups = [("+", images[:2], images[2:3])]
    assert pictures.equation(groups, images[[0] * 9], opacity=opacity).shape[2] == colours


def test_pairs_stand_below_each_other_and_a_short_last_row_is_filled_with_white() -> None:
    first, second = rows(1, 5)[0], rows(2, 5)[1]
    picture = pictures.grid(pictures.in_turn_rows(first, second, 3), 3)
    tops, lefts = range(2, 24, 6), range(2, 26, 8)
    found = [[int(picture[top, left, 0]) for left in lefts] for top in tops]
    assert found == [[1, 2, 3], [6, 7, 8], [4, 5, 255], [9, 10, 255]]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_equation_shows_groups_means_signs_and_results(channels: int) -> None:
    images = torch.arange(1, 21).reshape(20, 1, 1, 1).expand(20, channels, 16, 16) / 255
    groups = [
        ("+", images[:3], images[3:4]),
        ("-", images[4:6], images[6:7]),
        ("+", images[7:8], images[8:9]),
    ]
    picture = pictures.equation(groups, images[11:])
    levels = set(np.unique(picture)) - {0, 255}
    assert levels == {*range(1, 10)} - {10, 11} | {*range(12, 21)}
    assert picture.shape[2] == channels
    # Means in the last row, from the left, before the results.
    below = [int(level) for level in picture[-10, :, 0] if level not in (0, 255)]
    assert list(dict.fromkeys(below)) == [4, 7, 9, 18, 19, 20]
    black = picture[:, :, 0] == 0
    at = np.flatnonzero(black.any(0))
    signs = np.split(at, np.flatnonzero(np.diff(at) > 8) + 1)
    bars = [_runs(black[:, sign[0] : sign[-1] + 1].any(1)) for sign in signs]
    arms = [_runs(black[:, sign[0]]) for sign in signs]
    heights = [int(black[:, sign].any(1).sum()) for sign in signs]
    assert (bars, arms) == ([1, 1, 2], [1, 1, 2])  # minus, plus, equals
    assert heights[0] < heights[1]
    alone = pictures.equation([("-", images[:1], images[1:2])], images[11:])
    assert (alone == 0).any()


def _runs(line: np.ndarray) -> int:
    """How many unbroken runs of True."""
    return int((np.diff(line.astype(int), prepend=0) == 1).sum())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(tifffile, "imwrite", full)
    monkeypatch.setattr(av, "open", full)
    for name in ("a.png", "a.gif", "a.mp4", "a.npz"):
        with pytest.raises(OSError, match="No space"):
            pictures.save_rows(rows(2, 3), tmp_path / name)
    with pytest.raises(OSError, match="No space"):
        pictures.save_tiff(np.zeros((4, 4, 5), np.uint8), tmp_path / "a.tiff")
    assert list(tmp_path.iterdir()) == []
