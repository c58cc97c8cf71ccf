"""Means of the values that terms report, kept on the device and read back once a report.

Each update adds a term's values, summed over images, to one column: one small operation, no host
synchronisation. A report adds the columns up over all workers, in one call.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ray_gen.distributed import World
from ray_gen.training.block import Block


class NonFiniteError(RuntimeError):
    """A loss or weight is not a finite number. Every rank raises it."""

    def __init__(self, message: str, step: int | None = None) -> None:
        """step: the first step with such a number, if known."""
        super().__init__(message)
        self.step = step


class TagSums:
    """Sums over a rank's images: one column per update of a block, one row per tag."""

    def __init__(self, tags: int, block: Block, like: Tensor) -> None:
        self.block = block
        self._now = like.new_zeros(tags, block.length)
        self._steps: dict[int, int] = {}
        self._earlier: list[tuple[dict[int, int], Tensor]] = []

    def add(self, sums: Tensor) -> None:
        """Add sums (tags, 1) over a micro-batch of the present update, on the device."""
        self._now.index_add_(1, self.block.place, sums)

    def note(self, step: int) -> None:
        """Note that the present update, of this step, has written its column."""
        self._steps[self.block.row] = step

    def turn(self) -> None:
        """Make room for the next block."""
        self._keep()
        self._now.zero_()

    def _keep(self) -> None:
        if self._steps:
            self._earlier.append((self._steps, self._now.clone()))
            self._steps = {}

    def latest(self) -> Tensor | None:
        """Sums over the images of the present block's updates, (tags, updates). None if it has none
        yet."""
        return self._now[:, list(self._steps)] if self._steps else None

    def take(self) -> list[tuple[dict[int, int], Tensor]]:
        """Everything written since the last call: the step of each column, and sums (tags, length).
        Columns without a step mean nothing."""
        self._keep()
        taken, self._earlier = self._earlier, []
        return taken


class Meter:
    """Collects the values that terms return. Reports their means over images and steps."""

    def __init__(self, global_batch_size: int, world: World) -> None:
        self._global_batch_size = global_batch_size
        self._world = world
        self._rows: dict[tuple[str, tuple[str, ...]], TagSums] = {}
        """By term and its tags. The tags depend on the losses that are due."""
        self._of_stages: list[tuple[tuple[str, ...], dict[int, int], Tensor]] = []
        """Values of ended stages that no report has included yet."""
        self._watched: list[TagSums] | None = None
        self.held: dict[str, Tensor] = {}
        """Values that no report has included yet, by tag: (2, N) float64, the steps above the sums
        over all workers' images. See `hold`."""

    def record(self, term: str, tags: Sequence[str], sums: Tensor, block: Block) -> None:
        """Record sums (tags, 1) over a part of this rank's images, at a block's present update.

        term: a name that is unique for each term of each phase. Raises ValueError if two terms
        report the same tag.
        """
        key = (term, tuple(tags))
        rows = self._rows.get(key)
        if rows is None:
            rows = self._begun(key, sums, block)
        rows.add(sums)
        if self._watched is not None and rows not in self._watched:
            self._watched.append(rows)

    def _begun(self, key: tuple[str, tuple[str, ...]], sums: Tensor, block: Block) -> TagSums:
        term, tags = key
        for other, known in self._rows:
            for tag in set(tags) & set(known) if other != term else ():
                raise ValueError(f"the terms {other} and {term} both report {tag}; rename one")
        self._rows[key] = TagSums(len(tags), block, sums)
        return self._rows[key]

    def begin_stage(self) -> None:
        """To be called when settings change: terms may then report other tags, in other blocks."""
        self._of_stages += self._taken()
        self._rows.clear()

    def _taken(self) -> list[tuple[tuple[str, ...], dict[int, int], Tensor]]:
        return [
            (tags, steps, rows)
            for (_, tags), table in self._rows.items()
            for steps, rows in table.take()
        ]

    @contextmanager
    def watched(self) -> Generator[list[TagSums]]:
        """The rows that `record` writes inside the `with` statement."""
        self._watched = []
        try:
            yield self._watched
        finally:
            self._watched = None

    def turn(self, block: Block) -> None:
        """To be called when `block` starts again at its first row."""
        for rows in self._rows.values():
            if rows.block is block:
                rows.turn()

    def latest(self) -> dict[str, float]:
        """Means over this rank's images of the last updates, at most a block of them. Waits for the
        device. Not collective. The next report still counts them."""
        sums: dict[str, list[Tensor]] = {}
        for (_, tags), table in self._rows.items():
            rows = table.latest()
            for name, row in zip(tags, () if rows is None else rows.unbind(), strict=False):
                sums.setdefault(name, []).append(row)
        if not sums:
            return {}
        means = torch.stack([torch.cat(parts).double().mean() for parts in sums.values()])
        own = self._global_batch_size / self._world.size
        return dict(zip(sums, (means / own).tolist(), strict=True))

    def report(self) -> dict[str, float]:
        """Means since the last report. Raises NonFiniteError for the first value that is not
        finite. Collective: every rank, same order."""
        self.hold()
        held, self.held = self.held, {}
        # By steps: the means are then the same bits, however often `hold` was called.
        values = {name: found[1, found[0].argsort(stable=True)] for name, found in held.items()}
        return {
            name: float(found.mean()) / self._global_batch_size for name, found in values.items()
        }

    def hold(self) -> None:
        """Sum over all workers what was recorded, and add it to `held`, which a checkpoint between
        two reports stores. Raises NonFiniteError as `report` does. Collective: every rank, same
        order."""
        all_of_it = [*self._of_stages, *self._taken()]
        taken = [(tags, steps, rows[:, list(steps)]) for tags, steps, rows in all_of_it]
        self._of_stages = []
        if not taken:
            return
        flat = torch.cat([rows.flatten().to(torch.float64) for _, _, rows in taken])
        self._world.sum_(flat)
        sums = flat.cpu()
        columns = {name: [values] for name, values in self.held.items()}
        offending: list[tuple[int, str]] = []
        for tags, steps, rows in taken:
            total, sums = sums[: rows.numel()].view(rows.shape), sums[rows.numel() :]
            for name, column in zip(tags, total.unbind(), strict=True):
                at = torch.tensor([*steps.values()], dtype=column.dtype)
                columns.setdefault(name, []).append(torch.stack([at, column]))
                if not column.isfinite().all():
                    first = int((~column.isfinite()).nonzero()[0])
                    offending.append((list(steps.values())[first], name))
        if offending:
            step, name = min(offending, key=lambda found: found[0])
            raise NonFiniteError(f"{name} is not a finite number since step {step}", step)
        self.held = {name: torch.cat(parts, 1) for name, parts in columns.items()}
