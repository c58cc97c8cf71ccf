"""`ray-gen search`."""

from __future__ import annotations

import sys

import click

from ray_gen.errors import Refused


@click.command()
@click.argument("recipe_or_file")
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@click.option("--trials", type=click.IntRange(min=1), help="How many [the file's, else 16].")
@click.option("--storage", help="Folder or URI [$RAY_GEN_STORAGE, ~/ray_gen_runs].")
@click.option("--name", help="Name of the search: a known one goes on [recipe and time].")
@click.option("--fresh", is_flag=True, help="Refuse to touch a search that exists.")
def search(
    recipe_or_file: str,
    assignments: tuple[str, ...],
    trials: int | None,
    storage: str | None,
    name: str | None,
    fresh: bool,
) -> None:
    """Search what the `search` part of an experiment says, with Ray Tune.

    It can be given here, too: search.space.objective.latent_size='{choice: [8, 16, 32]}'. Each
    trial is an ordinary run, in NAME/trials; NAME/report.html, search.csv and best.yaml say what
    was found. The same --name again goes on.
    """
    from ray_gen.cli.options import import_from_here
    from ray_gen.recipes import recipe

    import_from_here()
    more = () if trials is None else (f"search.trials={trials}",)
    experiment = recipe(recipe_or_file, *assignments, *more)
    if trials is not None and experiment.search and experiment.search.algorithm == "grid":
        raise Refused(
            f"--trials: a grid tries all of its {experiment.search.total:,} points; leave it out, "
            "or set search.algorithm=random"
        )
    from ray_gen.launch.search.driver import search as launch

    found = launch(experiment, storage=storage, name=name, fresh=fresh, show=True)
    sys.exit(found.exit_code)
