"""`ray-gen tensorboard`: shows runs in TensorBoard, also from a URI."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from ray_gen.errors import Failed, Refused

if TYPE_CHECKING:
    from ray_gen.storage import Folder

EVENTS = "tfevents"
"""Part of the name of every file that TensorBoard reads."""
FOLDER = "tensorboard"
"""The folder of a run that holds its event files."""


@click.command()
@click.argument("run_or_folder")
@click.option("--port", default=6006, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--every",
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    help="Seconds between two checks for new runs, and for new events behind a URI.",
)
def tensorboard(run_or_folder: str, port: int, every: float) -> None:
    """Show a run, a search or a folder of runs in TensorBoard, only on this machine.

    \b
        ray-gen tensorboard RUN
        ray-gen tensorboard ~/ray_gen_runs

    Each run has the name of its folder. Events behind a URI are copied to a temporary folder, new
    events too. Ctrl-C ends TensorBoard.
    """
    from ray_gen import temporary
    from ray_gen.runs.names import run_folder
    from ray_gen.storage import StorageError

    folder, name = _shown(run_folder(run_or_folder))
    with temporary.folder("tensorboard-") as mirror:
        mirror_events(folder, mirror / name)
        with _served(mirror, port) as server:
            while not _ends_within(server, every):
                try:
                    mirror_events(folder, mirror / name)
                except StorageError as error:  # TensorBoard still shows the copied events
                    click.echo(str(error), err=True)


def _shown(folder: Folder) -> tuple[Folder, str]:
    """The subfolder of a run or search that has the events, any other folder as a whole. And the
    name of the run, empty if it is more than one run."""
    if not folder.exists():
        raise Refused(f"{folder.location}: there is no such folder")
    names = folder.names()
    if FOLDER in names:
        return folder / FOLDER, folder.name
    return folder / "trials" if "trials" in names else folder, ""


def mirror_events(folder: Folder, mirror: Path) -> None:
    """Bring all event files into the mirror. There the files of a run lie in a folder of its name,
    which TensorBoard shows. Local files are linked; of others the new bytes are appended to a copy.
    Event files only grow, and TensorBoard keeps them open."""
    for name, size in folder.sizes(EVENTS).items():
        path = PurePosixPath(name)
        file = mirror / (path.parent.parent / path.name if path.parent.name == FOLDER else path)
        if folder.is_local:
            if not file.is_symlink():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.symlink_to(folder.path / name)
            continue
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
