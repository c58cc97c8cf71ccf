"""The checkpoints of a run folder: found, committed whole or not at all, and pruned."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from ray_gen.state import EXPERIMENT, MANIFEST, CheckpointError
from ray_gen.storage import Folder, StorageError

BEST = "best"
"""The copy of the best checkpoint in a run folder."""
DUE = ".due"
"""In a run folder, the checkpoint that comes with the evaluation that is going on."""
AWAITED = "evaluation_awaited"
"""In a checkpoint, that an evaluation beside the training has still to read it."""
_NAME = re.compile(r"checkpoint_\d+")
_CUT_OFF = re.compile(r"\.checkpoint_\d+\.(partial|old)")


def checkpoint_name(images: int) -> str:
    """Sorted by name is sorted by images."""
    return f"checkpoint_{images:012d}"


def checkpoints(run: Folder) -> list[Folder]:
    """The checkpoints of a run folder that have a manifest, newest first."""
    names = [name for name in reversed(run.names()) if _NAME.fullmatch(name)]
    return [run / name for name in names if (run / name).exists(MANIFEST)]


def newest_manifest(run: Folder) -> dict[str, Any] | None:
    """The manifest of a run's newest checkpoint; None without one. Sizes and digests unchecked."""
    found = checkpoints(run)
    return json.loads(found[0].read_text(MANIFEST)) if found else None


def newest_checkpoint(run: Folder) -> Folder:
    """The folder itself if it is a checkpoint, else the newest one in it."""
    if run.exists(MANIFEST):
        return run
    found = checkpoints(run)
    if found:
        return found[0]
    if (run / BEST).exists(MANIFEST):
        return run / BEST
    if not run.exists():
        raise CheckpointError(f"{run.location}: there is no such run")
    raise CheckpointError(
        f"{run.location}: has no complete checkpoint yet"
        if run.exists(EXPERIMENT)
        else f"{run.location}: is neither a run folder nor a checkpoint"
    )


def commit(source: Path, run: Folder, name: str) -> None:
    """Copy a checkpoint of this machine into the run folder as `name`, in the place of another.

    It has its name only when it is whole: locally by a rename, elsewhere because the manifest comes
    last. Raises StorageError and leaves nothing half-copied.
    """
    partial = f".{name}.partial"
    try:
        if run.is_local:
            run.remove(partial)
            run.put(source, partial)
            old = f".{name}.old"
            if run.exists(name):
                run.remove(old)
                (run.path / name).rename(run.path / old)
            (run.path / partial).rename(run.path / name)
            run.remove(old)
        else:
            run.remove(f"{name}/{MANIFEST}")
            for file in sorted(source.iterdir(), key=lambda file: file.name == MANIFEST):
                run.put(file, f"{name}/{file.name}")
    except OSError as error:
        if run.is_local:
            shutil.rmtree(run.path / partial, ignore_errors=True)
        raise StorageError(
            f"storage: {run.location} cannot take {name} ({error.strerror or error}); what was "
            "saved before is intact: make room, or choose another --storage, and start again with "
            "the same --name"
        ) from error


def prune(run: Folder, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that an evaluation awaits, and what
    cut-off copies left."""
    kept = {folder.name for folder in checkpoints(run)[:keep]}
    for name in run.names():
        old = _NAME.fullmatch(name) and name not in kept and not (run / name).exists(AWAITED)
        if old or _CUT_OFF.fullmatch(name):
            run.remove(name)


def take_up_due(run: Folder) -> None:
    """Give the checkpoint of an evaluation that a run failed in its name. Nobody may write it."""
    due = run / DUE
    if due.exists(MANIFEST):
        name = checkpoint_name(json.loads(due.read_text(MANIFEST))["images"])
        if not any(known.name >= name for known in checkpoints(run)):
            commit(due.fetch(), run, name)
    run.remove(DUE)
