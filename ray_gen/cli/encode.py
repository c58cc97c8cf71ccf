"""`ray-gen encode`."""

from __future__ import annotations

import click

from ray_gen.cli import options
from ray_gen.errors import Refused


@click.command()
@options.of_a_run
@click.argument("places", metavar="[SOURCE] DEST", nargs=-1, required=True)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="Type of the stored numbers.",
)
@click.option("--flips", is_flag=True, help="Encode mirrored images, too: data.flip needs them.")
@options.of_shards
@click.option(
    "--local/--ray",
    default=None,
    help="Write all files in this process, or on a Ray cluster [Ray if there are several files].",
)
def encode(
    run: str,
    places: tuple[str, ...],
    weights: str,
    checkpoint: str,
    trust_code: bool,
    precision: str,
    flips: bool,
    shard_images: int,
    group_images: int,
    local: bool | None,
) -> None:
    """Write the latents of the images in SOURCE to DEST, a folder or URI, as Parquet.

    \b
        ray-gen encode faces-autoencoder faces-latents --flips
        ray-gen train RECIPE data=latents:faces-latents data.flip=true

    RUN is an autoencoder whose latent is a map. SOURCE is named as in `data` of `ray-gen train`: a
    path, a URI or KIND:PATH. It is read as the run reads its own images; without it, these are
    encoded. A row holds the mean and the standard deviation of q(z|x), mirrored images apart, and
    the label. DEST also gets the autoencoder, and a manifest with the statistics of each channel.
    Run the same command again to write missing files.
    """
    from ray_gen.cli.data import leave, skipped_in_words
    from ray_gen.cli.progress import measuring

    if len(places) > 2:
        raise Refused(f"DEST: {len(places)} places are given; give [SOURCE] DEST")
    source, destination = (None, *places)[-2:]
    options.import_from_here(run)
    from ray_gen.launch.encode import encode as launch

    try:
        with measuring() as progress:
            manifest = launch(
                run,
                str(destination),
                source,
                weights="raw" if weights == "raw" else "ema",
                checkpoint=checkpoint,
                precision="fp32" if precision == "fp32" else "fp16",
                flips=flips,
                shard_images=shard_images,
                group_images=group_images,
                local=local,
                trust_code=trust_code,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo("interrupted; run the same command again to write the missing files", err=True)
        leave(130)
        return
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(manifest["images"].items()))
    skipped = skipped_in_words(manifest["skipped"])
    shape = "x".join(map(str, manifest["latents"]["shape_CHW"]))
    std = manifest["latents"]["statistics"]["std_of_all"]
    click.echo(f"{destination}: {counts} of {shape}, standard deviation {std:.4g}{skipped}")
    flip = " data.flip=true" if "mean_flipped" in manifest["latents"]["moments"] else ""
    click.echo(f"  train: ray-gen train RECIPE data=latents:{destination}{flip}")
