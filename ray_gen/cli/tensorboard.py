"""`ray-gen tensorboard`: shows runs in TensorBoard, also from a URI."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_gen.errors import Failed, Refused

if TYPE_CHECKING:
    from ray_gen.storage import Folder

EVENTS = "tfevents"
"""Part of the name of every file that TensorBoard reads."""


@click.command()
@click.argument("run_or_folder")
@click.option("--port", default=6006, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--every",
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    help="Seconds between two checks for new events behind a URI.",
)
def tensorboard(run_or_folder: str, port: int, every: float) -> None:
    """Show a run, a search or a folder of runs in TensorBoard, only on this machine.

    Events behind a URI are copied to a temporary folder, new events too. Ctrl-C ends TensorBoard.
    """
    from ray_gen import temporary
    from ray_gen.experiment import absolute_path
    from ray_gen.storage import Folder, StorageError

    folder = _shown(Folder(absolute_path(run_or_folder)))
    if folder.is_local:
        with _served(folder.path, port) as server:
            server.wait()
        return
    with temporary.folder("tensorboard-") as mirror:
        copy_events(folder, mirror)
        with _served(mirror, port) as server:
            while not _ends_within(server, every):
                try:
                    copy_events(folder, mirror)
                except StorageError as error:  # TensorBoard still shows the copied events
                    click.echo(str(error), err=True)


def _shown(folder: Folder) -> Folder:
    """The subfolder of a run or search that has the events. Any other folder as a whole."""
    if not folder.exists():
        raise Refused(f"{folder.location}: there is no such folder")
    names = folder.names()
    part = next((part for part in ("tensorboard", "trials") if part in names), None)
    return folder if part is None else folder / part


def copy_events(folder: Folder, mirror: Path) -> None:
    """Append the new bytes of each event file to its copy in the mirror. Event files only grow, and
    TensorBoard keeps them open."""
    for name, size in folder.sizes(EVENTS).items():
        file = mirror / name
        here = file.stat().st_size if file.exists() else 0
        if size > here:
            with suppress(FileNotFoundError):  # deleted since
                more = folder.read_bytes(name, here)
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("ab") as stream:
                    stream.write(more)


@contextmanager
def _served(logdir: Path, port: int) -> Generator[subprocess.Popen[bytes]]:
    """Runs TensorBoard until the block ends or until Ctrl-C. TensorBoard prints its address. Raises
    Failed if it ends for another reason."""
    shown = ("--logdir", str(logdir), "--host", "127.0.0.1", "--port", str(port))
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *shown])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # act as on Ctrl-C
    try:
        with suppress(KeyboardInterrupt):
            yield server
            raise Failed(f"TensorBoard ended with exit code {server.wait()}")
    finally:
        server.terminate()
        server.wait()


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return True
    return False
