"""`ray-gen data`: check data sets, and write them to files."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ray_gen.cli import options
from ray_gen.cli.help import Commands
from ray_gen.errors import Refused

if TYPE_CHECKING:
    from ray_gen.data.check import Asked, Checked
    from ray_gen.experiment.data import DataSettings, LatentsData


@click.group(cls=Commands)
def data() -> None:
    """Check a data set, or write it so that training can stream it.

    \b
        ray-gen data check folder:~/images data.image_size=64
    """


@data.command()
@click.argument("source")
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write one HTML page: pictures, histograms, faults, duplicates side by side.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write everything as JSON; - is the standard output, and nothing else is printed.",
)
@click.option(
    "--cluster", is_flag=True, help="Read the row groups of Parquet on all cores of a Ray cluster."
)
def check(
    source: str,
    assignments: tuple[str, ...],
    report: Path | None,
    json_file: Path | None,
    cluster: bool,
) -> None:
    """Say what is in SOURCE, what is wrong with it, and what training would do with it.

    \b
        ray-gen data check folder:~/images data.image_size=64 --report page.html

    SOURCE and PATH=VALUE are those of `ray-gen train`: a folder, KIND:PATH, or '{kind: joined,
    sources: [A, B]}', and e.g. data.image_size=64. All images are read once. The answer names every
    image that cannot be read with the reason, files that are not read with the remedy, exact and
    near duplicates (first those of both splits), classes, formats, sizes, values; and the line and
    the remarks that training would print, or all reasons for which it would refuse the data. Exit
    code 0: training would start. 1: it would be refused. 130: interrupted; what was found so far is
    printed.

    \b
    Keys of the JSON; later versions add keys and keep these:
    training: would_start, refusals, line, remarks
    images: listed, looked_at, read, train, held_out
    classes: name, train, held_out
    formats; kinds: mode, channels (without opacity), opacity, type, count, first
    values: channels, type, mean, std, histogram (256 bins); deep_values
    sizes: distinct, height, width, common; aspect_ratios
    animated, misnamed, one_colour: count, names (at most 20)
    corrupt, unreadable, not_read_images: name, reason (all of them)
    not_read, not_read_others: numbers and names by suffix
    duplicates: exact, near: groups of images (name, split, class), leaks (both splits)
    duplicates: leaking_groups, not_compared (no contrast), all_compared
    version, source, complete (false: interrupted)
    """
    from ray_gen.cli.progress import measuring
    from ray_gen.experiment import data_settings
    from ray_gen.experiment.data import LatentsData

    if report is not None:
        options.check_output(report, ".html", folder=False, option="--report")
    if json_file is not None and str(json_file) != "-":
        options.check_output(json_file, ".json", folder=False, option="--json")
    settings = data_settings(source, assignments)
    if isinstance(settings, LatentsData):
        _check_latents(settings, about_images=bool(report or json_file or cluster))
        return
    from ray_gen.data.check import as_json, in_words, looked_at
    from ray_gen.data.check import check as check_data
    from ray_gen.training.sources import source_of

    read = looked_at
    if cluster:
        from ray_gen.launch.data_check import looked_at_on_cluster as read
    images = source_of(settings)
    asked = _asked(settings, images.field)
    try:
        with measuring() as progress:
            checked = check_data(images, asked, progress, read)
        if str(json_file) == "-":
            click.echo(json.dumps(as_json(checked, settings.short_form), indent=1))
        else:
            for line in in_words(checked):
                click.echo(line)
        _write(checked, settings.short_form, report, json_file)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        leave(130)
        return
    if not checked.complete:
        leave(130)
    sys.exit(1 if checked.outlook.refusals else 0)


def _check_latents(settings: LatentsData, *, about_images: bool) -> None:
    """Says what training would do with latents: they have no files, formats or duplicates."""
    from ray_gen.cli.progress import measuring
    from ray_gen.data.errors import DataError
    from ray_gen.data.sources.latents import LatentManifest
    from ray_gen.data.told import lines
    from ray_gen.training.sources import open_source

    if about_images:
        raise Refused(
            "--report, --json and --cluster: are about images; check the images that were encoded,"
            " or leave them out"
        )
    try:
        told = LatentManifest.read(settings.path).of_latents
        with measuring() as progress:
            store = open_source(settings, lambda done, total: progress(done, total, "latents"))
    except DataError as refused:
        click.echo(f"training would refuse the data: {refused}")
        sys.exit(1)
    for line in lines(store):
        click.echo(line)
    encoder, statistics = told["autoencoder"], told["statistics"]
    click.echo(f"encoder: {encoder['run']}, weights {encoder['digest']}")
    click.echo(f"stored: {', '.join(told['moments'])} in {told['precision']}")
    for number, (mean, std) in enumerate(zip(statistics["mean"], statistics["std"], strict=True)):
        click.echo(f"channel {number}: mean {mean:.4g}, standard deviation {std:.4g}")


def _asked(settings: DataSettings, field: str) -> Asked:
    """What the settings ask of images. field: the source's, for errors."""
    from ray_gen.data.check import Asked
    from ray_gen.data.store import wanted_of
    from ray_gen.training.sources import cache_folder, open_source

    stream = partial(open_source, cast(Any, settings)) if settings.placement == "stream" else None
    return Asked(
        wanted_of(**settings.pixels()),
        settings.held_out_fraction,
        settings.on_corrupt == "skip",
        field,
        None if settings.random_crop_from is None else settings.height_and_width(),
        cache_folder(),
        stream,
    )


