"""Means of what terms report, kept on the device and read back once a report.

A term's values, summed over images, are one row a step: one small operation, no host
synchronisation. A report adds the rows up over all workers, in one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ray_gen.distributed import World


class NonFiniteError(RuntimeError):
    """A loss or weight that is not a finite number. The same on every rank."""


class _Table:
    """Rows of sums over a rank's images: one a step, one column a name."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.steps: list[int] = []
        self._rows = torch.zeros(64, columns, device=device)

    def add(self, step: int, sums: Tensor) -> None:
        if self.steps and self.steps[-1] == step:  # another micro-batch of the same step
            self._rows[len(self.steps) - 1] += sums
            return
        if len(self.steps) == len(self._rows):
            self._rows = torch.cat([self._rows, torch.zeros_like(self._rows)])
        self._rows[len(self.steps)] = sums
        self.steps.append(step)

    def take(self) -> Tensor:
        """The rows since the last report: (steps, names)."""
        return self._rows[: len(self.steps)]


class Meter:
    """Collects what terms return. A value is a mean over images and steps."""

    def __init__(self, global_batch_size: int, world: World) -> None:
        self._global_batch_size = global_batch_size
        self._world = world
        # By term and its tags: where settings change in mid-run a term may come to report others.
        self._tables: dict[tuple[str, tuple[str, ...]], _Table] = {}

    def record(self, term: str, step: int, tags: Sequence[str], sums: Tensor) -> None:
        """Sums (tags,) over a part of this rank's images at one step.

        term: one of its own for each term of each phase. Raises ValueError for a tag of two terms.
        """
        key = (term, tuple(tags))
        table = self._tables.get(key)
        if table is None:
            for other, known in self._tables:
                for tag in set(tags) & set(known) if other != term else ():
                    raise ValueError(f"the terms {other} and {term} both report {tag}; rename one")
            table = self._tables[key] = _Table(len(tags), sums.device)
        table.add(step, sums)

    def report(self) -> dict[str, float]:
        """Means since the last report. Raises NonFiniteError for the first value that is not a
        number. Collective: every rank, same order."""
        blocks = {key: table.take() for key, table in self._tables.items() if table.steps}
        if not blocks:
            return {}
        flat = torch.cat([block.flatten() for block in blocks.values()]).to(torch.float64)
        self._world.sum_(flat)
        sums = flat.cpu()
        columns: dict[str, list[Tensor]] = {}
        offending: list[tuple[int, str]] = []
        for key, block in blocks.items():
            table = self._tables[key]
            rows, sums = sums[: block.numel()].view(block.shape), sums[block.numel() :]
            for name, column in zip(key[1], rows.unbind(1), strict=True):
                columns.setdefault(name, []).append(column)
                if not column.isfinite().all():
                    first = int((~column.isfinite()).nonzero()[0])
                    offending.append((table.steps[first], name))
            table.steps.clear()
        if offending:
            step, name = min(offending, key=lambda found: found[0])
            raise NonFiniteError(f"{name} is not a finite number since step {step}")
        return {
            name: float(torch.cat(parts).mean()) / self._global_batch_size
            for name, parts in columns.items()
        }
