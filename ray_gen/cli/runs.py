"""`ray-gen runs`: the runs of a storage."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from ray_gen.errors import Refused

if TYPE_CHECKING:
    from ray_gen.runs.listing import Listed


@click.command()
@click.argument("folder", required=False, metavar="[FOLDER_OR_URI]")
@click.option("--storage", help="The same as FOLDER_OR_URI [$RAY_GEN_STORAGE, ~/ray_gen_runs].")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one for each run.")
def runs(folder: str | None, storage: str | None, as_json: bool) -> None:
    """List runs and searches, one line each, the newest first.

    \b
        ray-gen runs
        ray-gen runs s3://bucket/runs --json

    A line has the name, the state (training, stopped, ended, failed, search, damaged), images seen
    of how many (trials, for a search), the last scores, how long ago it last wrote, and why it is
    in this state. The name of a search lists its trials. An object of --json has name, location,
    state, why, done, of, scores and time (seconds since 1970).
    """
    if folder is not None and storage is not None:
        raise Refused("--storage: FOLDER_OR_URI is given, too; leave one of them out")
    from ray_gen.experiment import absolute_path
    from ray_gen.launch.claim import living_writer
    from ray_gen.runs.listing import listed
    from ray_gen.runs.names import run_folder
    from ray_gen.storage import Folder, default_storage

    given = folder or storage
    place = Folder(absolute_path(default_storage())) if given is None else run_folder(given)
    if given is not None and not place.exists():
        raise Refused(f"{place.location}: there is no such folder; correct the path")
    found = listed(place, lambda run: living_writer(run) is not None)
    if as_json:
        click.echo(json.dumps([entry.as_json() for entry in found], indent=2))
        return
    if not found:
        click.echo(f"{place.location}: no runs yet; train one: ray-gen train vae-mnist5k", err=True)
        return
    rows = [("run", "state", "images", "scores", "last wrote", ""), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for number, (*cells, why) in enumerate(rows):
        padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
        line = "  ".join([*padded, why]).rstrip()
        click.echo(click.style(line, dim=True) if number == 0 else line)


def _row(entry: Listed) -> tuple[str, str, str, str, str, str]:
    unit = " trials" if entry.state == "search" else ""
    total = "" if entry.of is None else f"/{entry.of:,}"
    scores = ", ".join(f"{name} {value:.4g}" for name, value in entry.scores.items())
    done = "" if entry.state == "damaged" else f"{entry.done:,}{total}{unit}"
    return entry.name, entry.state, done, scores, _ago(entry.time), entry.why or ""


def _ago(then: float | None) -> str:
    """How long ago, in the largest unit of which there are two or more: "3 min ago"."""
    if then is None:
        return ""
    seconds = max(0.0, time.time() - then)
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
