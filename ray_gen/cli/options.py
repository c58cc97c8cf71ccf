"""Shared parts of the commands that use a trained run: options, and names of samples."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from ray_gen.errors import Refused

if TYPE_CHECKING:
    from ray_gen.pipeline import Pipeline
    from ray_gen.pipeline.selection import InFile, Name, Samples

Command = TypeVar("Command", bound=Callable[..., object])


CONDITION = click.option(
    "--condition",
    "conditions",
    multiple=True,
    help="A number of a model that is conditioned on numbers, NAME=NUMBER; repeat it for each.",
)


CHECKPOINT = click.option(
    "--checkpoint",
    default="newest",
    show_default=True,
    metavar="newest|best|IMAGES|ema-SIGMA",
    help="Which checkpoint of the run: IMAGES is the number of images that it has seen; "
    "`ray-gen ema` makes ema-SIGMA.",
)


TRUST_CODE = click.option(
    "--trust-code",
    is_flag=True,
    help="Run the source files of own classes that RUN holds; first says which.",
)


def of_a_run(command: Command) -> Command:
    """RUN, --weights, --checkpoint and --trust-code."""
    weights = click.option(
        "--weights",
        type=click.Choice(["ema", "raw"]),
        default="ema",
        show_default=True,
        help="ema: the average of the weights. raw: the last weights.",
    )
    return click.argument("run")(weights(CHECKPOINT(TRUST_CODE(command))))


def of_shards(command: Command) -> Command:
    """--shard-images and --group-images: how large files of Parquet are."""
    shards = click.option(
        "--shard-images",
        default=8192,
        show_default=True,
        type=click.IntRange(1),
        help="Images per file.",
    )
    groups = click.option(
        "--group-images",
        default=256,
        show_default=True,
        type=click.IntRange(1),
        help="Images per row group. A row group is read at once.",
    )
    return shards(groups(command))


def of_samples(command: Command) -> Command:
    """--seed, --labels, --condition and --truncation: they define sample number i."""
    for decorate in (
        CONDITION,
        click.option(
            "--truncation",
            type=float,
            help="Less variety, better images. With styles (stylegan2): the share of the way from "
            "the mean style, 0.7 is usual. Else z is drawn given |z| <= this, 0.5 to 2 are usual.",
        ),
        click.option(
            "--labels",
            help="Classes of a conditional model, used in turn, by name or number: 3,5 or cat.",
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
        type=click.IntRange(1, 64),
        help="Side of one model pixel in the picture, in pixels [1 to 4, by the images' size].",
    )
    return (lambda command: option(zoomed(command))) if zoom else option


def zoom_for(pipeline: Pipeline, zoom: int | None) -> int:
    """--zoom, or what suits the size of the model's images."""
    from ray_gen.runs.pictures import zoom_of

    return zoom or zoom_of(*pipeline.experiment.picture_shape[1:])


