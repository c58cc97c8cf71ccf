"""A folder of images with every fault that people's own folders have had."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.pictures import noise, write

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
HOSTILE = "<img src=x onerror=alert(1)>.png"
STEERING = "\x1b[31mred\nline.png"
LATIN = os.fsdecode(b"caf\xe9.png")


def smooth(size: int, seed: int, channels: int = 3) -> np.ndarray:
    """An image that survives compression: (H, W, C) uint8, unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), np.uint8)
    bands = [
        np.asarray(Image.fromarray(small[..., c]).resize((size, size), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(bands, 2) if channels > 1 else bands[0]


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def enormous_png() -> bytes:
    """A few bytes that claim to be 60,000×60,000 pixels."""
    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return png + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def cut(data: bytes, part: float = 0.5) -> bytes:
    """The first part of a file, as an interrupted copy leaves it."""
    return data[: int(len(data) * part)]


PNG = encoded(noise(64, 64, 3, 900), "PNG")
JPEG = encoded(smooth(64, 901), "JPEG", quality=95)
_npy = io.BytesIO()
np.save(_npy, np.arange(3000, dtype=np.uint8).reshape(50, 60))

CORRUPT: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", r"it has 0 bytes"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", r"it is an HTML page"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", r"git-LFS pointer"),
    "zeros.png": (bytes(4096), r"only zeros: an interrupted copy"),
    "error.jpg": (b'{"error": "rate limit"}', r"it is text"),
    "words.webp": (b"hello", r"not an image of a known format"),
    "cut.png": (cut(PNG), rf"it ends at byte {len(PNG) // 2:,} of at least {len(PNG) - 12:,}"),
    "cut.jpg": (cut(JPEG), rf"truncated: it ends at byte {len(JPEG) // 2:,}, before its end mark"),
    "bit.png": (
        PNG[:90] + bytes([PNG[90] ^ 1]) + PNG[91:],
        r"IDAT chunk at byte .* wrong checksum",
    ),
    "cut.bmp": (cut(encoded(noise(32, 32, 3), "BMP")), r"it ends at byte 1,563 of 3,126"),
    "cut.gif": (cut(encoded(noise(32, 32, 1), "GIF")), r"before its end mark"),
    "cut.webp": (cut(encoded(noise(32, 32, 3), "WEBP")), r"it ends at byte [\d,]+ of [\d,]+"),
    "cut.tif": (cut(encoded(noise(32, 32, 3), "TIFF")), r"it ends at byte [\d,]+ of at least"),
    "cut.ppm": (cut(encoded(noise(32, 32, 3), "PPM")), r"it ends at byte [\d,]+ of 3,085"),
    "cut.npy": (cut(_npy.getvalue()), r"truncated: it has 1,436 of 3,000 bytes"),
    "enormous.png": (enormous_png(), r"it has 3,600,000,000 pixels, more than 178,956,970"),
}
"""Content of files that cannot be decoded, and what is said of them."""

UNREAD = {
    "phone.jpg": (
        HEIC,
        r"it is HEIC with the name of JPEG, which is not read; install pillow-heif",
    ),
    "phone.heic": (HEIC, r"it is HEIC, which is not read; install pillow-heif"),
    "layers.psd": (b"8BPS" + bytes(100), r"it is Photoshop, which is not read; convert"),
    "figure.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", r"PostScript with the name of PNG"),
    "scan.jpg": (b"%PDF-1.7\n", r"PDF with the name of JPEG"),
}
"""Content of images of other formats, and what is said of them."""


def faulty_folder(root: Path) -> Path:
    """Twelve good images, and all faults; see `tests/data/test_check.py`."""
    for split, count in (("train", 8), ("val", 4)):
        for k in range(count):
            kind = ("cat", "dog")[k % 2]
            write(root / split / kind / f"{k}.png", smooth(64, 100 * len(split) + k))
    cats, dogs = root / "train" / "cat", root / "train" / "dog"
    for name, (content, _) in {**CORRUPT, **UNREAD}.items():
        (cats / name).write_bytes(content)
    (cats / "gone.png").symlink_to(root / "nowhere.png")
    not_finite = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(not_finite).save(cats / "nan.tif")
    np.save(cats / "words.npy", np.array([["a", "b"]]))
    # Files that are no images, and what systems write.
    for name in ("notes.txt", "LICENSE", "labels.xlsx"):
        (root / "train" / "cat" / name).write_bytes(b"text")
    (cats / "Thumbs.db").write_bytes(b"thumbnails")
    write(root / "train" / "@eaDir" / "0.png", noise(8, 8, 3))
    # Images that are read, and unusual.
    (dogs / "misnamed.jpg").write_bytes(PNG)
    frames = [Image.fromarray(smooth(64, 300 + k, 1)) for k in range(3)]
    frames[0].save(dogs / "moving.gif", save_all=True, append_images=frames[1:])
    write(dogs / "grey.png", smooth(64, 310, 1))
    write(dogs / "clear.png", np.dstack([smooth(64, 311), smooth(64, 312, 1)]))
    write(dogs / "plain.png", np.full((64, 64, 3), 200, np.uint8))
    for number, name in enumerate((HOSTILE, STEERING, LATIN)):
        write(dogs / name, smooth(64, 320 + number))
    # Duplicates: of pixels, in the other split; and in another format and size.
    first = smooth(64, 1500)
    write(cats / "leak.png", first)
    write(root / "val" / "cat" / "leak.bmp", first)
    write(cats / "twin.png", smooth(64, 1501))
    write(cats / "twin.jpg", Image.fromarray(smooth(64, 1501)), quality=85)
    return root


def refused_folder(root: Path) -> Path:
    """A folder that training refuses for many reasons at once."""
    write(root / "cat" / "0.png", smooth(64, 0))
    write(root / "cat" / "1.png", smooth(64, 1))
    write(root / "cat" / "2.png", smooth(48, 2))
    np.save(root / "cat" / "bands.npy", noise(64, 64, 5))
    write(root / "loose.png", smooth(64, 3))
    (root / "bird").mkdir()
    (root / "fish").symlink_to(root / "nowhere")
    (root / "horse").mkdir()
    (root / "horse" / "0.heic").write_bytes(HEIC)
    (root / "cat" / "broken.png").write_bytes(b"")
    return root
