"""Work on the items of a source in threads, a few items at a time, in their order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, takewhile
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def pieces(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    """The items, `size` at a time."""
    while piece := list(islice(items, size)):
        yield piece


def in_threads(
    items: Iterator[_Item],
    work: Callable[[Iterable[_Item]], _Result],
    size: int,
    *,
    name: str,
    waits: bool = True,
) -> Generator[_Result]:
    """The result of `work` for each piece of `size` items, in order, with at most two unfinished
    pieces per thread.

    If it is closed, or interrupted, a piece ends after the item that a thread works on. waits:
    whether closing waits for that. name: of the threads.
    """
    stopped = threading.Event()

    def work_on(piece: list[_Item]) -> _Result:
        return work(takewhile(lambda _: not stopped.is_set(), piece))

    threads = _processors()
    pending: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(threads, name)
    try:
        for piece in pieces(items, size):
            pending.append(pool.submit(work_on, piece))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(wait=waits, cancel_futures=True)


def _processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
