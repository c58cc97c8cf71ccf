"""`ray-gen`: one function a command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ray_gen import __version__
from ray_gen.errors import Failed, Refused


class _Commands(click.Group):
    """Prints what a user can mend as one message and exits with 2; all else keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Refused as refused:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {refused}", err=True)
            sys.exit(2)
        except Failed as failed:
            click.echo(f"{click.style('failed:', fg='red', bold=True)} {failed}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ray-gen")
def main() -> None:
    """Train VAEs and GANs on Ray from one experiment file, and use what was trained."""


@main.command()
@click.argument("recipe_or_file")
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@click.option("--storage", help="Folder or URI for run folders [$RAY_GEN_STORAGE, ~/ray_gen_runs].")
@click.option("--name", help="Name of the run: a known one is resumed [recipe and time].")
@click.option("--fresh", is_flag=True, help="Refuse to touch a run that exists.")
def train(
    recipe_or_file: str,
    assignments: tuple[str, ...],
    storage: str | None,
    name: str | None,
    fresh: bool,
) -> None:
    """Train a recipe (see `ray-gen recipes`) or an experiment file.

    PATH=VALUE sets any field by its dotted path, e.g. training.images=1000000 workers.count=2
    data=folder:~/images. Runs on the Ray cluster of RAY_ADDRESS or of a running `ray start --head`,
    else on a local one. The same --name again resumes.
    """
    from ray_gen.recipes import recipe

    sys.path.insert(0, str(Path.cwd()))  # where a `kind: custom` class of the user's may lie
    experiment = recipe(recipe_or_file, *assignments)
    from ray_gen.launch import train as launch

    sys.exit(launch(experiment, storage=storage, name=name, fresh=fresh, show=True).exit_code)


@main.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the built-in recipes with their claims, or print one as YAML to copy and edit."""
    from ray_gen import recipes as built_in

    if name is not None:
        click.echo(built_in.text(name), nl=False)
        return
    for known in built_in.names():
        click.secho(known, bold=True)
        click.echo("".join(f"    {line}\n" for line in built_in.claim(known).splitlines()))
    click.echo("Train one: ray-gen train NAME. Copy one: ray-gen recipes NAME > my.yaml")


@main.command()
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
