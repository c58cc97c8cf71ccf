"""`ray-gen data`: write data sets to files."""

from __future__ import annotations

import sys

import click


@click.group()
def data() -> None:
    """Write a data set so that training can stream it."""


@data.command()
@click.argument("source")
@click.argument("destination")
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@click.option(
    "--shard-images",
    default=8192,
    show_default=True,
    type=click.IntRange(1),
    help="Images per file.",
)
@click.option(
    "--group-images",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Images per row group. A row group is read at once.",
)
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

    SOURCE is folder:PATH, parquet:PATH_OR_URI, torchvision:CLASS or mnist5k; PATH=VALUE sets its
    fields, e.g. data.image_size=64 data.channels=3 data.held_out_fraction=0.02. With an image size
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
        sys.exit(130)
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(manifest["images"].items()))
    skipped = f", {manifest['skipped']:,} corrupt images skipped" if manifest["skipped"] else ""
    click.echo(f"{destination}: {counts} in {len(manifest['shards'])} files{skipped}")
    click.echo(f"  train: ray-gen train RECIPE data=parquet:{destination} data.placement=stream")
