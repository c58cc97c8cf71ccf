"""An experiment: the tree of settings, with the checks of several fields together."""

from __future__ import annotations

from collections.abc import Iterator

from ray_gen.experiment import checks
from ray_gen.experiment.tree import Tree


class Experiment(Tree):
    """Everything that a run is made of. Two runs of equal experiments are equal runs."""

    def problems(self) -> Iterator[str]:
        """What is wrong with fields that go together, each by its dotted path."""
        yield from checks.problems(self)
