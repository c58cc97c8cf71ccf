"""`ray-gen ema`."""

from __future__ import annotations

import click

from ray_gen.errors import Refused


def _widths(context: object, option: object, text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise Refused(f"--sigma: {text!r} is no list of numbers; write 0.1 or 0.05,0.1") from None


@click.command()
@click.argument("run")
@click.option(
    "--sigma",
    "sigmas",
    required=True,
    callback=_widths,
    metavar="SIGMA[,SIGMA]...",
    help="Widths of the averages, relative to the images seen: 0.05 to 0.2 are usual.",
)
@click.option(
    "--at", type=click.IntRange(min=1), metavar="IMAGES", help="Of this snapshot [the last]."
)
def ema(run: str, sigmas: list[float], at: int | None) -> None:
    """Choose the average of a run's weights after its training.

    \b
        ray-gen ema RUN --sigma 0.05,0.1,0.15
        ray-gen sample RUN --checkpoint ema-0.15
        ray-gen evaluate RUN/checkpoint_ema-0.05 RUN/checkpoint_ema-0.15

    Makes a checkpoint ema-SIGMA in RUN for each width: the average that a run with this width in
    `training.ema_profiles` would have, from the snapshots that the run has saved of its own (Karras
    et al. 2024, EDM2). The error says how far its weighting of the training is from the wanted one.
    The run must have been trained with training.ema_profiles=[0.05,0.1].
    """
    from ray_gen.pipeline.averages import averages

    for made in averages(run, sigmas, at=at):
        click.echo(str(made), err=True)
        click.echo(made.location)
