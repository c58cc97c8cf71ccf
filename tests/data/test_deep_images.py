"""Deep images, images of many channels, and files of many images: read right, within limits."""

from __future__ import annotations

import importlib.util
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ray_gen.data import DataError, ImageFolder, ImageTar, ImageZip, Parquet, Store
from ray_gen.data.check.reading import contents_of
from ray_gen.data.errors import CorruptImageError
from ray_gen.data.pictures import Bands, read_picture, write_tiff
from ray_gen.data.sources.files import FolderFiles
from ray_gen.data.told import remarks, summary
from tests.data.faults import encoded
from tests.data.pictures import damage, noise, opened, write
from tests.data.test_convert import converted

HAS_CODECS = importlib.util.find_spec("imagecodecs") is not None


def png(values_HWC: np.ndarray, key: Any = None) -> bytes:
    """A PNG file of 16 bits a channel. key: the colour that is transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    height, width, channels = values_HWC.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, kind, 0, 0, 0])
    transparent = b"" if key is None else chunk(b"tRNS", np.asarray(key, ">u2").tobytes())
    rows = filtered(values_HWC)
    return b"".join(
        (
            *(b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), transparent),
            *(chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")),
        )
    )


def filtered(values_HWC: np.ndarray) -> bytes:
    """The rows of a PNG file of 16 bits, each by another of its five filters (PNG, section 9.2)."""
    height, width, channels = values_HWC.shape
    size = 2 * channels
    rows = values_HWC.astype(">u2").view(np.uint8).reshape(height, width * size).astype(int)
    padded = np.pad(rows, ((1, 0), (size, 0)))
    x, left, up, corner = (
        padded[a:b, c:d] for a, b in ((1, None), (0, -1)) for c, d in ((size, None), (0, -size))
    )
    guess = left + up - corner
    far = [abs(guess - known) for known in (left, up, corner)]
    paeth = np.where(
        (far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], up, corner)
    )
    by_kind = [x, x - left, x - up, x - (left + up) // 2, x - paeth]
    lines = (
        bytes([k % 5]) + (by_kind[k % 5][k] % 256).astype(np.uint8).tobytes() for k in range(height)
    )
    return b"".join(lines)


def deep_noise(height: int, width: int, channels: int, most: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, most + 1, (height, width, channels))
    return values.astype(np.uint16)


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def pages(path: Path, images: list[np.ndarray], **options: Any) -> Path:
    """A TIFF file with an image in each page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for values in images:
            file.write(values, contiguous=False, metadata=None, **options)
    return path


def images_of(store: Store) -> np.ndarray:
    return store.train.images_NHWC.numpy()


# PNG of 16 bits.


def array_of(data: bytes) -> np.ndarray:
    """(H, W, C) of an image file."""
    picture = read_picture(io.BytesIO(data))
    if isinstance(picture, Bands):
        return picture.values_HWC
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_bit_of_a_deep_png_file_is_read(channels: int) -> None:
    values = deep_noise(11, 7, channels, 65_535)
    np.testing.assert_array_equal(array_of(png(values)), values)


@given(st.integers(33, 10_000), st.integers(0, 7), st.sampled_from([8, 16]))
def test_a_changed_bit_of_a_png_file_gives_no_other_image(place: int, bit: int, bits: int) -> None:
    """Of 8 bits it gave other pixels, of 16 it ended the process."""
    whole = png(deep_noise(11, 7, 3, 65_535)) if bits == 16 else encoded(noise(11, 7, 3), "PNG")
    damaged = bytearray(whole)
    damaged[33 + (place - 33) % (len(whole) - 33 - 12)] ^= 1 << bit
    try:
        read = array_of(bytes(damaged))
    except Exception:  # a damaged file raises almost anything; `decode` tells what
        return
    np.testing.assert_array_equal(read, array_of(whole))


# Netpbm of 16 bits.


