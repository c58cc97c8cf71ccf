"""A small experiment of each model that the package does not ship, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from ray_gen.experiment import Experiment

NAMES = ("vq_vae", "latent_autoencoder", "flow")


def _of(name: str) -> Callable[..., Experiment]:
    def experiment(*overrides: str) -> Experiment:
        # Imported when it is used: a model that cannot be imported fails alone.
        return importlib.import_module(f"tests.proofs.{name}").experiment(*overrides)

    return experiment


FAMILIES: dict[str, Callable[..., Experiment]] = {name: _of(name) for name in NAMES}
