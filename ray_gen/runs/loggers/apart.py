"""Calls a logger in its own thread, so that a dead server neither stops nor delays a run."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable

from ray_gen.storage import is_secret

WAITING = 64
"""Number of calls that may wait for a logger."""
PATIENCE_SECONDS = 60.0
"""How long one call may take."""
END_SECONDS = 30.0
"""How long the end of a run waits for all loggers together."""

_LONGEST_REASON = 200
_SHORTEST_SECRET = 8


class Apart:
    """The thread of one logger. After an error or a call that takes too long, it makes no more
    calls."""

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        """tell: is called once, with a sentence, if the logger is given up."""
        self._name, self._tell = name, tell
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._since: float | None = None
        """When the call began that goes on now."""
        self._given_up = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)

    def call(self, function: Callable[[], None] | None) -> None:
        """Call `function` after all earlier calls; None: there are no more. Returns at once."""
        if self._thread.ident is None:
            self._thread.start()
        since = self._since
        if since is not None and time.monotonic() - since > PATIENCE_SECONDS:
            self._give_up(f"has not answered for {PATIENCE_SECONDS:.0f} s")
        if self._given_up:
            return
        try:
            self._calls.put_nowait(function)
        except queue.Full:
            self._give_up(f"is slower than the run: {WAITING} calls wait for it")

    def wait(self, seconds: float) -> None:
        """After `call(None)`: return when all calls are made, at the latest after `seconds`."""
        if not self._given_up:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._give_up("did not end in time")

    def _work(self) -> None:
        while (function := self._calls.get()) is not None and not self._given_up:
            self._since = time.monotonic()
            try:
                function()
            except BaseException as error:  # also SystemExit: it would end only this thread, unseen
                self._give_up(f"failed ({type(error).__name__}: {_reason(error)})")
            self._since = None

    def _give_up(self, why: str) -> None:
        with self._lock:
            if self._given_up:
                return
            self._given_up = True
        self._tell(f"loggers: {self._name} {why}; the run goes on without it")


def _reason(error: BaseException) -> str:
    """The first line of an error, without anything secret: people see it, and it is written to
    progress.json."""
    text = str(error).strip().partition("\n")[0]
    text = re.sub(r"://[^/@\s]+@", "://", text)
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "...")
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
