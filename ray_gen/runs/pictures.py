"""Turns batches of images of any channels into one picture, and writes pictures."""

from __future__ import annotations

import functools
import importlib.util
import io
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.pixels import PixelFormat, as_in_files, over, quantised
from ray_gen.runs.captions import (
    NO_CAPTIONS,
    Captions,
    Tiles,
    captioned,
    class_names_above,
    columns_of,
    drawable_all,
    line_height,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Levels = NDArray[np.uint8 | np.uint16]
"""Pixels of images: uint8, or uint16 for 16 bits."""

EIGHT_BITS = PixelFormat()

FRAMES_PER_SECOND = 10
"""Of animations and films."""

_SQUARE = 8
"""Pixels: side of a square of the checkerboard below transparent images."""
_LIGHT, _DARK = 0.85, 0.75
"""Greys of the checkerboard."""

_SHOWN_AS = 96
"""Pixels: about the side of an image in a picture, for images smaller than that."""
_MOST_ZOOM = 4


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [0, 1] to uint8 (N, H, W, C), rounded to the nearest of 256 levels."""
    return quantised(images).permute(0, 2, 3, 1).cpu().numpy()


def to_levels(images: Tensor, form: PixelFormat) -> Levels:
    """(N, C, H, W) in [0, 1] to the numbers of files, (N, H, W, C): uint8 or uint16."""
    return as_in_files(images, form).permute(0, 2, 3, 1).cpu().numpy()


def viewed(images: Tensor, *, opacity: bool = False) -> Tensor:
    """Images as people see them: (N, C, H, W) in [0, 1] to grey or RGB, (N, 1 or 3, H, W).

    opacity: whether the last channel is opacity. Then images lie on a checkerboard. Else two
    channels are red and green, and of four or more the first three are red, green and blue
    (`channels_viewed` says so).
    """
    channels, height, width = images.shape[1:]
    if opacity:
        values = images.detach().float().clamp(0.0, 1.0)
        return over(values, _checkerboard(height, width).to(values.device))
    if channels == 2:
        return torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
    return images[:, :3]


def channels_viewed(channels: int, *, opacity: bool = False) -> str:
    """How a picture shows the channels of such images, as an addition to a sentence. Empty: as
    people expect it."""
    if opacity or channels in (1, 3):
        return ""
    if channels == 2:
        return ", channels 1 and 2 as red and green"
    return f", channels 1 to 3 of {channels} as red, green and blue"


def _checkerboard(height: int, width: int) -> Tensor:
    """Light and dark grey squares: (H, W) in [0, 1]. At least four squares a side."""
    side = max(1, min(_SQUARE, height // 4, width // 4))
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return torch.where((rows[:, None] + columns) % 2 == 0, _LIGHT, _DARK)


def zoom_of(height: int, width: int) -> int:
    """How large a picture shows images of this size: the side of one of their pixels, 1 to 4."""
    return max(1, min(_MOST_ZOOM, round(_SHOWN_AS / max(height, width))))


def grid(
    images: Tensor,
    columns: int | None = None,
    gap: int = 2,
    *,
    opacity: bool = False,
    zoom: int = 1,
    captions: Captions = NO_CAPTIONS,
) -> NDArray[np.uint8]:
    """Images in rows, in reading order, on white: (N, C, H, W) in [0, 1] to uint8 (H', W', 1 or 3),
    see `viewed`.

    columns None: as square as possible. gap: pixels of an image between two images. zoom: side of
    one pixel of an image in the picture.
    """
    tiles = to_bytes(viewed(images, opacity=opacity)).repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, height, width, channels = tiles.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap *= zoom
    above = line_height(width) if captions.images else 0
    down, right = above + height + gap, width + gap
    picture = np.full((rows * down + gap, columns * right + gap, channels), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top = gap + (index // columns) * down + above
        left = gap + (index % columns) * right
        picture[top : top + height, left : left + width] = tile
    return captioned(picture, captions, Tiles(columns, height, width, down, right, gap, above))


def samples_grid(
    images: Tensor,
    classes: Sequence[str] = (),
    *,
    opacity: bool = False,
    zoom: int = 1,
    numbered: bool = False,
) -> NDArray[np.uint8]:
    """Samples in the order of their numbers: (N, C, H, W) in [0, 1] to uint8 (H', W', 1 or 3).

    classes: the names of their classes, which come in turn: each column has one class, with its
    name above, if there are at most 16. numbered: the number of each sample stands above it, and
    its class if its column has none.
    """
    count, names = len(images), drawable_all(classes)
    columns = columns_of(count, len(names))
    above = class_names_above(columns, names)
    apart = [] if above else names
    numbers = [f"{i}: {apart[i % len(apart)]}" if apart else str(i) for i in range(count)]
    captions = Captions(columns=above, images=numbers if numbered else ())
    return grid(images, columns, opacity=opacity, zoom=zoom, captions=captions)


def in_turn_rows(first: Tensor, second: Tensor, columns: int, *, opacity: bool = False) -> Tensor:
    """Alternates rows of `first` and rows of `second`, for a grid with `columns` columns: two times
    (N, C, H, W) to (2N, 1 or 3, H, W), see `viewed`. White images fill up the last row of each."""
    first, second = (viewed(images, opacity=opacity) for images in (first, second))
    missing = -len(first) % columns
    white = first.new_ones(missing, *first.shape[1:])
    rows = (torch.cat([images, white]).split(columns) for images in (first, second))
    return torch.cat([row for pair in zip(*rows, strict=True) for row in pair])


def pairs_grid(
    images: Tensor, made: Tensor, *, opacity: bool = False, zoom: int = 1
) -> NDArray[np.uint8]:
    """Rows of images, each above the row of their reconstructions, with the names of the rows: two
    times (N, C, H, W) in [0, 1] to uint8 (H', W', 1 or 3)."""
    columns = min(len(images), 8)
    pairs = in_turn_rows(images, made, columns, opacity=opacity)
    names = ["original", "reconstruction"] * math.ceil(len(images) / columns)
    return grid(pairs, columns, zoom=zoom, captions=Captions(rows=names))


def projections_grid(
    images: Tensor,
    made: Tensor,
    names: Sequence[str],
    errors: Sequence[str],
    *,
    opacity: bool = False,
    zoom: int = 1,
) -> NDArray[np.uint8]:
    """Rows of images, each above the row of their projections, with a name above each image and an
    error above each projection: two times (N, C, H, W) in [0, 1] to uint8 (H', W', 1 or 3)."""
    columns = min(len(images), 8)
    pairs = in_turn_rows(images, made, columns, opacity=opacity)
    above: list[str] = []
    for start in range(0, len(images), columns):
        for words in (drawable_all(names), errors):
            row = list(words[start : start + columns])
            above += [*row, *[""] * (columns - len(row))]
    rows = ["image", "projection"] * math.ceil(len(images) / columns)
    return grid(pairs, columns, zoom=zoom, captions=Captions(rows=rows, images=above))


def equation(
    groups: Sequence[tuple[str, Tensor, Tensor]],
    results: Tensor,
    gap: int = 2,
    *,
    opacity: bool = False,
    zoom: int = 1,
    names: Sequence[Sequence[str]] = (),
) -> NDArray[np.uint8]:
    """Vector arithmetic as in Radford et al. 2016, figure 7: uint8 (H', W', 1 or 3), see `viewed`.

    groups: each a sign "+" or "-", the group's images (N, C, H, W) and the image of its mean (1, C,
    H, W). They form a column, with the mean at the bottom. results: nine images (9, C, H, W). zoom:
    as for `grid`. names: of the images of each group; empty: no captions.
    """
    channels, height, width = viewed(results, opacity=opacity).shape[1:]
    height, width, white = height * zoom, width * zoom, gap * zoom
    parts: list[NDArray[np.uint8]] = []
    for index, (sign, images, mean) in enumerate(groups):
        if index or sign != "+":
            parts.append(_sign(sign, height, width, channels, white))
        space = np.full((height // 3, width + 2 * white, channels), 255, dtype=np.uint8)
        told = Captions(images=names[index]) if names else NO_CAPTIONS
        of_mean = Captions(images=["mean"]) if names else NO_CAPTIONS
        pictures = [
            grid(part, 1, gap, opacity=opacity, zoom=zoom, captions=captions)
            for part, captions in ((images, told), (mean, of_mean))
        ]
        parts.append(np.concatenate([pictures[0], space, pictures[1]]))
    equals = _sign("=", height, width, channels, white)
    parts += [equals, grid(results, 3, gap, opacity=opacity, zoom=zoom)]
    tallest = max(len(part) for part in parts)
    above = (((tallest - len(part), 0), (0, 0), (0, 0)) for part in parts)
    return np.concatenate(
        [
            np.pad(part, padding, constant_values=255)
            for part, padding in zip(parts, above, strict=True)
        ],
        axis=1,
    )


def _sign(sign: str, height: int, width: int, channels: int, gap: int) -> NDArray[np.uint8]:
    """A plus, minus or equals sign as high as one tile and half as wide."""
    picture = np.full((height + 2 * gap, width // 2 + 2 * gap, channels), 255, dtype=np.uint8)
    middle, centre = len(picture) // 2, picture.shape[1] // 2
    arm, half = max(2, width // 8), max(1, width // 32)
    for bar in (middle - 2 * half, middle + 2 * half) if sign == "=" else (middle,):
        picture[bar - half : bar + half, centre - arm : centre + arm] = 0
    if sign == "+":
        picture[middle - arm : middle + arm, centre - half : centre + half] = 0
    return picture


def save_png(picture: Levels, path: Path) -> None:
    """Write (H, W, C) as a PNG file, whole or not at all: uint8 grey, LA, RGB or RGBA, or
    uint16 grey."""
    with _whole(path) as partial:
        _pillow(picture).save(partial, format="PNG")


def png_of(picture: Levels) -> bytes:
    """The bytes of the file that `save_png` writes."""
    file = io.BytesIO()
    _pillow(picture).save(file, format="PNG")
    return file.getvalue()


def save_tiff(picture: Levels, path: Path, *, opacity: bool = False) -> None:
    """Write (H, W, C), uint8 or uint16, as a TIFF file of C bands, whole or not at all. opacity:
    whether the last is opacity."""
    from ray_gen.data.pictures import write_tiff

    with _whole(path) as partial:
        write_tiff(partial, picture, opacity=opacity)


def file_kind(channels: int, form: PixelFormat) -> str:
    """The kind of file that holds such an image: ".png", or ".tiff" if PNG or Pillow cannot."""
    known = channels - form.opacity in (1, 3)
    return ".png" if channels == 1 or (known and form.bits == 8) else ".tiff"


def save_animation(frames: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Write pictures of one size as an animation (.gif, which is endless) or a film (.mp4),
    forwards and then backwards, whole or not at all. Raises Refused if a film needs a package that
    is missing."""
    there_and_back = [*frames, *frames[-2:0:-1]]
    if path.suffix.lower() == ".mp4":
        _save_mp4(there_and_back, path)
        return
    first, *others = map(_pillow, there_and_back)
    with _whole(path) as partial:
        first.save(
            partial,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=1000 // FRAMES_PER_SECOND,
            loop=0,
        )


