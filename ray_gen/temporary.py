"""Temporary files of this process, in one folder. What a killed process left is removed later.

A process holds a lock on its folder. The system ends the lock when the process ends, however it
ends. So a folder without a lock belongs to nobody. A process id would not do: containers that share
/tmp have their own ids.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from pathlib import Path

PREFIX = "ray_gen-process-"

_own: tuple[int, Path, int] | None = None
"""Process id, folder, and the descriptor that holds the lock."""


def new_folder(prefix: str) -> Path:
    """A new temporary folder whose name begins with `prefix`. The caller deletes it. If this
    process is killed first, the next process that needs a temporary folder deletes it."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=_folder()))


@contextlib.contextmanager
def folder(prefix: str) -> Generator[Path]:
    """A new temporary folder that exists only inside the `with` statement."""
    made = new_folder(prefix)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_abandoned() -> None:
    """Removes the temporary files of processes of this user that were killed."""
    try:
        entries = list(os.scandir(tempfile.gettempdir()))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(PREFIX):
            with contextlib.suppress(OSError):
                _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        return
    lock = _locked(path)
    if lock is not None:
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on a folder. None if another process holds it. Raises
    OSError if there is no such folder, or if its file system knows no locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _folder() -> Path:
    """The folder of this process."""
    global _own
    if _own is not None and _own[0] == os.getpid() and _own[1].is_dir():
        return _own[1]
    remove_abandoned()
    made = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        lock = _locked(made)
    except FileNotFoundError:
        lock = None
    except OSError:
        lock = -1  # no locks here: nobody can take the folder for abandoned
    if lock is None:
        return _folder()  # another process has just taken the new folder for abandoned
    if not made.is_dir():
        if lock >= 0:
            os.close(lock)
        return _folder()
    _own = (os.getpid(), made, lock)
    atexit.register(_remove, os.getpid(), made)
    return made


def _remove(pid: int, path: Path) -> None:
    """At the end of a process. A forked process has inherited this, but the folder is not its."""
    if os.getpid() == pid:
        shutil.rmtree(path, ignore_errors=True)
