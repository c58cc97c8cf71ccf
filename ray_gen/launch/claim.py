"""One writer at a time: a heartbeat in the run folder, on any storage."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from ray_gen.errors import Refused
from ray_gen.launch.processes import start_of
from ray_gen.runs.progress import note_error
from ray_gen.storage import PATIENCE_SECONDS, Folder, StorageError

FILE = "writer.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = PATIENCE_SECONDS + 6 * BEAT_SECONDS
"""After this silence a writer on another machine counts as dead. Retries to a failing storage are
shorter."""


class Claim:
    """Holds a run for this process until it is released or the process dies.

    A writer on this machine is alive as long as its process exists. A writer on another machine is
    alive as long as its heartbeats are recent. Use as a context manager.
    """

    def __init__(self, run: Folder, other: str = "another --name") -> None:
        """other: what a user can choose instead if another process holds the folder."""
        self._run = run
        self._other = other
        self._facts: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": start_of(os.getpid()),
            "token": secrets.token_hex(8),
        }
        self._since = time.time()
        self._released = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="claim", daemon=True)

    def __enter__(self) -> Claim:
        other = living_writer(self._run)
        if other is not None:
            elsewhere = other.get("host") != self._facts["host"]
            raise Refused(
                f"{self._run.location}: another process writes here (pid {other.get('pid')} on "
                f"{other.get('host')}); wait for it, stop it, or choose {self._other}"
                + (f". It counts as dead after {STALE_SECONDS:.0f} s of silence" * elsewhere)
            )
        self._write()
        time.sleep(0.05)  # if two start together, both write, and the later one gets the claim
        found = _read(self._run)
        if found is None:
            raise StorageError(
                f"{(self._run / FILE).location}: the storage did not give back what was written"
            )
        if not self._is_mine(found):
            raise Refused(
                f"{self._run.location}: another process has just begun to write here; choose "
                f"{self._other}"
            )
        self._beating.start()
        return self

    def __exit__(
        self, kind: object = None, error: BaseException | None = None, trace: object = None
    ) -> None:
        if error is not None and not self._is_anothers():
            with contextlib.suppress(OSError, ValueError):  # it must not hide the error
                note_error(self._run, error, self._since)
        self._released.set()
        self._beating.join()
        # If the storage is gone, the claim goes stale by itself.
        with contextlib.suppress(OSError, StorageError):
            if not self._is_anothers():
                self._run.remove(FILE)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                if not self._is_anothers():
                    self._write()
            except (OSError, StorageError):
                continue  # the code that writes data there reports a full disk

    def _write(self) -> None:
        self._run.write_text(FILE, json.dumps({**self._facts, "time": time.time()}))

    def _is_anothers(self) -> bool:
        """Whether another process has taken the run because this one was silent for too long."""
        found = _read(self._run)
        return found is not None and not self._is_mine(found)

    def _is_mine(self, found: dict[str, Any]) -> bool:
        return found.get("token") == self._facts["token"]


def living_writer(run: Folder) -> dict[str, Any] | None:
    """The facts (`host`, `pid`) of the process that writes a run now. None: nobody does."""
    found = _read(run)
    return found if found is not None and _is_alive(found) else None


def _read(run: Folder) -> dict[str, Any] | None:
    try:
        return json.loads(run.read_text(FILE))
    except (OSError, json.JSONDecodeError):
        return None


def _is_alive(other: dict[str, Any]) -> bool:
    if other.get("host") == socket.gethostname():
        started = start_of(int(other.get("pid", 0)))
        return started is not None and started == other.get("started")
    return time.time() - float(other.get("time", 0.0)) < STALE_SECONDS