def _write(checked: Checked, source: str, report: Path | None, json_file: Path | None) -> None:
    """The report and the JSON file."""
    from ray_gen.data.check import as_json, page

    if json_file is not None and str(json_file) != "-":
        with options.writing(json_file, "--json"):
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(as_json(checked, source), indent=1), encoding="utf-8")
    if report is not None:
        with options.writing(report, "--report"):
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(page(checked, source), encoding="utf-8")
        if str(json_file) != "-":
            click.echo(f"report: {report}")


def leave(code: int) -> None:
    """Ends the process at once: a thread may be in the middle of a large image, and Ray takes
    a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@data.command()
@click.argument("source")
@click.argument("destination")
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@options.of_shards
@click.option("--seed", default=0, show_default=True, help="Seed of the order of the images.")
def convert(
    source: str,
    destination: str,
    assignments: tuple[str, ...],
    shard_images: int,
    group_images: int,
    seed: int,
) -> None:
    """Write SOURCE as sharded Parquet to DESTINATION, a folder or URI, on all CPU cores.

    \b
        ray-gen data convert folder:~/images s3://bucket/faces data.image_size=64

    SOURCE is a path, a URI or KIND:PATH, as `data` of `ray-gen train`; PATH=VALUE sets its fields,
    e.g. data.image_size=64 data.channels=3 data.held_out_fraction=0.02. With an image size
    the command stores pixels; training reads them many times faster than it decodes files. Without
    one it stores the files unchanged. Run the same command again to write missing parts.

    Train on the result: ray-gen train RECIPE data=parquet:DESTINATION data.placement=stream
    """
    from ray_gen.cli.progress import measuring
    from ray_gen.experiment import data_settings

    settings = data_settings(source, assignments)
    from ray_gen.launch.convert import convert as launch

    try:
        with measuring() as progress:
            manifest = launch(
                settings,
                destination,
                shard_images=shard_images,
                group_images=group_images,
                seed=seed,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo("interrupted; run the same command again to write the missing parts", err=True)
        leave(130)
        return
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(manifest["images"].items()))
    skipped = skipped_in_words(manifest["skipped"])
    click.echo(f"{destination}: {counts} in {len(manifest['shards'])} files{skipped}")
    click.echo(f"  train: ray-gen train RECIPE data=parquet:{destination} data.placement=stream")


def skipped_in_words(count: int) -> str:
    """The end of a line about so many corrupt images. Empty without any."""
    return f", {count:,} corrupt image{'s' * (count > 1)} skipped" if count else ""
