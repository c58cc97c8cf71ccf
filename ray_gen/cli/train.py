"""`ray-gen train` and `ray-gen recipes`."""

from __future__ import annotations

import sys

import click

from ray_gen.cli.options import TRUST_CODE
from ray_gen.errors import Refused

_place = click.option(
    "--local/--ray",
    default=None,
    help="One process of this machine without Ray, or Ray [Ray only if it is needed or runs].",
)


@click.command()
@click.argument("recipe_or_file")
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@click.option("--storage", help="Folder or URI for run folders [$RAY_GEN_STORAGE, ~/ray_gen_runs].")
@click.option("--name", help="Name of the run. An existing run is resumed [recipe and time].")
@click.option("--fresh", is_flag=True, help="Refuse a name that exists.")
@click.option("--check", is_flag=True, help="Say what the run would be, and start nothing.")
@click.option("--full", is_flag=True, help="With --check: print every field of the experiment.")
@_place
def train(
    recipe_or_file: str,
    assignments: tuple[str, ...],
    storage: str | None,
    name: str | None,
    fresh: bool,
    check: bool,
    full: bool,
    local: bool | None,
) -> None:
    """Train a recipe (see `ray-gen recipes`) or an experiment file.

    \b
        ray-gen train vae-mnist5k
        ray-gen train dcgan data=folder:~/images data.image_size=64
        ray-gen train my.yaml data=folder:~/images training.images=1000000 --name faces
        ray-gen train my.yaml data=folder:~/cats training.start_from=faces

    training.start_from=RUN begins with the weights of a trained run or an exported folder; --check
    says what of it fits. training.freeze={discriminator: 3} keeps the blocks at the images.

    PATH=VALUE sets any field by its dotted path (see `ray-gen fields`), e.g. workers.count=2
    training.images=1000000 data=folder:~/images. Runs on the Ray cluster of RAY_ADDRESS or of a
    running `ray start --head`. Without one, a single worker runs without Ray, and several run on a
    local Ray. Use the same --name again to resume the run.

    --check reads the data and prints the networks, the steps, about how much memory a worker needs,
    when reports, checkpoints and evaluations come, where it would train, and the experiment.
    """
    from ray_gen.cli.options import import_from_here
    from ray_gen.recipes import recipe
    from ray_gen.recipes.families import FAMILIES, chosen

    import_from_here()
    experiment = recipe(recipe_or_file, *assignments)
    if recipe_or_file in FAMILIES:
        click.echo(f"{'family':<12}{chosen(recipe_or_file, assignments)}")
    if full and not check:
        raise Refused("--full: belongs to --check; `ray-gen recipes NAME --full` prints a recipe")
    if check:
        from ray_gen.launch import check as plan

        found = plan(experiment, storage=storage, name=name, fresh=fresh, show=True, local=local)
        click.echo(found.text(full=full))
        return
    from ray_gen.launch import train as launch

    run = launch(experiment, storage=storage, name=name, fresh=fresh, show=True, local=local)
    sys.exit(run.exit_code)


@click.command()
@click.argument("run")
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@TRUST_CODE
@_place
def resume(run: str, assignments: tuple[str, ...], trust_code: bool, local: bool | None) -> None:
    """Go on with a run from its newest checkpoint, by its own experiment.

    \b
        ray-gen resume RUN
        ray-gen resume RUN training.images=200000 workers.count=2

    Only some fields can change: how long, on what and where a run trains, what it reports, saves
    and evaluates. Learning rates, weights of losses and the other fields that take schedules change
    from the checkpoint on, and `lineage` in the run's experiment records it.
    """
    from ray_gen.cli.options import import_from_here
    from ray_gen.launch.resume import resume as launch

    import_from_here(run)
    ended = launch(run, assignments, show=True, local=local, trust_code=trust_code)
    sys.exit(ended.exit_code)


@click.command()
@click.argument("name", required=False)
@click.argument("assignments", nargs=-1, metavar="[PATH=VALUE]...")
@click.option("--full", is_flag=True, help="Print every field, with its default and a comment.")
def recipes(name: str | None, assignments: tuple[str, ...], full: bool) -> None:
    """List the built-in recipes and their measurements, or print one as YAML to copy and edit.

    \b
        ray-gen recipes
        ray-gen recipes dcgan-mnist5k > my.yaml
        ray-gen recipes dcgan data=folder:~/images data.image_size=64 > my.yaml

    A family is a recipe for any data: its numbers follow from the size of the images, from labels
    (objective.conditional=true) and from training.images. The printed YAML gives a reason for each.
    """
    from ray_gen import recipes as built_in

    if name is not None:
        click.echo(built_in.to_copy(name, full, assignments), nl=False)
        return
    if full:
        raise Refused("--full: name a recipe, e.g. ray-gen recipes vae-mnist5k --full")
    for title, listed in (
        ("Families, for any data:", [*built_in.FAMILIES]),
        ("Complete recipes:", built_in.names()),
    ):
        click.secho(f"{title}\n", underline=True)
        for known in listed:
            click.secho(known, bold=True)
            click.echo("".join(f"    {line}\n" for line in built_in.claim(known).splitlines()))
    click.echo("Train one: ray-gen train NAME. Copy one: ray-gen recipes NAME > my.yaml")
    click.echo("Of a family: ray-gen train NAME data=folder:~/images data.image_size=64")
