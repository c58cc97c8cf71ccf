"""`ray-gen search`."""

from __future__ import annotations

import sys

import click

from ray_gen.errors import Refused


@click.command()
@click.argument("recipe_or_file")
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@click.option(
    "--trials", type=click.IntRange(min=1), help="Number of trials [the file's, else 16]."
)
@click.option("--storage", help="Folder or URI [$RAY_GEN_STORAGE, ~/ray_gen_runs].")
@click.option("--name", help="Name of the search. An existing search continues [recipe and time].")
@click.option("--fresh", is_flag=True, help="Refuse a name that exists.")
def search(
    recipe_or_file: str,
    assignments: tuple[str, ...],
    trials: int | None,
    storage: str | None,
    name: str | None,
    fresh: bool,
) -> None:
    """Run the search of an experiment's `search` part, with Ray Tune.

    \b
        ray-gen search my.yaml --trials 32 --name rates

    You can also set its fields here: search.space.objective.latent_size='{choice: [8, 16, 32]}'.
    Each trial is an ordinary run, in NAME/trials. NAME/report.html, search.csv and best.yaml hold
    the results. Use the same --name again to continue the search.
    """
    from ray_gen.cli.options import import_from_here
    from ray_gen.recipes import recipe

    import_from_here()
    more = () if trials is None else (f"search.trials={trials}",)
    experiment = recipe(recipe_or_file, *assignments, *more)
    if trials is not None and experiment.search and experiment.search.algorithm == "grid":
        raise Refused(
            f"--trials: a grid tries all its {experiment.search.total:,} combinations; leave "
            "--trials out, or set search.algorithm=random"
        )
    from ray_gen.launch.search.driver import search as launch

    found = launch(experiment, storage=storage, name=name, fresh=fresh, show=True)
    sys.exit(found.exit_code)
