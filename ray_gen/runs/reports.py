"""Follows the reports of a run from another process, while it trains."""

from __future__ import annotations

import json
from collections.abc import Callable

from ray_gen.runs.progress import METRICS_FILE
from ray_gen.storage import Folder

OnReport = Callable[[int, dict[str, float]], object]
"""Is called with the training images and the metrics of a report."""


class ReportReader:
    """Reads the reports of a run as they come."""

    def __init__(self, run: Folder, images: int = 0) -> None:
        """images: of the checkpoint from which the run goes on. Earlier reports are not read."""
        self._run, self._images = run, images
        self._seen: object = None

    def new(self) -> list[tuple[int, dict[str, float]]]:
        """The reports since the last call, as images and metrics. After the death of a worker a run
        repeats some reports, with equal numbers; each is read once.

        Raises StorageError.
        """
        if self._run.is_local:
            try:
                facts = (self._run.path / METRICS_FILE).stat()
            except FileNotFoundError:
                return []
            seen = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if seen == self._seen:
                return []
            self._seen = seen
        try:
            lines = self._run.read_text(METRICS_FILE).split("\n")
        except FileNotFoundError:
            return []
        found: list[tuple[int, dict[str, float]]] = []
        for line in lines[:-1]:  # the rest has no end yet
            report = json.loads(line)
            images = int(report["images"])
            if images > self._images:
                self._images = images
                found.append((images, _metrics(report)))
        return found


def _metrics(report: dict[str, float]) -> dict[str, float]:
    """The metrics of a line. All their tags have a group."""
    return {tag: float(value) for tag, value in report.items() if "/" in tag}
