"""Finds a run by what its user calls it: a path, a URI, or its name in the storage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path, PurePath

from ray_gen.errors import Refused
from ray_gen.settings import absolute_path
from ray_gen.storage import Folder, default_storage

ALIKE = 0.75
"""Similarity, from 0 to 1, from which a name is suggested for another one."""
SUGGESTED = 3
"""Number of names in a suggestion."""


def run_folder(run: str | os.PathLike[str]) -> Folder:
    """The folder of a run, a search, a checkpoint or an exported model.

    run: a URI, a path, or a name in the storage ($RAY_GEN_STORAGE, else ~/ray_gen_runs), also of a
    folder below it ("NAME/best"). A path that exists comes first. If it is a folder without runs, a
    name in the storage comes before it. A path that begins with `/`, `.` or `~` is only a path, and
    need not exist.

    Raises Refused if a name is neither a path nor in the storage, and TypeError for another type.
    """
    given = _text_of(run)
    here = Folder(absolute_path(given))
    only_a_path = not here.is_local or given.startswith(("/", "~", ".")) or not given.strip("/")
    if only_a_path or (here.exists() and _may_hold_a_run(here)):
        return here
    storage = Folder(absolute_path(default_storage()))
    parts = PurePath(given).parts
    found = storage / "/".join(parts)
    if ".." not in parts and found.exists():
        return found
    if here.exists():
        return here
    near = near_names(parts[0], storage.names())
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `ray-gen runs` lists all"
    raise Refused(f"no run {given!r}: it is neither a path here nor in {storage.location}{hint}")


def _may_hold_a_run(folder: Folder) -> bool:
    """Whether a path is a file, or a folder that has a file of a run, a search, a checkpoint or an
    exported model, or a folder with one."""
    place = folder.path
    if not place.is_dir():
        return True
    try:
        return any(
            name.suffix in (".yaml", ".json", ".safetensors")
            for one in (place, *filter(Path.is_dir, place.iterdir()))
            for name in one.iterdir()
        )
    except OSError:  # then whoever opens it says why
        return True


def called(run: Folder) -> str:
    """What finds a run again: its name if it lies in the storage, else its location."""
    storage = Folder(absolute_path(default_storage()))
    named = (storage / run.name).location == run.location and run.name[0] not in ".~"
    return run.name if named else run.location


def near_names(given: str, names: Sequence[str]) -> list[str]:
    """The names that `given` may stand for, the nearest first: those that begin with it, else those
    that are like it, as a whole or at their beginning."""
    shown = [name for name in names if not name.startswith(".")]
    longer = [name for name in shown if name.startswith(given)]
    if longer:
        return longer[::-1][:SUGGESTED]  # names end in a time: the last is the newest

    def likeness(name: str) -> float:
        parts = (name, name[: len(given)], name[: len(given) + 1])
        return max(SequenceMatcher(None, given, part).ratio() for part in parts)

    near = sorted(((likeness(name), name) for name in shown), reverse=True)
    return [name for alike, name in near if alike >= ALIKE][:SUGGESTED]


def _text_of(run: object) -> str:
    given = os.fspath(run) if isinstance(run, (str, os.PathLike)) else None
    if isinstance(given, str):
        return given
    raise TypeError(
        f"run: {run!r} is not a run; give its path, its URI, its name in the storage, or what "
        "ray_gen.train returned"
    )