@pytest.mark.parametrize(("kind", "channels"), [("P5", 1), ("P6", 3)])
@pytest.mark.parametrize("most", [1000, 65_535])
def test_every_bit_of_a_deep_netpbm_file_is_read(
    kind: str, channels: int, most: int, tmp_path: Path
) -> None:
    values = deep_noise(9, 7, channels, most)
    header = f"{kind}\n# by hand\n7 9\n# 16 bits\n{most}\n".encode()
    put(tmp_path / "a" / "0.ppm", header + values.astype(">u2").tobytes())
    for value_range in ("full", "auto"):
        store = opened(
            ImageFolder(path=str(tmp_path / "a")),
            tmp_path / "cache",
            element="uint16",
            value_range=value_range,
        )
        assert store.found.types == ("uint16",)
        np.testing.assert_array_equal(images_of(store)[0], np.rint(values / most * 65_535))
    damage(tmp_path / "a" / "0.ppm")
    with pytest.raises(DataError, match=r"truncated|not enough"):
        opened(ImageFolder(path=str(tmp_path / "a")), tmp_path / "cache")


def test_the_limit_of_pixels_that_is_named_suffices(tmp_path: Path) -> None:
    """Large files are refused before they are read, by their bytes."""
    write(tmp_path / "a" / "0.tif", noise(40, 40, 3))
    source = ImageFolder(path=str(tmp_path / "a"))
    with pytest.raises(DataError, match=r"set data\.max_pixels=1600 to read it"):
        opened(source, tmp_path / "cache", max_pixels=100)
    assert len(opened(source, tmp_path / "cache", max_pixels=1600).train) == 1


# Opacity.


@pytest.mark.parametrize("channels", [1, 3])
def test_the_opacity_of_an_image_does_not_depend_on_its_own_largest_value(
    channels: int, tmp_path: Path
) -> None:
    colours = deep_noise(8, 8, channels, 40_000)
    faint, opaque = (np.full((8, 8, 1), value, np.uint16) for value in (16_384, 65_535))
    for number, opacity in enumerate((faint, opaque)):
        put(tmp_path / "png" / f"{number}.png", png(np.concatenate([colours, opacity], 2)))
    for source in ("png", "tif"):
        for number, opacity in enumerate((faint, opaque)):
            file = tmp_path / "tif" / f"{number}.tif"
            file.parent.mkdir(exist_ok=True)
            write_tiff(file, np.concatenate([colours, opacity], 2), opacity=True)
        store = opened(
            ImageFolder(path=str(tmp_path / source)), tmp_path / "cache", channels="auto"
        )
        assert [np.unique(image[..., -1]).tolist() for image in images_of(store)] == [[64], [255]]
        on_white = opened(ImageFolder(path=str(tmp_path / source)), tmp_path / "cache")
        assert any("1 image are put on white" in remark for remark in remarks(on_white))


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_full_opacity_of_dark_images_is_that_of_their_type(kind: str, tmp_path: Path) -> None:
    values = deep_noise(8, 8, 4, 1000)
    (tmp_path / "a").mkdir()
    for number, opacity in enumerate((1000, 65_535)):
        values[..., 3] = opacity
        if kind == "png":
            put(tmp_path / "a" / f"{number}.png", png(values))
        else:
            write_tiff(tmp_path / "a" / f"{number}.tif", values, opacity=True)
    store = opened(ImageFolder(path=str(tmp_path / "a")), tmp_path / "cache", channels=4)
    assert store.found.value_range == (0.0, 1023.0)
    assert [np.unique(image[..., 3]).tolist() for image in images_of(store)] == [[4], [255]]


def test_opacity_of_floats(tmp_path: Path) -> None:
    values = np.full((8, 8, 4), 20.0, np.float32)  # brighter than white
    values[..., 3] = 0.5
    (tmp_path / "a").mkdir()
    write_tiff(tmp_path / "a" / "0.tif", values, opacity=True)
    store = opened(ImageFolder(path=str(tmp_path / "a")), tmp_path / "cache", channels=4)
    assert np.unique(images_of(store)[0, ..., 3]).tolist() == [128]


