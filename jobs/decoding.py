"""Images/s of decoding: ray_gen's data path, Pillow alone, and torchvision's decoders.

    python jobs/decoding.py [--images 400] [--digits 20000] [--rounds 5]

Makes JPEG photographs of 512 px (smooth colours with grain, quality 90) and PNG digits of 28×28 in
a temporary folder, and decodes them to 64 px and 28 px. Contestants work in turn on all images, in
one thread each, in interleaved rounds. The table gives the median of images/s and the median of the
ratios to Pillow alone within each round.

    pillow            open, convert, resize with Lanczos
    ray_gen           `ray_gen.data.decode` as training uses it: bytes to pixels, in one thread
    ray_gen, scaled   the same with data.jpeg_scaling
    torchvision       torchvision.io.decode_image and an antialiased bilinear resize
    store             `open_store` of the folder: listing, decoding in threads, writing

It also prints the PSNR of jpeg_scaling against Pillow alone.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

# A script sees only its own folder; without this it would measure an installed version.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ray_gen.data import ImageFolder, open_store
from ray_gen.data.decode import decode
from ray_gen.data.pictures import read_picture
from ray_gen.data.sources.base import Item
from ray_gen.data.wanted import Wanted


def photograph(number: int, side: int = 512) -> Image.Image:
    """Smooth colours with grain, which compress as photographs do."""
    generator = np.random.default_rng(number)
    small = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    edges = np.asarray(small.resize((side, side), Image.Resampling.NEAREST), np.float32)
    grain = generator.normal(0, 6, (side, side, 1))
    return Image.fromarray((0.7 * smooth + 0.3 * edges + grain).clip(0, 255).astype(np.uint8))


def digit(number: int) -> Image.Image:
    """A grey digit-like picture."""
    generator = np.random.default_rng(number)
    small = Image.fromarray(generator.integers(0, 256, (7, 7), dtype=np.uint8))
    return small.resize((28, 28), Image.Resampling.BICUBIC)


def by_pillow(data: bytes, side: int, mode: str) -> np.ndarray[Any, Any]:
    """Pillow alone."""
    image = Image.open(io.BytesIO(data)).convert(mode)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def by_torchvision(data: bytes, side: int, mode: str) -> torch.Tensor:
    """torchvision's decoder and resize."""
    wanted = ImageReadMode.RGB if mode == "RGB" else ImageReadMode.GRAY
    image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), wanted)
    if image.shape[1:] != (side, side):
        image = functional.resize(image, [side, side], antialias=True)
    return image


def by_ray_gen(data: bytes, wanted: Wanted) -> np.ndarray[Any, Any]:
    """Our decoder."""
    item = Item("", "", None, lambda: (read_picture(io.BytesIO(data)), None))
    found = decode(item, wanted, "data.path")
    assert not isinstance(found, Exception), found
    return found.values_HWC


def measured(
    contestants: dict[str, Callable[[bytes], object]], files: Sequence[bytes], rounds: int
) -> None:
    """Interleaved rounds, and their table."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            begun = time.perf_counter()
            for data in files:
                work(data)
            speeds[name].append(len(files) / (time.perf_counter() - begun))
    for name, found in speeds.items():
        ratio = median(a / b for a, b in zip(found, speeds["pillow"], strict=True))
        print(f"  {name:<18}{median(found):>10,.0f} images/s  × {ratio:.2f} of Pillow alone")


def main() -> None:
    """Makes the images, and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--digits", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photographs: list[bytes] = []
    for number in range(options.images):
        file = io.BytesIO()
        photograph(number).save(file, "JPEG", quality=90)
        photographs.append(file.getvalue())
    plain = Wanted((64, 64), None, 3)
    scaled = Wanted((64, 64), None, 3, jpeg_scaling=True)
    errors = [
        np.square(by_ray_gen(data, scaled).astype(float) - by_pillow(data, 64, "RGB")).mean()
        for data in photographs
    ]
    print("JPEG 512×512 to 64×64, one thread")
    measured(
        {
            "pillow": lambda data: by_pillow(data, 64, "RGB"),
            "ray_gen": lambda data: by_ray_gen(data, plain),
            "ray_gen, scaled": lambda data: by_ray_gen(data, scaled),
            "torchvision": lambda data: by_torchvision(data, 64, "RGB"),
        },
        photographs,
        options.rounds,
    )
    psnr = [10 * np.log10(255**2 / error) for error in errors]
    print(f"  PSNR of jpeg_scaling: median {median(psnr):.1f} dB, least {min(psnr):.1f} dB")
    digits: list[bytes] = []
    for number in range(options.digits):
        file = io.BytesIO()
        digit(number).save(file, "PNG")
        digits.append(file.getvalue())
    grey = Wanted((28, 28), None, 1)
    print("PNG 28×28, one thread")
    measured(
        {
            "pillow": lambda data: by_pillow(data, 28, "L"),
            "ray_gen": lambda data: by_ray_gen(data, grey),
            "torchvision": lambda data: by_torchvision(data, 28, "L"),
        },
        digits,
        options.rounds,
    )
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "set"
        root.mkdir()
        for number, data in enumerate(digits):
            (root / f"{number:07}.png").write_bytes(data)
        begun = time.perf_counter()
        open_store(
            ImageFolder(path=str(root)),
            image_size=None,
            center_crop=None,
            channels=None,
            held_out_fraction=0.1,
            on_corrupt="stop",
            cache_folder=Path(place) / "cache",
        )
        seconds = time.perf_counter() - begun
        print(
            f"  {'store':<18}{len(digits) / seconds:>10,.0f} images/s, from a folder, all threads"
        )


if __name__ == "__main__":
    main()
