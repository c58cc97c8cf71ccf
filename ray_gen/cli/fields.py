"""`ray-gen fields`."""

from __future__ import annotations

import json
import textwrap

import click


@click.command()
@click.argument("path", default="")
@click.option("--markdown", is_flag=True, help="Print all fields as a Markdown page.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of experiment files.")
def fields(path: str, markdown: bool, schema: bool) -> None:
    """List the fields of an experiment: type, unit, default, meaning.

    \b
        ray-gen fields training
        ray-gen fields objective.vae

    PATH is the dotted path of a section or a field: training, optimizers.generator.learning_rate.
    Of one field the whole text is printed. Of a section with kinds all kinds are listed; add a kind
    to take only this one: objective.vae, networks.mlp.
    """
    from ray_gen.experiment import manual

    if markdown:
        click.echo(manual.markdown(), nl=False)
        return
    if schema:
        click.echo(json.dumps(manual.schema(), indent=1, ensure_ascii=False))
        return
    here, below = manual.listing(path)
    for item in here:
        click.echo(_told(item, item.text))
    for item in below:
        click.echo(_told(item, item.meaning if isinstance(item, manual.Field) else item.text))
    if not path:
        click.echo(click.style("\nA schedule, for each field that takes one:", bold=True))
        for item in manual.schedules():
            click.echo(_told(item, item.text))
    if below:
        click.echo("\n" + textwrap.fill(manual.MARKS, 100))


def _told(item: object, text: str) -> str:
    """A field or a kind, with a text below it."""
    from ray_gen.experiment.manual import Field, Kind

    if isinstance(item, Field):
        head = f"{click.style(item.path, bold=True)}: {item.facts}"
    else:
        assert isinstance(item, Kind)
        head = "\n" + click.style(f"{item.path}: {{kind: {item.name}}}", fg="cyan", bold=True)
    return head + "\n" + textwrap.indent(textwrap.fill(text, 96, break_on_hyphens=False), "    ")
