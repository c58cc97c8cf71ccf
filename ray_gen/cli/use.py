"""What a trained run is used for on the command line: `ray-gen sample`."""

from __future__ import annotations

from pathlib import Path

import click

from ray_gen.errors import Refused


@click.command()
@click.argument("run")
@click.option("--count", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal images.")
@click.option(
    "--labels", help="Classes of a conditional model, in turn, by name or number: 3,5 or cat."
)
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True)
@click.option(
    "--output",
    default="samples.png",
    show_default=True,
    type=click.Path(path_type=Path),
    help="A .png (one grid), a .npz (uint8 NHWC), or a folder for one PNG an image.",
)
def sample(run: str, count: int, seed: int, labels: str | None, weights: str, output: Path) -> None:
    """Draw images from a run folder or one of its checkpoints; needs no data set."""
    if output.suffix.lower() not in ("", ".png", ".npz"):
        raise Refused(
            f"--output: {output} is neither a .png, a .npz nor a folder (a name without suffix)"
        )
    from ray_gen.pipeline import load

    pipeline = load(run, weights="raw" if weights == "raw" else "ema")
    chosen: list[int | str] | None = None
    if labels is not None:
        names = [label.strip() for label in labels.split(",")]
        chosen = [names[index % len(names)] for index in range(count)]
    from ray_gen import pictures

    try:
        written = pictures.save_samples(pipeline.batches(count, chosen, seed), count, output)
    except OSError as error:
        raise Refused(f"--output: {output} cannot be written: {error.strerror or error}") from error
    click.echo(written)
