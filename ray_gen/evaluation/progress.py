"""How far an evaluation is, told to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): how far this worker is with its own share."""


def silent(done: int, total: int, what: str) -> None:
    """A progress that nobody looks at."""
