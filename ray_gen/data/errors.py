"""Errors about data, as sentences for the author of the experiment."""

from __future__ import annotations

from collections.abc import Callable

from ray_gen.errors import Refused


class DataError(Refused):
    """Data that cannot be used. The message names the dotted field, the value and the remedy."""


Refuse = Callable[[DataError], None]
"""What happens with a reason to refuse a data set. It may return; then the reader goes on."""


def raised(error: DataError) -> None:
    """The usual `Refuse`: stops at the first reason."""
    raise error


class CorruptImageError(Exception):
    """An image that cannot be decoded. The message gives the reason, not the name."""


def reason(error: BaseException) -> str:
    """The cause inside an error, short enough for the middle of a sentence.

    For an OSError, only the system's message ("permission denied"): our sentence names the path.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if type(error).__name__ == "UnidentifiedImageError":  # PIL's message shows a Python object
        return "it is not an image of a known format"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
