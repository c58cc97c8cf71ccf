"""Small trained runs on disk."""

from __future__ import annotations

from pathlib import Path

from ray_gen.data import Store
from ray_gen.experiment import Experiment
from tests.helpers import trained

SHORT = "training.images=240"


def saved(this: Experiment, store: Store, folder: Path) -> Path:
    """A checkpoint of a trained experiment."""
    folder.mkdir(parents=True)
    trained(this, store)[0].save(folder, this)
    return folder