@pytest.mark.parametrize("bands", [1, 2])
def test_min_is_white_turns_only_what_is_white(bands: int, tmp_path: Path) -> None:
    values = deep_noise(8, 8, bands + 1, 65_535)
    extra = ["unspecified"] * (bands - 1) + ["unassalpha"]
    path = tmp_path / "0.tif"
    pages(path, [values], photometric="miniswhite", planarconfig="contig", extrasamples=extra)
    with path.open("rb") as file:
        read = read_picture(file)
    assert isinstance(read, Bands) and read.alpha
    assert np.array_equal(read.values_HWC[..., 0], 65_535 - values[..., 0])
    assert np.array_equal(read.values_HWC[..., 1:], values[..., 1:])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_deep_png_files_is_read_as_that_of_others(
    channels: int, tmp_path: Path
) -> None:
    levels = noise(8, 8, channels).reshape(8, 8, channels)
    levels[2:4, 3:7] = key = levels[0, 0]
    image = Image.fromarray(levels if channels == 3 else levels[..., 0])
    transparent = tuple(key.tolist()) if channels == 3 else int(key[0])
    write(tmp_path / "8" / "0.png", image, transparency=transparent)
    put(tmp_path / "16" / "0.png", png(levels.astype(np.uint16) * 257, key.astype(int) * 257))
    for wanted in ("auto", None):
        stores = [
            opened(ImageFolder(path=str(tmp_path / bits)), tmp_path / "cache", channels=wanted)
            for bits in ("8", "16")
        ]
        assert np.array_equal(images_of(stores[0]), images_of(stores[1]))
        assert stores[0].found.transparent == stores[1].found.transparent == 1


# Damaged TIFF.


@pytest.mark.parametrize("compression", ["tiff_deflate", "packbits", "tiff_lzw", "raw"])
def test_a_tiff_file_that_is_cut_anywhere_gives_no_other_image(compression: str) -> None:
    """Pillow writes what describes the pixels last; tifffile did without what was cut off."""
    whole = encoded(noise(16, 16, 3), "TIFF", compression=compression)
    expected = array_of(whole)
    for end in range(len(whole) - 60, len(whole)):
        try:
            read = array_of(whole[:end])
        except Exception:  # a damaged file raises almost anything
            continue
        np.testing.assert_array_equal(read, expected)


@pytest.mark.skipif(HAS_CODECS, reason="imagecodecs decompresses no more than it is told")
def test_a_part_of_a_tiff_file_may_not_grow_beyond_its_size(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(2**28 + 1), 9)
    path = pages(
        tmp_path / "a.tif", [deep_noise(8, 8, 3, 9)], compression="zlib", photometric="rgb"
    )
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        places = {tag: file.pages[0].tags[tag].valueoffset for tag in (273, 279)}  # pyright: ignore
    for tag, value in ((273, len(data)), (279, len(bomb))):
        data[places[tag] : places[tag] + 4] = value.to_bytes(4, "little")
    with pytest.raises(CorruptImageError, match="larger than the 384 bytes that it tells"):
        read_picture(io.BytesIO(bytes(data) + bomb))


# Compressed TIFF.


