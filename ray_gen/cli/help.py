"""The list of commands in `--help`: in groups, with whole sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click


class Commands(click.Group):
    """Commands whose summaries are not cut. A summary is the first sentence of a command's help."""

    groups: Mapping[str, Sequence[str]] = {}
    """The names of commands by the heading of their group. The other commands come last."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list for each group."""
        listed = {name for names in self.groups.values() for name in names}
        rest = [name for name in self.commands if name not in listed]
        for heading, names in {**self.groups, "Commands": rest}.items():
            rows = [(name, _summary(self.commands[name])) for name in names]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def _summary(command: click.Command) -> str:
    first = " ".join((command.help or "").strip().partition("\n\n")[0].split())
    return first.partition(". ")[0].removesuffix(".")
