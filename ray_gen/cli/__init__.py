"""`ray-gen`: one function per command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

from ray_gen.cli.data import data
from ray_gen.cli.ema import ema
from ray_gen.cli.encode import encode
from ray_gen.cli.evaluate import evaluate
from ray_gen.cli.export import export
from ray_gen.cli.fields import fields
from ray_gen.cli.help import Commands
from ray_gen.cli.latent import arithmetic, interpolate, traverse
from ray_gen.cli.project import project
from ray_gen.cli.runs import runs
from ray_gen.cli.search import search
from ray_gen.cli.tensorboard import tensorboard
from ray_gen.cli.train import recipes, resume, train
from ray_gen.cli.use import discriminate, mixture, reconstruct, sample
from ray_gen.errors import Failed, Interrupted, Refused
from ray_gen.version import __version__


class _Commands(Commands):
    """Prints one message and exits: with 2 if the user can fix the error, with 1 for a failed run,
    with 130 after Ctrl-C and 143 after SIGTERM. Other errors keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminable():
                return super().invoke(ctx)
        except Refused as refused:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {refused}", err=True)
            sys.exit(2)
        except Failed as failed:
            click.echo(f"{click.style('failed:', fg='red', bold=True)} {failed}", err=True)
            sys.exit(1)
        except KeyboardInterrupt as error:
            interrupted = error if isinstance(error, Interrupted) else Interrupted()
            told = f": {interrupted}" if str(interrupted) else ""
            click.echo(f"{click.style('stopped', fg='red', bold=True)}{told}", err=True)
            sys.exit(interrupted.exit_code)


@contextmanager
def _terminable() -> Generator[None]:
    """Inside the `with` statement SIGTERM raises Interrupted, so that a command cleans up."""

    def terminated(number: int, frame: object) -> None:
        raise Interrupted(number=number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ray-gen")
def main() -> None:
    """Train VAEs and GANs on Ray from one experiment file, and use the trained models.

    \b
        ray-gen train vae-mnist5k --name digits
        ray-gen sample digits --output grid.png
    """


_GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Train": (train, resume, search, recipes, fields),
    "Look": (runs, tensorboard),
    "Use": (
        sample,
        project,
        interpolate,
        arithmetic,
        traverse,
        reconstruct,
        discriminate,
        mixture,
        ema,
    ),
    "Measure": (evaluate,),
    "Share": (export,),
    "Data": (data, encode),
}
main.groups = {heading: [str(one.name) for one in group] for heading, group in _GROUPS.items()}
for _command in (command for group in _GROUPS.values() for command in group):
    main.add_command(_command)