@pytest.mark.skipif(HAS_CODECS, reason="imagecodecs is installed")
def test_tiff_files_that_need_a_plug_in_are_counted_with_its_name(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number, (tag, value) in enumerate([(259, 5), (259, 34712), (258, (12, 12, 12))]):
        path = pages(root / f"{number}.tif", [deep_noise(8, 8, 3, 9)], photometric="rgb")
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[tag].overwrite(value)  # pyright: ignore
    source = ImageFolder(path=str(root))
    with pytest.raises(DataError, match=r"in compressed TIFF; install imagecodecs"):
        source.listing()
    Image.fromarray(noise(8, 8, 3)).save(root / "8.tif", compression="tiff_lzw")
    Image.fromarray(deep_noise(8, 8, 1, 65_535)[..., 0]).save(
        root / "9.tif", compression="tiff_lzw"
    )
    pages(root / "a.tif", [deep_noise(8, 8, 3, 65_535)], photometric="rgb", compression="zlib")
    store = opened(ImageFolder(path=str(root)), tmp_path / "cache")
    assert len(store.train) == 3 and not store.skipped
    kind = ".tif (compressed TIFF: install imagecodecs)"
    assert store.found.not_read == {kind: 3} and f"3 {kind}" in summary(store)
    reasons = {fault.reason for fault in contents_of(ImageFolder(path=str(root))).unread}
    told = "it is compressed TIFF, which is not read; install imagecodecs"
    assert {reason.replace(" with the name of TIFF", "") for reason in reasons} == {told}
    with (root / "0.tif").open("rb") as file, pytest.raises(Exception, match=told):
        read_picture(file)


@pytest.mark.skipif(not HAS_CODECS, reason="needs imagecodecs")
@pytest.mark.parametrize("compression", ["lzw", "zstd", "packbits", "zlib"])
def test_with_the_plug_in_compressed_tiff_files_are_read(compression: str, tmp_path: Path) -> None:
    values = deep_noise(8, 8, 3, 65_535)
    path = pages(tmp_path / "a.tif", [values], photometric="rgb", compression=compression)
    with path.open("rb") as file:
        read = read_picture(file)
    assert isinstance(read, Bands) and np.array_equal(read.values_HWC, values)


# Files of many images.


def many(path: Path, count: int = 5) -> np.ndarray:
    """A TIFF file that Pillow does not open. Returns (N, H, W, C)."""
    values = np.stack([deep_noise(8, 6, 5, 65_535, seed) for seed in range(count)])
    pages(path, list(values), photometric="minisblack", planarconfig="contig")
    return values


@pytest.mark.parametrize("place", ["folder", "zip", "tar"])
def test_all_pages_of_deep_tiff_files_are_counted_and_read(place: str, tmp_path: Path) -> None:
    values = many(tmp_path / "set" / "0.tif")
    if place == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.write(tmp_path / "set" / "0.tif", "0.tif")
        source: Any = ImageZip(path=str(tmp_path / "a.zip"), frames="all")
    elif place == "tar":
        import tarfile

        with tarfile.open(tmp_path / "a.tar", "w") as file:
            file.add(tmp_path / "set" / "0.tif", "0.tif")
        source = ImageTar(path=str(tmp_path / "a.tar"), frames="all")
    else:
        source = ImageFolder(path=str(tmp_path / "set"), frames="all")
    store = opened(source, tmp_path / "cache", element="uint16")
    assert np.array_equal(images_of(store), values)


def test_pages_that_cannot_be_counted_are_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "set" / "0.tif"
    pages(path, [noise(8, 6, 3, seed) for seed in range(5)], photometric="rgb")
    with tifffile.TiffFile(path) as file:
        third = file.pages[2].offset
    path.write_bytes(path.read_bytes()[: third + 20])
    with pytest.raises(DataError, match=r"0\.tif cannot be decoded"):
        opened(ImageFolder(path=str(tmp_path / "set"), frames="all"), tmp_path / "cache")
    assert len(opened(ImageFolder(path=str(tmp_path / "set")), tmp_path / "cache").train) == 1


@pytest.mark.parametrize(
    ("shape", "images", "channels"),
    [
        ((10, 24, 24), 10, 1),
        ((10, 24, 32), 10, 1),
        ((5, 9, 9), 5, 1),
        ((40, 30, 20), 40, 1),
        ((16, 16, 16), 16, 1),
        ((3, 24, 24), 1, 3),
        ((24, 24, 4), 1, 4),
        ((24, 24, 5), 1, 5),
        ((10, 24, 24, 3), 10, 3),
        ((10, 3, 24, 24), 10, 3),
        ((1, 24, 24, 3), 1, 3),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_all_images_of_an_array(
    shape: tuple[int, ...], images: int, channels: int, order: Any, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "0.npy", np.asarray(values, order=order))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(tmp_path / "set" / "0.npy", "0.npy")
    expected = values if len(shape) == 4 else values[None] if images == 1 else values[..., None]
    if expected.shape[1] == channels:
        expected = expected.transpose(0, 2, 3, 1)
    for source in (
        ImageFolder(path=str(tmp_path / "set"), frames="all"),
        ImageZip(path=str(tmp_path / "a.zip"), frames="all"),
    ):
        store = opened(source, tmp_path / "cache", channels=channels)
        assert np.array_equal(images_of(store), expected)


@pytest.mark.parametrize("kind", ["npy", "tif", "gif"])
def test_a_file_of_many_images_is_not_read_again_for_each(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (60, 40, 40), np.uint8)
    path = tmp_path / "set" / f"0.{kind}"
    path.parent.mkdir()
    if kind == "npy":
        np.save(path, values)
    elif kind == "tif":
        pages(path, list(values))
    else:
        first, *others = (Image.fromarray(image) for image in values)
        first.save(path, save_all=True, append_images=others)
    read = 0

    class Counting(io.FileIO):
        def read(self, size: Any = -1, /) -> Any:
            nonlocal read
            data = super().read(size)
            read += len(data or b"")
            return data

        def readinto(self, buffer: Any, /) -> Any:
            nonlocal read
            count = super().readinto(buffer)
            read += count or 0
            return count

    monkeypatch.setattr(FolderFiles, "open", lambda self, path: Counting(self.name(path)))
    source = ImageFolder(path=str(path.parent), frames="all")
    count = 0
    for item in source.listing().items:
        picture, _ = item.load()
        count += 1
        assert picture is not None
    assert count == 60 and read < 4 * path.stat().st_size


# Limits.


def refused(data: bytes, match: str, max_pixels: int | None = None, **options: Any) -> None:
    from ray_gen.data.formats import pixel_limit

    before = pixel_limit.set(max_pixels)
    try:
        with pytest.raises(Exception, match=match):
            read_picture(io.BytesIO(data), **options)
    finally:
        pixel_limit.reset(before)


def tiff_bytes(values_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    write_tiff(file, values_HWC, opacity=False)
    return file.getvalue()


def npy_bytes(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_channels_count_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object, **__: object) -> None:
        pytest.fail("it was decoded")

    bands = tiff_bytes(np.zeros((30, 30, 16), np.uint16))
    array = npy_bytes(np.zeros((30, 30, 16), np.uint16))
    with io.BytesIO() as file:
        with tifffile.TiffWriter(file) as tiff:
            for _ in range(40):
                tiff.write(np.zeros((30, 30), np.uint8), contiguous=False)
        stack = file.getvalue()
    many_bands = tiff_bytes(np.zeros((8, 8, 40), np.uint16))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", decoded)
    monkeypatch.setattr(np, "frombuffer", decoded)
    for data in (bands, array):
        remedy = r"set data\.max_pixels=3600 to read it"
        refused(data, rf"it has 3,600 pixels, 4 of its 16 channels in each, .*{remedy}", 3599)
    refused(stack, "it has 40 channels, and 16 at most", pages=True)
    refused(many_bands, "it has 40 channels, and 16 at most")
    refused(npy_bytes(np.zeros((30, 30), np.float64)), r"900 pixels, more than 899", 899)
    monkeypatch.undo()
    assert isinstance(read_picture(io.BytesIO(array)), Bands)


@pytest.mark.parametrize("number", [0, 2])
def test_every_page_is_checked(number: int) -> None:
    with io.BytesIO() as file:
        images = [Image.fromarray(noise(8 + 40 * (n == number), 8, 3)) for n in range(3)]
        images[0].save(file, "TIFF", save_all=True, append_images=images[1:])
        data = file.getvalue()
    refused(data, r"it has 384 pixels, more than 383", 383, frame=number)


def test_files_larger_than_any_image_within_the_limit_are_not_read(tmp_path: Path) -> None:
    """100 pixels need 3,200 bytes at most."""
    picture = io.BytesIO()
    Image.fromarray(noise(10, 10, 3)).save(picture, "PNG")
    data = picture.getvalue() + bytes(4000)
    path = put(tmp_path / "set" / "0.png", data)
    size = len(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(path, "0.png")
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(path, "0.png")
    for source in (
        ImageFolder(path=str(path.parent)),
        ImageZip(path=str(tmp_path / "a.zip")),
        ImageTar(path=str(tmp_path / "a.tar")),
    ):
        match = rf"it has {size:,} bytes, .*set data\.max_pixels={-(-size // 32)} to read it"
        with pytest.raises(DataError, match=match):
            opened(source, tmp_path / "cache", max_pixels=100)
        opened(source, tmp_path / "cache", max_pixels=-(-size // 32))


@pytest.mark.parametrize("shape", [(10**12, 0, 5), (0, 5), (10**12, 4, 4), (3,)])
def test_arrays_that_claim_many_images_are_not_listed(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    put(tmp_path / "set" / "0.npy", file.getvalue() + bytes(100))
    with pytest.raises(DataError, match=r"0\.npy cannot be decoded: it is"):
        opened(ImageFolder(path=str(tmp_path / "set"), frames="all"), tmp_path / "cache")


# Conversion without a size: the same pixels as read directly.


def made(kind: str, depth: str, seed: int, folder: Path, count: int) -> None:
    """One file of `count` images."""
    values = [deep_noise(7, 9, 5, 65_535 if depth == "16" else 255, seed + n) for n in range(count)]
    if depth == "8":
        values = [image.astype(np.uint8) for image in values]
    elif depth == "12":
        values = [image // 16 for image in (v * 257 for v in values)]
    elif depth == "float":
        values = [image.astype(np.float32) / 255 for image in values]
    elif depth == "double":
        values = [image.astype(np.float64) / 3 for image in values]
    name, opacity = f"{seed}", kind in ("LA", "RGBA")
    channels = {"grey": 1, "LA": 2, "RGB": 3, "RGBA": 4, "bands": 5}[kind]
    values = [image[..., :channels] for image in values]
    folder.mkdir(exist_ok=True)
    if seed % 2 and not opacity:
        np.save(folder / f"{name}.npy", np.stack(values))
        return
    colours = channels - opacity
    extra = ["unspecified"] * (colours - 1 if colours in (2, 5) else 0) + ["unassalpha"] * opacity
    options: dict[str, Any] = {"photometric": "rgb" if colours == 3 else "minisblack"}
    if extra:
        options |= {"extrasamples": extra, "planarconfig": "contig"}
    pages(
        folder / f"{name}.tif", values if channels > 1 else [v[..., 0] for v in values], **options
    )


@pytest.mark.parametrize("kind", ["grey", "LA", "RGB", "RGBA", "bands"])
@pytest.mark.parametrize("depth", ["8", "12", "16", "float", "double"])
@pytest.mark.parametrize(("frames", "size"), [("all", None), ("all", 5), ("first", 5)])
def test_what_is_converted_is_what_is_read(
    kind: str, depth: str, frames: Any, size: int | None, tmp_path: Path
) -> None:
    for seed in range(3):
        made(kind, depth, seed, tmp_path / "in", 2)
    source = ImageFolder(path=str(tmp_path / "in"), frames=frames)
    asked: dict[str, Any] = {"channels": "auto", "image_size": size}
    direct = opened(source, tmp_path / "cache", **asked)
    assert len(direct.train) == (6 if frames == "all" else 3)
    converted(source, tmp_path / "out", None, held_out_fraction=0.0)
    back = opened(Parquet(path=str(tmp_path / "out")), tmp_path / "cache", **asked)
    assert back.image_shape == direct.image_shape
    assert back.found.value_range == direct.found.value_range
    ours, theirs = (sorted(image.tobytes() for image in images_of(x)) for x in (back, direct))
    assert ours == theirs


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "P", "1", "L", "F", "I;16"])
def test_pages_in_modes_that_png_cannot_hold_are_converted(mode: str, tmp_path: Path) -> None:
    images = []
    for seed in range(2):
        grey = mode in ("1", "L", "F", "I;16")
        image = Image.fromarray(noise(8, 8, 1 if grey else 3, seed))
        images.append(image.convert(mode))
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[274] = 6
    images[0].save(tmp_path / "in" / "0.tif", save_all=True, append_images=images[1:], exif=exif)
    source = ImageFolder(path=str(tmp_path / "in"), frames="all")
    direct = opened(source, tmp_path / "cache")
    assert len(direct.train) == 2
    converted(source, tmp_path / "out", None, held_out_fraction=0.0)
    back = opened(Parquet(path=str(tmp_path / "out")), tmp_path / "cache")
    ours, theirs = (sorted(image.tobytes() for image in images_of(x)) for x in (back, direct))
    assert ours == theirs


@pytest.mark.parametrize("element", ["uint8", "uint16", "float16"])
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_raw_pixels_stay_raw_when_they_are_converted_again(
    element: str, channels: int, tmp_path: Path
) -> None:
    from ray_gen.data.wanted import Wanted

    (tmp_path / "in").mkdir()
    for index in range(4):
        values = np.random.default_rng(index).integers(0, 256, (12, 10, channels))
        np.save(tmp_path / "in" / f"{index}.npy", values.astype(element))
    wanted = Wanted((12, 10), None, channels, value_range=(0.0, 1000.0), element=element)
    converted(ImageFolder(path=str(tmp_path / "in")), tmp_path / "one", wanted)
    converted(Parquet(path=str(tmp_path / "one")), tmp_path / "two", None)
    ours, theirs = (
        opened(
            Parquet(path=str(tmp_path / name)),
            tmp_path / "cache",
            element=element,
            channels=channels,
        )
        for name in ("two", "one")
    )
    assert ours.image_shape == theirs.image_shape == (channels, 12, 10)
    ours, theirs = (sorted(i.tobytes() for i in images_of(store)) for store in (ours, theirs))
    assert ours == theirs
