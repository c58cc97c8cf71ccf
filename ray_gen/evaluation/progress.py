"""How an evaluation reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): this worker has done `done` of its own `total` items. `what` names
them, e.g. "generated images"."""


def silent(done: int, total: int, what: str) -> None:
    """A Progress that reports nothing."""
