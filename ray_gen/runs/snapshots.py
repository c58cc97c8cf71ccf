"""Snapshots of `training.ema_profiles` in a run folder: names, listing, and checkpoints of the
averages that `ray-gen ema` makes of them.

    snapshots/snapshot_000000024000/    profile-0.05.safetensors, copies.safetensors, manifest.json
    checkpoint_ema-0.1/                 ema.safetensors, experiment.yaml, manifest.json
"""

from __future__ import annotations

import re
from pathlib import Path

from ray_gen.runs.checkpoints import commit, discard, images_of
from ray_gen.runs.manifest import MANIFEST, Manifest
from ray_gen.storage import Folder

SNAPSHOTS = "snapshots"
_NAME = re.compile(r"snapshot_\d+")


def snapshot_name(images: int) -> str:
    """The name of a snapshot. The order of names is the order of images."""
    return f"snapshot_{images:012d}"


def commit_snapshot(folder: Path, run: Folder) -> None:
    """Copy a local snapshot into the run folder, whole or not at all. Keeps one that is there: it
    has the same images, so it is the same."""
    name = snapshot_name(Manifest.checked(folder, ()).images)
    if not (run / SNAPSHOTS / name).exists(MANIFEST):
        commit(folder, run / SNAPSHOTS, name)


def drop_snapshots(run: Folder, images: int) -> None:
    """Delete the snapshots after so many images: the run goes on from there and makes them
    again."""
    there = run / SNAPSHOTS
    for name in there.names():
        if _NAME.fullmatch(name) and images_of(there / name) > images:
            discard(there, name)


def snapshots(run: Folder) -> list[Folder]:
    """The whole snapshots of a run, oldest first."""
    there = run / SNAPSHOTS
    named = [there / name for name in there.names() if _NAME.fullmatch(name)]
    return [found for found in named if found.exists(MANIFEST)]
