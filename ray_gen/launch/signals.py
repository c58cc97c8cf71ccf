"""Ctrl-C and SIGTERM. A run saves before it ends, and the Ray that it started lives until then.

A terminal sends SIGINT to all processes of a group. `timeout`, Slurm and systemd send SIGTERM to
all processes of a group, a step or a cgroup, so to Ray's processes too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from ray_gen.errors import Interrupted, Refused

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0
"""A signal that comes again within this time is the same request: `timeout` sends it to its command
and then to the whole group."""
LOOK_SECONDS = 3.0
"""How long to look for checkpoints. A storage that fails answers later."""


@contextmanager
def shielded() -> Generator[None]:
    """Processes that start inside the `with` statement do not hear SIGINT and SIGTERM, nor do those
    that they start: a blocked signal stays blocked in children. This process still hears them.

    A session of their own would not help: systemd and Slurm signal the whole cgroup.
    """
    done = threading.Event()
    # Python answers a signal on the main thread, whichever thread the system gives it to.
    threading.Thread(target=done.wait, name="signals", daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        done.set()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deferred() -> Generator[None]:
    """Inside the `with` statement a signal waits: its handler answers at the end. An exception in
    the middle of `ray.init` would leave locks behind, or Ray would swallow it. The second signal
    ends this process at once, also while the main thread hangs in code that is not Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[tuple[int, float]] = []

    def note(number: int) -> None:
        now = time.monotonic()
        if heard and now - heard[0][1] > ECHO_SECONDS:
            os._exit(128 + number)
        if not heard:
            told = "stopping as soon as Ray has answered; press Ctrl-C again to leave at once"
            print(told, file=sys.stderr)
        heard.append((number, now))

    with _heard_in_a_thread(note):
        before = {number: signal.signal(number, _ignored) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if heard:
        signal.raise_signal(heard[0][0])


def _ignored(number: int, frame: object) -> None:
    """A handler: without one, Python tells nobody of a signal."""


@contextmanager
def _heard_in_a_thread(note: Callable[[int], None]) -> Generator[None]:
    """Inside the `with` statement a thread calls `note` with the number of each signal. Python's
    handlers wait for the main thread, which may hang in a library."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def listen() -> None:
        while numbers := ours.recv(64):
            for number in numbers:
                if number in SIGNALS:
                    note(number)

    listening = threading.Thread(target=listen, name="deferred", daemon=True)
    listening.start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        listening.join()
        ours.close()


class Interruption:
    """Answers Ctrl-C and SIGTERM from the start of a run or search to its end.

    The first one, inside `saving`: asks it to save and stop. Before: raises Interrupted, at the
    latest when `saving` begins. After: is ignored, since all is saved. The second one ends this
    process at once. Use as a context manager. Off the main thread it hears nothing: Python gives
    signals only to the main thread.
    """

    def __init__(self, say: Callable[[str], None], saved: Callable[[], str]) -> None:
        """say: prints a sentence. saved: gives the words of `what_was_saved`."""
        self._say = say
        self._saved = saved
        self._heard: tuple[int, float] | None = None
        self._answer: Callable[[int], None] = self._raise
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def saving(self, ask: Callable[[], None], *, sure: bool = True) -> Generator[None]:
        """Inside the `with` statement the first signal calls `ask`, which asks the run or search to
        save and stop. sure: whether Ray goes on if it gets the signal, too."""
        saving = "saving and stopping" if sure else "stopping, and saving if Ray got no such signal"

        def answer(number: int) -> None:
            ask()
            self._say(f"{saving}; press Ctrl-C again to leave at once")

        self._answer = answer
        try:
            if self._heard is not None:  # a library has swallowed the exception
                self._raise(self._heard[0])
            yield
        finally:
            self._answer = lambda number: None

    def _raise(self, number: int) -> None:
        raise Interrupted(number=number)

    def _hear(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._heard is None:
            self._heard = number, now
            self._answer(number)
        elif now - self._heard[1] > ECHO_SECONDS:
            self._say(f"stopped at once{self._saved()}")
            os._exit(128 + number)


def what_was_saved(location: str, look: Callable[[], bool]) -> str:
    """Words for the end of a sentence: where it lies, or that nothing was saved. Empty if `look`
    does not say within LOOK_SECONDS whether there is a checkpoint."""
    found: list[bool] = []

    def looks() -> None:
        with suppress(OSError, Refused):
            found.append(look())

    looking = threading.Thread(target=looks, name="saved", daemon=True)
    looking.start()
    looking.join(LOOK_SECONDS)
    if not found:
        return ""
    return f"; what was saved is in {location}" if found[0] else "; nothing was saved"