def check_output(output: Path, *kinds: str, folder: bool = True, option: str = "--output") -> None:
    """Refuse, before anything is loaded, a file of another kind and a place that cannot be written.
    `kinds` are suffixes. Folders that do not exist are fine: writers make them."""
    if output.suffix.lower() not in ({*kinds, ""} if folder else {*kinds}):
        listed = [f"a {kind}" for kind in kinds]
        listed += ["a folder (a name without suffix)"] if folder else []
        words = ", ".join(listed[:-1]) + " nor " if len(listed) > 1 else ""
        begin = "neither " if words else "not "
        raise Refused(f"{option}: {output} is {begin}{words}{listed[-1]}")
    with writing(output, option):
        if output.suffix.lower() == ".mp4":
            from ray_gen.runs.pictures import check_film

            check_film(output, option)
        if output.suffix and output.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        there = next(place for place in output.absolute().parents if place.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def writing(output: Path, option: str = "--output") -> Generator[None]:
    """Turn an OSError into Refused with a readable message."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise Refused(f"{option}: {output} cannot be written: {why}; give another file") from error


def import_from_here(*runs: str) -> None:
    """Allow imports of the user's `kind: custom` classes from the working directory. Not if this
    directory lies in one of these runs: a run may come from anybody. It is last on sys.path, so
    that it hides no other module."""
    here = Path.cwd().resolve()
    for run in runs:
        from ray_gen.runs.checkpoints import is_in_a_run
        from ray_gen.runs.names import run_folder

        found = run_folder(run)
        if not found.is_local:
            continue
        folder = found.path.resolve()
        if here.is_relative_to(folder.parent if is_in_a_run(folder.name) else folder):
            return
    sys.path.append(str(here))


def opened(
    run: str,
    weights: str,
    checkpoint: str,
    trust_code: bool,
    *,
    used: Literal["ema", "raw"] | None = None,
) -> Pipeline:
    """The pipeline for the run of a command line. Says on stderr what it has loaded. used: the
    weights that the command uses, if they are not these."""
    import_from_here(run)
    from ray_gen.pipeline import load

    taken = "raw" if weights == "raw" else "ema"
    pipeline = load(run, weights=taken, checkpoint=checkpoint, trust_code=trust_code)
    facts = replace(pipeline.facts, weights=used or pipeline.facts.weights)
    click.echo(f"{pipeline.name}: {facts}", err=True)
    return pipeline


def class_list(labels: str | None) -> list[int | str] | None:
    """The entries of --labels."""
    return None if labels is None else [label.strip() for label in labels.split(",")]


def in_turn(labels: str | None, count: int) -> list[int | str] | None:
    """--labels for `count` samples, in the form of `Pipeline.sample`."""
    names = class_list(labels)
    return None if names is None else [names[index % len(names)] for index in range(count)]


def condition_numbers(conditions: Sequence[str]) -> dict[str, float] | None:
    """The entries of --condition. None if there are none."""
    found: dict[str, float] = {}
    for entry in conditions:
        name, _, number = entry.rpartition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            found.pop(name.strip(), None)
            name = ""
        if not name.strip():
            raise Refused(f"--condition: {entry!r} is not NAME=NUMBER; write e.g. age=40")
    return found or None


def whole_numbers(text: str, option: str) -> list[int]:
    """3,5-7 as [3, 5, 6, 7]."""
    found: list[int] = []
    for entry in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", entry)
        if match is None:
            raise Refused(f"{option}: {entry!r} is neither a number nor a range; write e.g. 3,5-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= 10_000:
            raise Refused(
                f"{option}: {entry} is not a valid range; the second number must be 0 to 9,999 "
                "above the first"
            )
        found += range(first, last + 1)
    return found


def names_of(text: str, option: str) -> list[Name]:
    """The entries of one option: sample numbers, with ranges expanded, image files, and latents in
    files of `ray-gen project`, all or FILE:3 or FILE:0-3."""
    found: list[Name] = []
    for entry in (entry.strip() for entry in text.split(",")):
        latents = re.fullmatch(r"(.+\.safetensors)(?::(\d+(?:-\d+)?))?", entry)
        if re.fullmatch(r"\d+(-\d+)?", entry):
            found += whole_numbers(entry, option)
        elif latents is not None:
            found += _in_file(Path(latents[1]).expanduser(), latents[2], option)
        elif Path(entry).expanduser().is_file():
            found.append(Path(entry).expanduser())
        else:
            raise Refused(
                f"{option}: {entry!r} is neither a sample number (the place in the grid of "
                "`ray-gen sample`, in reading order from 0), nor a range of them, nor an image "
                "file, nor a file of `ray-gen project` (latents.safetensors, latents.safetensors:3)"
            )
    return found


def _in_file(file: Path, numbers: str | None, option: str) -> list[InFile]:
    """The latents with these numbers in a file of `ray-gen project`; None: all."""
    from ray_gen.pipeline.projected import Projected
    from ray_gen.pipeline.selection import InFile

    latents = Projected.load(file)
    count = len(latents)
    chosen = range(count) if numbers is None else whole_numbers(numbers, option)
    for number in chosen:
        if number >= count:
            raise Refused(
                f"{option}: {file}:{number} does not exist; the file has {count} latents, 0 to "
                f"{count - 1}"
            )
    return [InFile(file, latents, number) for number in chosen]


def samples(
    pipeline: Pipeline,
    seed: int,
    labels: str | None,
    truncation: float | None,
    conditions: Sequence[str],
) -> Samples:
    """The samples that `ray-gen sample` draws with the same options."""
    from ray_gen.pipeline.selection import Samples

    numbers = condition_numbers(conditions)
    return Samples(pipeline, seed, class_list(labels), truncation, numbers)