def check_film(path: Path, option: str) -> None:
    """Raises Refused if this file would be a film and the package that writes films is missing."""
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
        raise Refused(
            f"{option}: {path}: a film needs PyAV; pip install 'ray_gen[video]', or write a .gif"
        )


def _save_mp4(frames: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """H.264 in colours of half the resolution, which every browser shows. Its sides are even."""
    check_film(path, "output")
    import av

    height, width, channels = frames[0].shape
    even = ((0, height % 2), (0, width % 2), (0, 0))
    with _whole(path) as partial, av.open(str(partial), "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "18"})
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            padded = np.pad(frame, even, constant_values=255).repeat(3 // channels, axis=2)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        film.mux(stream.encode())


def _pillow(picture: Levels) -> Image:
    from PIL import Image

    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


@contextmanager
def _whole(path: Path) -> Generator[Path]:
    """A temporary path to write to. It is renamed to `path` if the `with` statement succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_samples(
    batches: Iterator[Tensor],
    count: int,
    output: Path,
    zoom: int = 1,
    form: PixelFormat = EIGHT_BITS,
    *,
    classes: Sequence[str] = (),
    numbered: bool = False,
) -> str:
    """Write images in [0, 1] as one grid (.png), one array (.npz: `images`, uint8 NHWC), or a
    folder of files: PNG, or TIFF for images that PNG cannot hold. Returns a description of the
    output.

    form: of the numbers in arrays and in a folder. A grid has 8 bits. classes, numbered:
    see `samples_grid`.
    """
    if output.suffix.lower() == ".png":
        images = torch.cat(list(batches))
        picture = samples_grid(images, classes, opacity=form.opacity, zoom=zoom, numbered=numbered)
        save_png(picture, output)
        shown = channels_viewed(images.shape[1], opacity=form.opacity)
        return f"{output}: a grid of {count} images{shown}"
    if output.suffix.lower() == ".npz":
        levels = np.concatenate([to_levels(batch, form) for batch in batches])
        return f"{output}: `images`, {save_npz(output, images=levels)}{_values(form)}"
    for kind in ("png", "tiff"):
        if any(output.glob(f"*.{kind}")):
            raise Refused(
                f"--output: {output} already contains {kind.upper()} files; give another folder"
            )
    index, suffix = 0, ".png"
    for batch in batches:
        suffix = file_kind(batch.shape[1], form)
        save = save_png if suffix == ".png" else functools.partial(save_tiff, opacity=form.opacity)
        for image in to_levels(batch, form):
            save(image, output / f"{index:06d}{suffix}")
            index += 1
    return f"{output}: {index} {suffix[1:].upper()} files{_values(form)}"


def save_rows(
    images: Tensor,
    output: Path,
    zoom: int = 1,
    form: PixelFormat = EIGHT_BITS,
    *,
    captions: Captions = NO_CAPTIONS,
) -> str:
    """Write images (R, S, C, H, W) in [0, 1], R rows of S steps, as one grid (.png), an animation
    of its columns (.gif, .mp4), one array (.npz: `images`, uint8 RSHWC), or a folder of files in
    reading order. Returns a description of the output. form: see `save_samples`. captions: of rows
    and columns; in an animation each image has the name of its row."""
    rows, steps, channels = images.shape[:3]
    said = f"{rows} row{'s' if rows > 1 else ''} of {steps} steps"
    shown = channels_viewed(channels, opacity=form.opacity)
    as_picture = functools.partial(grid, opacity=form.opacity, zoom=zoom)
    kind = output.suffix.lower()
    if kind == ".png":
        save_png(as_picture(images.flatten(0, 1), steps, captions=captions), output)
        return f"{output}: {said}{shown}"
    if kind in (".gif", ".mp4"):
        of_each = Captions(images=captions.rows)
        frames = [as_picture(images[:, step], captions=of_each) for step in range(steps)]
        save_animation(frames, output)
        return f"{output}: {said}, forwards and backwards{shown}"
    if kind == ".npz":
        levels = to_levels(images.flatten(0, 1), form)
        shape = (rows, steps, *levels.shape[1:])
        written = save_npz(output, images=levels.reshape(shape))
        return f"{output}: `images`, {written}{_values(form)}"
    return f"{save_samples(iter(images), rows * steps, output, form=form)}, {said}"


def save_pairs(
    pairs: Iterable[tuple[Tensor, Tensor]],
    output: Path,
    zoom: int = 1,
    form: PixelFormat = EIGHT_BITS,
) -> str:
    """Write batches of images in [0, 1] and their reconstructions as a grid that alternates rows of
    images and rows of reconstructions (.png), as arrays (.npz: `images`, `reconstructions`, uint8
    NHWC), or the reconstructions alone as a folder of files. Returns a description of the output.
    form: see `save_samples`."""
    images, made = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if output.suffix.lower() == ".png":
        save_png(pairs_grid(images, made, opacity=form.opacity, zoom=zoom), output)
        shown = channels_viewed(images.shape[1], opacity=form.opacity)
        return f"{output}: {len(images)} images, each above its reconstruction{shown}"
    if output.suffix.lower() == ".npz":
        ours, theirs = to_levels(images, form), to_levels(made, form)
        written = save_npz(output, images=ours, reconstructions=theirs)
        return f"{output}: `images` and `reconstructions`, {written}{_values(form)}"
    return f"{save_samples(iter([made]), len(made), output, form=form)} of reconstructions"


def _values(form: PixelFormat) -> str:
    """The values of black and white, as an addition to a sentence, if a reader may not expect
    them."""
    if form.values is None:
        return ""
    low, high = form.values
    return f", values {low:,} to {high:,} as in the data"


def save_npz(output: Path, **arrays: Levels) -> str:
    """Write named arrays to one compressed file, whole or not at all. Returns the type and shape of
    the first array, for a message."""
    with _whole(output) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    first = next(iter(arrays.values()))
    return f"{first.dtype} {first.shape}"
