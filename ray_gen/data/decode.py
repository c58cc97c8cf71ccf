"""Decodes one image of any kind to pixels of one shape and type."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ray_gen.data import rules_1
from ray_gen.data.errors import CorruptImageError, DataError, reason, unreadable
from ray_gen.data.formats import pixel_limit
from ray_gen.data.pictures import Bands, check_channels, opened_bands, upright
from ray_gen.data.wanted import ELEMENTS, Look, Pixels, Unforeseen, Wanted, range_of
from ray_gen.pixels import channels_in_words

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from ray_gen.data.sources.base import Item, Picture

_T = TypeVar("_T")
_GREY_MODES = ("1", "L", "LA", "I", "F", "La")
_TRANSPARENT_MODES = ("LA", "PA", "RGBA", "RGBa", "La")


def decode(item: Item, wanted: Wanted, blamed: str) -> Pixels | CorruptImageError:
    """Pixels and class of one item. For a corrupt image it returns the error, and the caller raises
    or counts it.

    Damaged bytes raise almost anything in Pillow (OSError, SyntaxError, ValueError, struct.error,
    its own errors). Only an OSError with a number comes from the file system. It does not mean that
    the image is corrupt, and it raises DataError with the field `blamed`: if a network drive fails,
    skipping images could skip the whole data set. An image that does not fit the settings raises
    DataError too.
    """

    def work() -> Pixels:
        pixel_limit.set(wanted.max_pixels)
        picture, label = item.load()
        if wanted.rules == 1:
            assert not isinstance(picture, Bands)
            return Pixels(rules_1.pixels(picture, wanted, item.name), label, Look("", 0, False))
        if not isinstance(picture, Bands):
            picture = _opened(picture, wanted)
        look = look_at(picture)
        return Pixels(pixels(picture, look, wanted, item.name), label, look)

    return _unless_corrupt(work, item, blamed)


def encoded(
    item: Item, blamed: str, encode: Callable[[Picture], bytes]
) -> tuple[bytes, int | None] | CorruptImageError:
    """The bytes of one item's file, and its class. encode: makes a file of the image, upright and
    decompressed, if it does not lie in one of its own. Errors are those of `decode`."""

    def work() -> tuple[bytes, int | None]:
        pixel_limit.set(None)
        picture, label = item.load()
        if not isinstance(picture, Bands):
            picture = _decompressed(picture)
        return encode(picture) if item.encoded is None else item.encoded(), label

    return _unless_corrupt(work, item, blamed)


def _unless_corrupt(work: Callable[[], _T], item: Item, blamed: str) -> _T | CorruptImageError:
    """What `work` returns, or the error of a corrupt image."""
    try:
        return work()
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{blamed}: {item.name} needs more memory than this machine has free; remove it, or set"
            " data.max_pixels so that such images count as corrupt"
        ) from error
    except CorruptImageError as error:
        return error
    except OSError as error:
        if error.errno is None:
            return CorruptImageError(reason(error))
        raise unreadable(blamed, item.name, error) from error
    except Exception as error:
        return CorruptImageError(reason(error))


def glance(item: Item, wanted: Wanted) -> Look | None:
    """What an image is, without decompressing it (deep ones are). None: it is corrupt, or is not of
    the kind that `decode` reads."""
    try:
        pixel_limit.set(wanted.max_pixels)
        picture, _ = item.load()
        if not isinstance(picture, Bands) and _is_deep(picture):
            picture = _opened(picture, wanted)
        return look_at(picture)
    except (DataError, MemoryError):
        raise
    except Exception:
        return None


def _is_deep(image: Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _opened(image: Image, wanted: Wanted) -> Image | Bands:
    """The decompressed image, upright. Deep images become `Bands`."""
    if wanted.jpeg_scaling and image.format == "JPEG" and wanted.size_HW is not None:
        _scale_down(image, wanted.size_HW, wanted.center_crop)
    return _decompressed(image)


def _decompressed(image: Image) -> Image | Bands:
    image.load()
    image = upright(image)
    if _is_deep(image):
        return opened_bands(image)
    return image


def _scale_down(image: Image, size_HW: tuple[int, int], center_crop: int | None) -> None:
    """Lets the JPEG library drop the high frequencies of each block (ITU T.81's DCT), which costs a
    fraction of decompressing them. Leaves twice the wanted size, so that Lanczos still decides."""
    if center_crop is not None:  # in pixels of the original
        return
    scale = min(image.size) / max(size_HW)
    for factor in (8, 4, 2):
        if 2 * factor <= scale:
            image.draft(image.mode, (image.width // factor, image.height // factor))
            return


def look_at(picture: Image | Bands) -> Look:
    """What an image is. Finds the range of deep images, which needs all of their values."""
    if isinstance(picture, Bands):
        values, alpha = picture.values_HWC, picture.alpha
        channels = values.shape[2] - alpha
        if not picture.scaled:  # what ray_gen has written itself may have more: latents
            check_channels(values.shape[2])
        deep = None
        if values.dtype != np.uint8 and not picture.scaled:
            colours = values[..., :channels]
            deep = (float(colours.min()), float(colours.max()))
            if not np.isfinite(deep).all():
                raise CorruptImageError("some of its values are not finite")
        white = deep[1] if deep is not None else 1.0
        transparent = alpha and bool((values[..., -1] < _opaque(values.dtype, white)).any())
        mode = channels_in_words(channels + alpha, opacity=alpha)
        return Look(mode, channels, alpha, transparent, deep, values.dtype.name)
    grey = picture.mode in _GREY_MODES
    alpha = picture.mode in _TRANSPARENT_MODES or "transparency" in picture.info
    transparent = alpha
    if picture.mode in ("LA", "RGBA"):
        transparent = picture.getchannel("A").getextrema()[0] < 255  # pyright: ignore
    channels = 1 if grey else 3
    mode = channels_in_words(channels + alpha, opacity=alpha)
    return Look(mode, channels, alpha, transparent)


def pixels(picture: Image | Bands, look: Look, wanted: Wanted, name: str) -> NDArray[Any]:
    """(H, W, C) of the wanted type: cropped, resized to the wanted size, centred; on white if it is
    transparent and no opacity is wanted.

    The order is fixed: first the crop to `center_crop` pixels of the original, then one Lanczos
    resampling (antialiased).
    """
    channels = wanted.channels or (look.channels if look.channels != 2 else 2)
    _check_channels(look, channels, wanted, name)
    if wanted.element == "uint8" and not isinstance(picture, Bands):
        return _of_8_bits(picture, look, channels, wanted, name)
    return _of_bands(picture, look, channels, wanted, name)


def _check_channels(look: Look, channels: int, wanted: Wanted, name: str) -> None:
    """Raises Unforeseen or DataError for an image that cannot become one of `channels` channels."""
    if wanted.guessed_channels:
        colours = channels - wanted.guessed_alpha
        fits = look.channels == colours or (look.channels == 1 and colours == 3)
        if not fits or (wanted.guessed_alpha and not look.alpha):
            raise Unforeseen(
                f"data.channels: {name} is {look.mode}, and others suggested {channels} channels;"
                " set data.channels to the channels that all shall have"
            )
    own = channels in (look.channels, look.channels + look.alpha)
    if wanted.opacity is False and channels in (2, 4) and not own:
        raise DataError(
            f"data.channels: {name} is {look.mode}, and {channels} channels are wanted of which"
            " none is opacity, by the setting or as others have; keep images of one kind in the"
            " data set, or set data.opacity=true"
        )
    if look.channels in (1, 3) and channels <= 4:
        return
    if channels == 3 and look.channels > 3:  # the first three are red, green and blue
        return
    if not own:
        raise DataError(
            f"data.channels: {name} is {look.mode}, and {channels} channels are wanted, by the"
            " setting or as others have; keep images of one kind in the data set, or set"
            " data.channels to theirs"
        )


def _of_8_bits(
    image: Image, look: Look, channels: int, wanted: Wanted, name: str
) -> NDArray[np.uint8]:
    import PIL.Image

    opaque = channels in (1, 3)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    if look.alpha:
        image = image.convert("RGBA")
        if opaque:
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image)
    if image.mode != mode:
        image = image.convert(mode)
    size, box, inner = fitted(image.size, wanted, name)
    if image.size != inner or box != (0.0, 0.0, *image.size):
        image = image.resize(inner, PIL.Image.Resampling.LANCZOS, box=box)
    values = np.asarray(image).reshape(inner[1], inner[0], channels)
    return _padded(values, size, wanted, 255.0, channels) if inner != size else values


def _of_bands(
    picture: Image | Bands, look: Look, channels: int, wanted: Wanted, name: str
) -> NDArray[Any]:
    """As `_of_8_bits`, in float32: channel by channel, rounded once at the end."""
    from PIL import Image
    from PIL.Image import Resampling

    levels = _unit_values(picture, look, wanted, name)
    levels = _of_channels(levels, look, channels)
    height, width = levels.shape[:2]
    size, box, inner = fitted((width, height), wanted, name)
    if (width, height) != inner or box != (0.0, 0.0, width, height):
        thins = _has_opacity(look, channels) and (look.alpha or look.channels == channels - 1)
        if thins:  # a transparent pixel shows nothing of its colour
            levels = np.concatenate([levels[..., :-1] * levels[..., -1:], levels[..., -1:]], axis=2)
        bands = [Image.fromarray(np.ascontiguousarray(levels[..., c])) for c in range(channels)]
        bands = [band.resize(inner, Resampling.LANCZOS, box=box) for band in bands]
        levels = np.stack([np.asarray(band) for band in bands], axis=2)
        if thins:
            thin = np.maximum(levels[..., -1:], 1e-6)
            levels = np.concatenate([levels[..., :-1] / thin, levels[..., -1:]], axis=2)
    if inner != size:
        levels = _padded(levels, size, wanted, 1.0, channels)
    if wanted.element == "float16":
        return levels.astype(np.float16)
    kind = ELEMENTS[wanted.element]
    return np.rint(levels.clip(0, 1) * np.iinfo(kind).max).astype(kind)  # pyright: ignore


def _unit_values(picture: Image | Bands, look: Look, wanted: Wanted, name: str) -> NDArray[Any]:
    """(H, W, C) in [0, 1], opacity included. For maps of floats: the values as they are."""
    if not isinstance(picture, Bands):
        mode = {"grey": "L", "RGB": "RGB", "RGBA": "RGBA", "grey with opacity": "LA"}[look.mode]
        image = picture if picture.mode == mode else _with_alpha(picture, mode)
        values = np.asarray(image).reshape(image.height, image.width, -1)
        return values.astype(np.float32) / 255
    values = picture.values_HWC
    if wanted.element == "float16":
        return values.astype(np.float32)
    if look.range is None:
        most = np.iinfo(values.dtype).max  # pyright: ignore
        return np.asarray(values / most, np.float32)
    if wanted.value_range is None:
        raise Unforeseen(
            f"data.value_range: {name} has {look.type} values from {look.range[0]:g} to"
            f" {look.range[1]:g}, and others have 8 bits; set data.value_range='[LOW, HIGH]'"
        )
    low, high = wanted.value_range
    floats = values.dtype.kind == "f"
    beyond = look.range[0] < low or (look.range[1] > high)
    if wanted.guessed_range and (beyond or wanted.of_floats not in (None, floats)):
        raise Unforeseen(
            f"data.value_range: {name} has {look.type} values from {look.range[0]:g} to"
            f" {look.range[1]:g}, beyond {low:g} to {high:g} of others;"
            " set data.value_range='[LOW, HIGH]'"
        )
    unit = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    if picture.alpha:
        unit[..., -1] = (values[..., -1] / _opaque(values.dtype, high)).clip(0, 1)
    return np.asarray(unit, np.float32)


def _opaque(kind: np.dtype[Any], white: float) -> float:
    """The value of full opacity. Of whole numbers: the greatest of their type, whatever range the
    colours use (PNG, section 13.16; TIFF 6.0, section 18). Of floats: 1, or 255 as white."""
    if kind.kind != "f":
        return float(np.iinfo(kind).max)
    return 255.0 if range_of(0.0, white, floats=True)[1] == 255 else 1.0


def _with_alpha(image: Image, mode: str) -> Image:
    """Through RGBA, which takes a palette's or a colour's transparency along."""
    return image.convert("RGBA").convert(mode) if "A" in mode else image.convert(mode)


def _has_opacity(look: Look, channels: int) -> bool:
    """Whether the last of the channels that an image gets is opacity: not that of four bands."""
    return channels in (2, 4) and look.channels in (1, 3)


def _of_channels(levels: NDArray[Any], look: Look, channels: int) -> NDArray[Any]:
    """(H, W, `channels`): on white, grey, repeated or opaque as needed."""
    if levels.shape[2] == channels:
        return levels
    colours, opacity = levels, None
    if look.alpha:
        colours, opacity = levels[..., :-1], levels[..., -1:]
    wants_opacity = _has_opacity(look, channels)
    if opacity is not None and not wants_opacity:
        colours = colours * opacity + (1 - opacity)
    wanted = channels - wants_opacity
    if wanted == 1 and colours.shape[2] == 3:
        luma = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow
        colours = (colours @ luma)[..., None]
    elif wanted == 3 and colours.shape[2] == 1:
        colours = colours.repeat(3, axis=2)
    elif wanted == 3:
        colours = colours[..., :3]
    if not wants_opacity:
        return colours
    if opacity is None:
        opacity = np.ones_like(colours[..., :1])
    return np.concatenate([colours, opacity], axis=2)


def fitted(
    image_size: tuple[int, int], wanted: Wanted, name: str
) -> tuple[tuple[int, int], tuple[float, float, float, float], tuple[int, int]]:
    """How an image of (width, height) becomes one of the wanted size: (width, height) of the
    result, the box of the original that is resized, and the (width, height) that it is resized
    to. They differ from the result only if borders are filled."""
    width, height = image_size
    left, top = 0.0, 0.0
    if wanted.center_crop is not None:
        side = wanted.center_crop
        if side > min(width, height):
            raise DataError(
                f"data.center_crop: {side} is more than {name} has ({width}×{height} pixels);"
                f" set it to {min(width, height)} or less"
            )
        left, top = float((width - side) // 2), float((height - side) // 2)
        width = height = side
    out_height, out_width = wanted.size_HW or (height, width)
    if wanted.size_from is not None and (height, width) != wanted.size_HW:
        raise DataError(
            f"data.image_size: images differ in size (height×width): {wanted.size_from} is"
            f" {out_height}×{out_width} pixels and {name}"
            f" {height}×{width}; set data.image_size to resize them, e.g."
            f" {min(out_width, out_height, width, height)}"
        )
    out = (out_width, out_height)
    if wanted.fit == "stretch":
        return out, (left, top, left + width, top + height), out
    if wanted.fit == "pad":
        scale = max(width / out_width, height / out_height)
        inner = (max(1, round(width / scale)), max(1, round(height / scale)))
        return out, (left, top, left + width, top + height), inner
    scale = min(width / out_width, height / out_height)
    box_width, box_height = out_width * scale, out_height * scale
    # A margin of zero can come out as -7e-15, which Pillow refuses.
    left += max(0.0, (width - box_width) / 2)
    top += max(0.0, (height - box_height) / 2)
    return out, (left, top, left + box_width, top + box_height), out


def _padded(
    values_HWC: NDArray[Any], size: tuple[int, int], wanted: Wanted, most: float, channels: int
) -> NDArray[Any]:
    """The image in the middle of one of `size` (width, height)."""
    height, width = values_HWC.shape[:2]
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    margins = ((top, size[1] - height - top), (left, size[0] - width - left), (0, 0))
    if wanted.pad == "edge":
        return np.pad(values_HWC, margins, mode="edge")
    assert not isinstance(wanted.pad, str)
    colour = wanted.pad * channels if len(wanted.pad) == 1 else wanted.pad
    if len(colour) != channels:
        raise DataError(
            f"data.pad: has {len(colour)} values and images have {channels} channels; give one"
            " value for all channels, or one for each"
        )
    framed = np.empty((size[1], size[0], channels), values_HWC.dtype)
    framed[:] = np.asarray(colour, np.float64) / 255 * most
    framed[top : top + height, left : left + width] = values_HWC
    return framed
