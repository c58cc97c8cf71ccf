"""Errors about data, as sentences for the author of the experiment."""

from __future__ import annotations

from collections.abc import Callable

from ray_gen.errors import Refused


class DataError(Refused):
    """Data that cannot be used. The message names the dotted field, the value and the remedy. It is
    one line: a name of a file may hold anything."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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


def printable(text: str) -> str:
    """Text without characters that steer a terminal: a stranger named the files."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(letter: str) -> str:
    if letter.isprintable():
        return letter
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape", "backslashreplace").decode()


def unreadable(field: str, name: object, error: OSError) -> DataError:
    """The error for a file or folder that cannot be opened."""
    return DataError(
        f"{field}: {name} cannot be read: {reason(error)};"
        " restore it or give this user access to it"
    )
