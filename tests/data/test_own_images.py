"""Images of unusual kinds are read right, or refused, and what was read is told."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ray_gen.data import DataError, ImageFolder
from ray_gen.data.build import _in_threads  # pyright: ignore[reportPrivateUsage]
from ray_gen.data.formats import format_of
from ray_gen.data.told import remarks, summary
from tests.data.pictures import damage, noise, opened, write


def folder(path: Path, **settings: Any) -> ImageFolder:
    return ImageFolder(path=str(path), **settings)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FORMATS = {
    **{name: name for name in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "QOI")},
    "JPEG 2000": "JPEG2000",
}


@pytest.mark.parametrize("known", FORMATS)
def test_a_file_is_known_by_its_first_bytes_whatever_its_name(known: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(noise(16, 16, 3)), FORMATS[known])
    assert format_of(data[:64], "picture") == known
    for name in ("picture", "picture.jpe", "picture.txt", "PICTURE.JFIF"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    store = opened(folder(tmp_path / "set"), tmp_path / "cache", channels=3)
    assert len(store.train) == 4 and not store.found.not_read


def test_files_that_are_no_images_are_counted_by_kind(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for index in range(3):
        write(root / f"{index}.png", noise(8, 8, 3, index))
    for name in ("notes.txt", "more.TXT", "LICENSE", "model.bin"):
        (root / name).write_text("text")
    heif = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    (root / "a.heic").write_bytes(heif)
    (root / "b.jpg").write_bytes(heif)  # named .jpg
    store = opened(folder(root), tmp_path / "cache")
    told = summary(store)
    assert told.startswith("3 images (3 train, 0 held out) of 8×8, RGB; 6 files not read: ")
    for part in ("2 .txt", "1 without suffix", "1 .bin", "1 .heic (install pillow-heif)",
                 "1 .jpg (HEIC: install pillow-heif)"):  # fmt: skip
        assert part in told


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", ".thumbnails"])
def test_what_systems_write_beside_images_is_never_data(name: str, tmp_path: Path) -> None:
    write(tmp_path / "set" / "cat" / "0.png", noise(8, 8, 3))
    write(tmp_path / "set" / "dog" / "0.png", noise(8, 8, 3))
    write(tmp_path / "set" / name / "0.png", noise(8, 8, 3))
    write(tmp_path / "set" / "cat" / name / "0.png", noise(8, 8, 3))
    store = opened(folder(tmp_path / "set"), tmp_path / "cache")
    assert len(store.train) == 2 and store.class_names == ("cat", "dog")


@pytest.mark.parametrize("kind", ["empty", "dangling", "heic", "hidden"])
def test_a_class_without_a_readable_image_stops(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "cat" / "0.png", noise(8, 8, 3))
    write(root / "dog" / "0.png", noise(8, 8, 3))
    if kind == "dangling":
        (root / "bird").symlink_to(tmp_path / "nowhere")
    else:
        (root / "bird").mkdir()
    if kind == "heic":
        (root / "bird" / "0.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    if kind == "hidden":
        (root / "bird" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(DataError, match="bird"):
        opened(folder(root), tmp_path / "cache")


FAULTS = {
    b"": "0 bytes",
    b"<!DOCTYPE html><html></html>": "HTML page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git-LFS pointer",
    bytes(512): "only zeros",
    b"hello": "not an image of a known format",
}


@pytest.mark.parametrize("content", FAULTS, ids=list(FAULTS.values()))
def test_what_has_an_images_name_but_not_its_bytes_is_corrupt_with_the_reason(
    content: bytes, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    write(root / "0.png", noise(8, 8, 3))
    (root / "1.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"1\.jpg cannot be decoded: .*{FAULTS[content]}"):
        opened(folder(root), tmp_path / "cache")
    store = opened(folder(root), tmp_path / "cache", on_corrupt="skip")
    assert store.skipped == 1 and summary(store).endswith("1 corrupt")
    assert any("1.jpg" in remark for remark in remarks(store))


def test_a_grey_image_first_does_not_turn_a_colour_set_grey(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for index in range(100):
        write(root / f"{index:03}.png", noise(8, 8, 1 if index < 90 else 3, index))
    store = opened(folder(root), tmp_path / "cache")
    assert store.image_shape == (3, 8, 8)
    assert store.found.modes == {"grey": 90, "RGB": 10}
    assert any("90 grey, 10 RGB: all become RGB" in remark for remark in remarks(store))
    grey = store.train.images_NHWC[0]
    assert torch.equal(grey[..., 0], grey[..., 2])


def test_opacity_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "set"
    pixels = noise(8, 8, 4)
    write(root / "0.png", pixels)
    write(root / "1.png", noise(8, 8, 4, 1))
    kept = opened(folder(root), tmp_path / "cache", channels="auto")
    assert kept.image_shape == (4, 8, 8)
    assert np.array_equal(kept.train.images_NHWC[0].numpy(), pixels)
    plain = opened(folder(root), tmp_path / "cache")
    assert plain.image_shape == (3, 8, 8)
    assert any("data.channels=4 keeps their opacity" in remark for remark in remarks(plain))
    write(root / "2.png", noise(8, 8, 3, 2))  # opaque: not all have it
    assert opened(folder(root), tmp_path / "cache", channels="auto").image_shape == (3, 8, 8)
    asked = opened(folder(root), tmp_path / "cache", channels=4)
    assert asked.train.images_NHWC[2, ..., 3].unique().tolist() == [255]


def deep(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif values.dtype == np.uint16 and values.ndim == 3:
        import tifffile

        tifffile.imwrite(path, values, photometric="rgb")
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_values_of_deep_images_are_read_by_the_bits_that_they_use(
    bits: int, suffix: str, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    most = 2**bits - 1
    values = np.linspace(0, most, 64).round().astype(np.uint16).reshape(8, 8)
    deep(root / f"0{suffix}", values // 2)
    deep(root / f"1{suffix}", values)
    store = opened(folder(root), tmp_path / "cache")
    assert store.found.value_range == (0.0, most)
    right = np.rint(values / most * 255)
    assert np.array_equal(store.train.images_NHWC[1, ..., 0].numpy(), right)
    assert any(f"{most:,} white" in remark for remark in remarks(store))


def test_eight_bit_values_in_32_bit_files_and_floats_are_read(tmp_path: Path) -> None:
    for number, (values, most) in enumerate(
        [
            (np.arange(64, dtype=np.int32).reshape(8, 8) * 4, 255.0),
            (np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), 1.0),
            (np.linspace(0, 250, 64, dtype=np.float32).reshape(8, 8), 255.0),
        ]
    ):
        root = tmp_path / f"set{number}"
        deep(root / "0.tif", values)
        store = opened(folder(root), tmp_path / "cache")
        assert store.found.value_range == (0.0, most)
        right = np.rint(values.astype(np.float32) / most * 255)
        assert np.array_equal(store.train.images_NHWC[0, ..., 0].numpy(), right)


def test_a_range_can_be_given_or_be_that_of_the_type(tmp_path: Path) -> None:
    root = tmp_path / "set"
    values = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)
    deep(root / "0.png", values)
    full = opened(folder(root), tmp_path / "cache", value_range="full")
    assert np.array_equal(full.train.images_NHWC[0, ..., 0].numpy(), np.rint(values / 257))
    given = opened(folder(root), tmp_path / "cache", value_range=(1000.0, 2000.0))
    right = np.rint(((values - 1000.0) / 1000).clip(0, 1) * 255)
    assert np.array_equal(given.train.images_NHWC[0, ..., 0].numpy(), right)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_colour_of_16_bits_keeps_its_values(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (8, 8, 3), np.uint16)
    root = tmp_path / "set"
    if kind == "png":
        import zlib

        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

        def chunk(name: bytes, data: bytes) -> bytes:
            body = name + data
            return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

        header = (8).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        root.mkdir()
        (root / "0.png").write_bytes(png)
    else:
        deep(root / "0.tif", values)
    store = opened(folder(root), tmp_path / "cache", element="uint16")
    assert store.train.images_NHWC.dtype == torch.uint16
    assert np.array_equal(store.train.images_NHWC[0].numpy(), values)
    eight = opened(folder(root), tmp_path / "cache")
    assert np.array_equal(eight.train.images_NHWC[0].numpy(), np.rint(values / 257))


@pytest.mark.parametrize("channels", [2, 5, 16])
@pytest.mark.parametrize("kind", ["npy", "npy-first", "tif", "pages"])
def test_any_number_of_channels(channels: int, kind: str, tmp_path: Path) -> None:
    import tifffile

    root = tmp_path / "set"
    root.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (20, 24, channels), np.uint8)
    planes = values.transpose(2, 0, 1)
    if kind == "npy":
        np.save(root / "0.npy", values)
    elif kind == "npy-first":
        np.save(root / "0.npy", planes)
    elif kind == "tif":
        tifffile.imwrite(root / "0.tif", values, photometric="minisblack", planarconfig="contig")
    else:
        with tifffile.TiffWriter(root / "0.tif") as file:
            for plane in planes:
                file.write(plane, photometric="minisblack", contiguous=False)
    frames = "channels" if kind == "pages" else "first"
    store = opened(folder(root, frames=frames), tmp_path / "cache")
    assert store.image_shape == (channels, 20, 24)
    assert np.array_equal(store.train.images_NHWC[0].numpy(), values)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_fit_a_rectangle(fit: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    pixels = noise(40, 40, 3)
    write(root / "0.png", pixels)
    store = opened(folder(root), tmp_path / "cache", image_size=(16, 32), fit=fit, pad=(0,))
    image = Image.fromarray(pixels)
    lanczos = Image.Resampling.LANCZOS
    if fit == "crop":
        right = np.asarray(image.resize((32, 16), lanczos, box=(0, 10, 40, 30)))
    elif fit == "stretch":
        right = np.asarray(image.resize((32, 16), lanczos))
    else:
        right = np.pad(np.asarray(image.resize((16, 16), lanczos)), ((0, 0), (8, 8), (0, 0)))
    assert np.array_equal(store.train.images_NHWC[0].numpy(), right)


def test_edges_are_repeated(tmp_path: Path) -> None:
    write(tmp_path / "set" / "0.png", noise(8, 8, 3))
    store = opened(
        folder(tmp_path / "set"), tmp_path / "c", image_size=(8, 12), fit="pad", pad="edge"
    )
    image = store.train.images_NHWC[0]
    assert torch.equal(image[:, 0], image[:, 2]) and torch.equal(image[:, 11], image[:, 9])


def test_all_frames_of_an_animation_can_be_read(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 1, seed)) for seed in range(3)]
    (tmp_path / "set").mkdir()
    frames[0].save(tmp_path / "set" / "0.gif", save_all=True, append_images=frames[1:])
    assert len(opened(folder(tmp_path / "set"), tmp_path / "cache").train) == 1
    store = opened(folder(tmp_path / "set", frames="all"), tmp_path / "cache")
    assert len(store.train) == 3
    assert store.found.notes == ("1 file holds 3 images",)


def test_maps_of_floats_keep_their_values_and_their_statistics(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    maps = np.random.default_rng(0).normal(3, 2, (4, 20, 20, 4)).astype(np.float16)
    for index, values in enumerate(maps):
        np.save(root / f"{index}.npy", values)
    store = opened(folder(root), tmp_path / "cache", element="float16")
    assert np.array_equal(store.train.images_NHWC.numpy(), maps)
    assert store.statistics is not None
    exact = maps.astype(np.float64)
    assert np.allclose(store.statistics["mean"], exact.mean((0, 1, 2)), rtol=1e-12)
    assert np.allclose(store.statistics["std"], exact.std((0, 1, 2)), rtol=1e-12)


def test_scaled_jpeg_decoding_stays_close(tmp_path: Path) -> None:
    y, x = np.mgrid[:512, :512] / 512
    smooth = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * x * y)], 2)
    write(tmp_path / "set" / "0.jpg", ((smooth + 1) * 127).astype(np.uint8), quality=95)
    plain = opened(folder(tmp_path / "set"), tmp_path / "cache", image_size=64)
    fast = opened(folder(tmp_path / "set"), tmp_path / "cache", image_size=64, jpeg_scaling=True)
    assert plain.digest != fast.digest  # another decoding
    error = (plain.train.images_NHWC.float() - fast.train.images_NHWC.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 40


def test_what_a_run_resolved_finds_the_entry_that_its_start_made(tmp_path: Path) -> None:
    root = tmp_path / "set"
    values = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)
    deep(root / "0.png", values)
    first = opened(folder(root), tmp_path / "cache")

    def refuse(*_: Any) -> None:
        raise AssertionError("it is decoded again")

    again = opened(
        folder(root), tmp_path / "cache", image_size=(8, 8), channels=1,
        value_range=first.found.value_range, progress=refuse,
    )  # fmt: skip
    assert again.digest == first.digest
    shutil.rmtree(first.path)  # a user may empty a cache in part
    given = {"image_size": (8, 8), "channels": 1, "value_range": first.found.value_range}
    assert opened(folder(root), tmp_path / "cache", **given).digest == first.digest


def test_a_truncated_image_is_corrupt(tmp_path: Path) -> None:
    write(tmp_path / "set" / "0.png", noise(64, 64, 3))
    damage(write(tmp_path / "set" / "1.png", noise(64, 64, 3)))
    store = opened(folder(tmp_path / "set"), tmp_path / "cache", on_corrupt="skip")
    assert store.skipped == 1


def test_few_images_small_classes_and_small_held_out_splits_are_told(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for index in range(12):
        write(root / ("cat" if index else "dog") / f"{index}.png", noise(8, 8, 3, index))
    store = opened(folder(root), tmp_path / "cache", held_out_fraction=0.2)
    told = " ".join(remarks(store))
    assert "only 1" in told and "training image" in told and "held-out image" in told
    assert "class dog has 1 training image" in told


def test_programs_and_documents_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "set" / "0.png", noise(8, 8, 3))
    (tmp_path / "set" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n" + os.urandom(64))
    store = opened(folder(tmp_path / "set"), tmp_path / "cache")
    assert store.found.not_read == {".png (PostScript: convert them to PNG)": 1}


def test_an_image_beyond_the_limit_of_pixels_names_the_setting_which_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write(tmp_path / "set" / "0.png", noise(20, 20, 3))
    with pytest.raises(
        DataError, match=r"it has 400 pixels, more than .*; set data\.max_pixels=400"
    ):
        opened(folder(tmp_path / "set"), tmp_path / "cache")
    store = opened(folder(tmp_path / "set"), tmp_path / "cache", max_pixels=400)
    assert len(store.train) == 1


def test_decoding_ends_after_the_images_in_work_if_it_is_interrupted() -> None:
    """Not after the tasks in work, which hold 64 photographs each."""
    closing = threading.Event()
    worked: list[int] = []

    def work(number: int) -> int:
        worked.append(number)
        if number >= 64:
            closing.wait(60)
            time.sleep(0.05)
        return number

    results = _in_threads(iter(range(64 * 100)), work, 64)  # pyright: ignore
    assert next(results) == (0, 0)
    closing.set()
    results.close()
    assert len(worked) < 64 + 32


@pytest.mark.parametrize("count", [2, 3, 8, 20])
def test_the_fraction_that_is_advised_holds_an_image_out(count: int, tmp_path: Path) -> None:
    for index in range(count):
        write(tmp_path / "set" / f"{index}.png", noise(8, 8, 3, index))
    none = opened(folder(tmp_path / "set"), tmp_path / "cache", held_out_fraction=0.0)
    fraction = float(none.to_hold_out.removeprefix("set data.held_out_fraction to "))
    assert none.found.least_fraction is not None and fraction >= none.found.least_fraction
    store = opened(folder(tmp_path / "set"), tmp_path / "cache", held_out_fraction=fraction)
    assert len(store.held_out) >= 1 and len(store.train) >= 1


def tiff(path: Path, values: np.ndarray, **options: Any) -> None:
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **options)


@pytest.mark.parametrize(
    ("most", "white"), [(0.5, 1), (1.02, 1), (2.0, 2), (10.0, 10), (200.0, 255), (3000.0, 3000)]
)
def test_floats_are_read_to_1_or_255_only_if_their_largest_value_is_near(
    most: float, white: float, tmp_path: Path
) -> None:
    values = np.linspace(0, most, 64, dtype=np.float32).reshape(8, 8)
    deep(tmp_path / "set" / "0.tif", values / 4)
    deep(tmp_path / "set" / "1.tif", values)
    store = opened(folder(tmp_path / "set"), tmp_path / "cache")
    right = np.rint((values / white).clip(0, 1) * 255)
    assert np.abs(store.train.images_NHWC[1, ..., 0].numpy() - right).max() <= 1


def test_whole_numbers_and_floats_together_are_refused_unless_a_range_is_given(
    tmp_path: Path,
) -> None:
    deep(tmp_path / "set" / "0.npy", np.full((8, 8), 3000, np.uint16))
    deep(tmp_path / "set" / "1.npy", np.full((8, 8), 0.5, np.float32))
    with pytest.raises(DataError, match=r"data\.value_range: images hold float32 and uint16"):
        opened(folder(tmp_path / "set"), tmp_path / "cache")
    store = opened(folder(tmp_path / "set"), tmp_path / "cache", value_range=(0.0, 4000.0))
    assert store.train.images_NHWC[0].unique().tolist() == [191]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_upright_as_pillow_turns_others(orientation: int, tmp_path: Path) -> None:
    pixels = noise(6, 9, 3)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = orientation
    write(tmp_path / "eight" / "0.png", image, exif=exif)
    right = opened(folder(tmp_path / "eight"), tmp_path / "cache")
    tag = (274, "H", 1, orientation, True)
    wide = pixels.astype(np.uint16) * 257
    tiff(tmp_path / "deep" / "0.tif", wide, photometric="rgb", extratags=[tag])
    store = opened(folder(tmp_path / "deep"), tmp_path / "cache")
    assert torch.equal(store.train.images_NHWC, right.train.images_NHWC)


def test_tiff_files_that_pillow_misreads_are_read(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    wide = (ramp * (2**32 - 1)).astype(np.uint32)
    tiff(tmp_path / "u32" / "0.tif", wide)
    store = opened(folder(tmp_path / "u32"), tmp_path / "cache")
    assert np.array_equal(store.train.images_NHWC[0, ..., 0].numpy(), np.rint(ramp * 255))
    tiff(tmp_path / "i8" / "0.tif", (ramp * 200 - 100).astype(np.int8))
    store = opened(folder(tmp_path / "i8"), tmp_path / "cache")
    assert store.found.value_range == (-100.0, 100.0)
    grey = (ramp * 65535).astype(np.uint16)
    tiff(tmp_path / "white" / "0.tif", grey, photometric="miniswhite")
    store = opened(folder(tmp_path / "white"), tmp_path / "cache")
    assert np.abs(store.train.images_NHWC[0, ..., 0].numpy() - (1 - ramp) * 255).max() <= 0.51
    tiff(tmp_path / "cmyk" / "0.tif", np.zeros((8, 8, 4), np.uint16), photometric="separated")
    with pytest.raises(DataError, match="CMYK"):
        opened(folder(tmp_path / "cmyk"), tmp_path / "cache")


def test_opacity_of_deep_images(tmp_path: Path) -> None:
    values = np.full((8, 8, 4), 2000, np.uint16)
    values[..., 3] = 65_535  # opaque, while the colours use 12 bits
    values[7, 7, :3] = 4095
    values[:, :4, 3] = 0
    tiff(tmp_path / "a" / "0.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    store = opened(folder(tmp_path / "a"), tmp_path / "cache")
    assert store.train.images_NHWC[0, 0, ::7, 0].tolist() == [255, round(2000 / 4095 * 255)]
    half = np.full((8, 8, 4), 10_000, np.uint16)
    half[..., 3] = 32768  # colours were multiplied by one half
    tiff(tmp_path / "b" / "0.tif", half, photometric="rgb", extrasamples=["assocalpha"])
    store = opened(folder(tmp_path / "b"), tmp_path / "cache", channels=4, value_range="full")
    assert store.train.images_NHWC[0, 0, 0].tolist() == [78, 78, 78, 128]


def test_opaque_images_with_an_opacity_channel_are_not_told_as_transparent(tmp_path: Path) -> None:
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 255
    write(tmp_path / "set" / "0.png", pixels)
    store = opened(folder(tmp_path / "set"), tmp_path / "cache")
    assert not any("transparent" in remark for remark in remarks(store))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((3, 16, 16), 3), ((16, 16, 3), 3), ((5, 9, 9), 5), ((9, 9, 5), 5), ((1, 7, 8), 1)],
)
def test_the_axis_of_channels_of_an_array(
    shape: tuple[int, ...], channels: int, tmp_path: Path
) -> None:
    deep(tmp_path / "set" / "0.npy", np.zeros(shape, np.uint8))
    assert opened(folder(tmp_path / "set"), tmp_path / "cache").image_shape[0] == channels


def test_arrays_that_lie_about_their_size_are_corrupt(tmp_path: Path) -> None:
    deep(tmp_path / "set" / "0.npy", np.zeros((8, 8), np.uint8))
    file = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (4_000_000, 4_000_000)}
    np.lib.format.write_array_header_1_0(file, header)
    (tmp_path / "set" / "1.npy").write_bytes(file.getvalue() + bytes(100))
    np.save(tmp_path / "set" / "2.npy", np.array([[{}]], dtype=object))
    with pytest.raises(DataError, match=r"1\.npy cannot be decoded: it is truncated"):
        opened(folder(tmp_path / "set"), tmp_path / "cache")
    (tmp_path / "set" / "1.npy").unlink()
    with pytest.raises(DataError, match=r"2\.npy cannot be decoded: its values are of the type"):
        opened(folder(tmp_path / "set"), tmp_path / "cache")


def lands_of_4_bands(path: Path) -> None:
    """As of a satellite: red, green, blue and near infrared, none of them opacity."""
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unspecified"])


OPACITY: dict[str, Any] = {
    "RGBA.png": ("RGBA", 4, True),
    "LA.png": ("grey with opacity", 2, True),
    "PA.png": ("RGBA", 4, True),
    "RGB.png": ("RGBA", 4, True),
    "tRNS.png": ("RGBA", 4, True),
    "RGBA.tiff": ("RGBA", 4, True),
    "deep.tiff": ("RGBA", 4, True),
    "4.tiff": ("4 channels", 4, False),
    "2.tiff": ("2 channels", 2, False),
    "4.npy": ("4 channels", 4, False),
    "2.npy": ("2 channels", 2, False),
}
"""By file: how its images are told if channels of opacity are asked for, how many they have, and
whether the last is opacity."""


def write_opacity(path: Path) -> None:
    random = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    rgba = random.integers(0, 256, (8, 8, 4), np.uint8)
    image = Image.fromarray(rgba)
    if path.name == "tRNS.png":
        Image.fromarray(rgba[..., :3]).save(path, transparency=(0, 0, 0))
    elif path.name == "PA.png":
        image.convert("RGB").quantize(8).save(path, transparency=0)
    elif path.name == "deep.tiff":
        tifffile.imwrite(
            path, rgba * np.uint16(257), photometric="rgb", extrasamples=["unassalpha"]
        )
    elif path.suffix == ".npy":
        np.save(path, rgba[..., : int(path.stem)])
    elif path.name == "2.tiff":
        tifffile.imwrite(
            path, rgba[..., :2], photometric="minisblack", extrasamples=["unspecified"],
            planarconfig="contig",
        )  # fmt: skip
    elif path.name == "4.tiff":
        lands_of_4_bands(path)
    else:
        image.convert(path.stem).save(path)


@pytest.mark.parametrize("name", OPACITY)
def test_whether_the_last_channel_is_opacity_is_what_the_files_say(
    tmp_path: Path, name: str
) -> None:
    words, channels, opacity = OPACITY[name]
    write_opacity(tmp_path / "set" / name)
    asked = channels if name == "RGB.png" else "auto"  # no file has opacity: it is added
    store = opened(folder(tmp_path / "set"), tmp_path / "cache", channels=asked)
    assert (store.image_shape[0], store.opacity) == (channels, opacity)
    assert f" of 8×8, {words}" in summary(store)
    for said in (False, True):  # the setting says it, and changes no pixel
        if name == "RGB.png" and not said:
            continue
        other = opened(
            folder(tmp_path / "set"), tmp_path / "cache", channels=channels, opacity=said
        )
        assert other.opacity == said and other.digest == store.digest
    assert not [line for line in remarks(store) if "opacity" in line]


def test_opacity_of_some_images_and_not_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "set" / "0.png")
    np.save(tmp_path / "set" / "1.npy", np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(DataError, match=r"opacity of some.*set data\.opacity=true"):
        opened(folder(tmp_path / "set"), tmp_path / "cache", channels=4)
    with pytest.raises(DataError, match=r"0\.png is RGB, and 4 channels are wanted of which none"):
        opened(folder(tmp_path / "set"), tmp_path / "cache", channels=4, opacity=False)
    store = opened(folder(tmp_path / "set"), tmp_path / "cache", channels=4, opacity=True)
    assert store.opacity


def test_four_bands_with_opacity_keep_all_bands(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 5), np.uint8)
    values[..., 4] = 255
    (tmp_path / "set").mkdir()
    kinds = ["unspecified", "unassalpha"]
    tifffile.imwrite(tmp_path / "set" / "0.tiff", values, photometric="rgb", extrasamples=kinds)
    store = opened(folder(tmp_path / "set"), tmp_path / "cache")
    assert store.found.modes == {"4 channels with opacity": 1} and not store.opacity
    assert np.array_equal(store.train.images_NHWC[0].numpy(), values[..., :4])


@pytest.mark.parametrize("asked", [None, "auto"])
@pytest.mark.parametrize(
    ("kinds", "right"),
    [
        (("grey", "RGB"), (3, 3)),
        (("LA", "RGB"), (3, 3)),
        (("LA", "RGBA"), (3, 4)),
        (("RGBA", "grey"), (3, 3)),
        (("LA", "grey"), (1, 1)),
        (("RGBA", "RGBA"), (3, 4)),
    ],
)
def test_channels_do_not_depend_on_the_order_of_the_files(
    kinds: tuple[str, ...], right: tuple[int, int], asked: Any, tmp_path: Path
) -> None:
    for order in (kinds, kinds[::-1]):
        root = tmp_path / "-".join(order)
        for number, kind in enumerate(order):
            mode = {"grey": "L"}.get(kind, kind)
            image = Image.fromarray(noise(8, 8, 4, number)).convert(mode)
            write(root / f"{number}.png", image)
        store = opened(folder(root), tmp_path / "cache", channels=asked)
        assert store.image_shape[0] == right[asked == "auto"]


@pytest.mark.parametrize("first", ["5", "3"])
def test_bands_beside_colours_are_refused_unless_three_are_wanted(
    first: str, tmp_path: Path
) -> None:
    names = ("0", "1") if first == "5" else ("1", "0")
    deep(tmp_path / "set" / f"{names[0]}.npy", np.zeros((9, 9, 5), np.uint8))
    write(tmp_path / "set" / f"{names[1]}.png", noise(9, 9, 3))
    with pytest.raises(DataError, match=r"data\.channels: images differ in their channels"):
        opened(folder(tmp_path / "set"), tmp_path / "cache")
    assert opened(folder(tmp_path / "set"), tmp_path / "cache", channels=3).image_shape[0] == 3


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_floats_that_overshoot_are_read_in_any_order(order: str, tmp_path: Path) -> None:
    mosts = (0.5, 1.02) if order == "rising" else (1.02, 0.5)
    for number, most in enumerate(mosts):
        values = np.linspace(0, most, 64, dtype=np.float32).reshape(8, 8)
        deep(tmp_path / "set" / f"{number}.tif", values)
    store = opened(folder(tmp_path / "set"), tmp_path / "cache")
    assert store.found.value_range == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(1797, 8, 8), (100, 16, 16)])
def test_many_small_images_of_an_array_are_no_channels(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    deep(tmp_path / "set" / "0.npy", np.zeros(shape, np.uint8))
    store = opened(folder(tmp_path / "set", frames="all"), tmp_path / "cache")
    assert len(store.train) == shape[0] and store.image_shape == (1, *shape[1:])
