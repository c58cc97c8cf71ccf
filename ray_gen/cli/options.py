"""What the commands that use a trained run share: options, and how samples are named."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ray_gen.errors import Refused

if TYPE_CHECKING:
    from ray_gen.pipeline import Pipeline
    from ray_gen.pipeline.selection import Samples

Command = TypeVar("Command", bound=Callable[..., object])


def of_a_run(command: Command) -> Command:
    """RUN and --weights."""
    weights = click.option(
        "--weights",
        type=click.Choice(["ema", "raw"]),
        default="ema",
        show_default=True,
        help="The average of the weights, or the last ones.",
    )
    return click.argument("run")(weights(command))


def of_samples(command: Command) -> Command:
    """--seed, --labels and --truncation, which say what sample number i is."""
    for decorate in (
        click.option(
            "--truncation",
            type=float,
            help="Draw z given |z| <= this: less variety, better images. 0.5 to 2 are usual.",
        ),
        click.option(
            "--labels",
            help="Classes of a conditional model, in turn, by name or number: 3,5 or cat.",
        ),
        click.option("--seed", default=0, show_default=True, help="Equal seeds give equal images."),
    ):
        command = decorate(command)
    return command


def output_to(default: str, text: str, *, zoom: bool = True) -> Callable[[Command], Command]:
    """--output with a default file, and --zoom."""
    option = click.option(
        "--output",
        default=default,
        show_default=True,
        type=click.Path(path_type=Path),
        help=text,
    )
    zoomed = click.option(
        "--zoom",
        default=1,
        show_default=True,
        type=click.IntRange(1, 64),
        help="Pixels of a picture's side for one of the model's.",
    )
    return (lambda command: option(zoomed(command))) if zoom else option


def check_output(output: Path, *kinds: str, folder: bool = True) -> None:
    """Refuse a file of another kind before anything is loaded; `kinds` are suffixes."""
    if output.suffix.lower() in ({*kinds, ""} if folder else {*kinds}):
        return
    listed = [f"a {kind}" for kind in kinds]
    listed += ["a folder (a name without suffix)"] if folder else []
    words = ", ".join(listed[:-1]) + " nor " if len(listed) > 1 else ""
    begin = "neither " if words else "not "
    raise Refused(f"--output: {output} is {begin}{words}{listed[-1]}")


@contextmanager
def writing(output: Path) -> Generator[None]:
    """Whatever the file system refuses, in a sentence."""
    try:
        yield
    except OSError as error:
        raise Refused(f"--output: {output} cannot be written: {error.strerror or error}") from error


def import_from_here(*runs: str) -> None:
    """Let the working directory hold a `kind: custom` class of the user's; not where it lies in one
    of these runs, which may be anybody's. Last, so that it takes no other module's place."""
    here = Path.cwd().resolve()
    for run in runs:
        from ray_gen.runs.checkpoints import is_in_a_run

        folder = Path(run).expanduser().resolve()
        if here.is_relative_to(folder.parent if is_in_a_run(folder.name) else folder):
            return
    sys.path.append(str(here))


def opened(run: str, weights: str) -> Pipeline:
    """The run of a command line."""
    import_from_here(run)
    from ray_gen.pipeline import load

    return load(run, weights="raw" if weights == "raw" else "ema")


def class_list(labels: str | None) -> list[int | str] | None:
    """The entries of --labels."""
    return None if labels is None else [label.strip() for label in labels.split(",")]


def in_turn(labels: str | None, count: int) -> list[int | str] | None:
    """--labels for `count` samples, as `Pipeline.sample` takes them."""
    names = class_list(labels)
    return None if names is None else [names[index % len(names)] for index in range(count)]


def whole_numbers(text: str, option: str) -> list[int]:
    """3,5-7 as [3, 5, 6, 7]."""
    found: list[int] = []
    for entry in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", entry)
        if match is None:
            raise Refused(f"{option}: {entry!r} is no number and no range; write e.g. 3,5-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= 10_000:
            raise Refused(f"{option}: {entry} is no range from a number to a larger one nearby")
        found += range(first, last + 1)
    return found


def names_of(text: str, option: str) -> list[int | Path]:
    """What one option names: numbers of samples, ranges of them, and image files."""
    found: list[int | Path] = []
    for entry in (entry.strip() for entry in text.split(",")):
        if re.fullmatch(r"\d+(-\d+)?", entry):
            found += whole_numbers(entry, option)
        elif Path(entry).expanduser().is_file():
            found.append(Path(entry).expanduser())
        else:
            raise Refused(
                f"{option}: {entry!r} is neither the number of a sample (as `ray-gen sample` draws "
                "them in reading order, the first is 0), a range of them, nor an image file"
            )
    return found


def samples(pipeline: Pipeline, seed: int, labels: str | None, truncation: float | None) -> Samples:
    """The samples that `ray-gen sample` draws with the same options."""
    from ray_gen.pipeline.selection import Samples

    return Samples(pipeline, seed, class_list(labels), truncation)
