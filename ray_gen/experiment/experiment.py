"""`Experiment`: the tree of settings, with the checks of several fields together."""

from __future__ import annotations

from collections.abc import Iterator

from ray_gen.experiment import checks
from ray_gen.experiment.tree import Tree


class Experiment(Tree):
    """All settings of a run. Two runs of equal experiments give equal results."""

    def problems(self) -> Iterator[str]:
        """The problems of several fields together. Each begins with a dotted path."""
        yield from checks.problems(self)
