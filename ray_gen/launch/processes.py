"""Processes of this machine: when they started, what they started, and how they are ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path

from ray_gen.launch.signals import shielded

PROC = Path("/proc")
"""What the system tells of its processes."""
GRACE_SECONDS = 1.0
"""How long processes may take to end by themselves before they are killed."""
GONE_SECONDS = 5.0
"""How long a killed process may take to be gone. A system call that hangs delays the end."""


@dataclass(frozen=True)
class Process:
    """A process. The system uses process ids again, but not with the same start time."""

    pid: int
    started: str
    """In clock ticks since boot."""

    @property
    def name(self) -> str:
        """The first 15 letters of its program's name. Empty if it has ended."""
        try:
            return Path(f"/proc/{self.pid}/comm").read_text(errors="replace").strip()
        except OSError:
            return ""

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return start_of(self.pid) == self.started

    def blocks(self, number: int) -> bool:
        """Whether its main thread does not hear a signal of this number."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
        except OSError:
            return False
        blocked = re.search(r"^SigBlk:\s*(\w+)", status, re.MULTILINE)
        return blocked is not None and bool(int(blocked[1], 16) >> (number - 1) & 1)

    def kill(self) -> None:
        """Ends it at once."""
        if self.lives:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


def start_of(pid: int) -> str | None:
    """When a process started, in clock ticks since boot. None if it is not there or has ended."""
    stat = _stat_of(pid)
    return None if stat is None or stat[0] in "ZX" else stat[19]


def children_of(pid: int) -> set[Process]:
    """The processes that a process has started. Empty on a system without /proc."""
    return {Process(child, stat[19]) for child, stat in _all() if int(stat[1]) == pid}


def with_descendants(processes: Collection[Process]) -> set[Process]:
    """These processes, and all that they have started, and so on."""
    started: dict[int, list[Process]] = {}
    for pid, stat in _all():
        started.setdefault(int(stat[1]), []).append(Process(pid, stat[19]))
    found, waiting = set(processes), list(processes)
    while waiting:
        new = set(started.get(waiting.pop().pid, ())) - found
        found |= new
        waiting += new
    return found


def resident_bytes(pid: int, proc: Path = PROC) -> int:
    """The memory that a process has, without what lies in files. 0 if it has ended."""
    try:
        pages = (proc / str(pid) / "statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def end(processes: Collection[Process]) -> None:
    """Waits until the processes have ended. Kills those that do not end by themselves."""
    if _wait(processes, GRACE_SECONDS):
        return
    for process in processes:
        process.kill()
    _wait(processes, GONE_SECONDS)


_REAPER = """
import os, signal, sys
for line in list(sys.stdin):
    pid, started = line.split()
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as stat:
            if stat.read().rpartition(")")[2].split()[19] == started:
                os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""
"""A program that kills the processes whose ids it has read, when its input ends."""


@contextlib.contextmanager
def ending_with_this_process(processes: Collection[Process]) -> Generator[None]:
    """Inside the `with` statement: if this process is killed, these processes are killed at once.
    Ray's own end by themselves, but its agents wait a minute for the rest of Ray first."""
    if not processes:
        yield
        return
    with shielded():
        reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _REAPER], stdin=subprocess.PIPE, text=True
        )
    assert reaper.stdin is not None
    try:
        for process in processes:
            print(process.pid, process.started, file=reaper.stdin, flush=True)
        yield
    finally:
        reaper.stdin.close()
        reaper.wait()


def _wait(processes: Collection[Process], seconds: float) -> bool:
    """Whether all have ended within this time."""
    deadline = time.monotonic() + seconds
    while any(process.lives for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _all() -> list[tuple[int, list[str]]]:
    """Process ids, and the fields of /proc/PID/stat from the state on."""
    try:
        names = os.listdir("/proc")  # noqa: PTH208  (names only: a process may just have ended)
    except OSError:
        return []
    found = [(int(name), _stat_of(int(name))) for name in names if name.isdigit()]
    return [(pid, stat) for pid, stat in found if stat is not None]


def _stat_of(pid: int) -> list[str] | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()
