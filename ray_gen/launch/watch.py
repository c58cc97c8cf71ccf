"""What the driver sees of a run while its workers train."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ray_gen.launch.progress import ProgressLine, read_progress
from ray_gen.runs.progress import PROGRESS
from ray_gen.runs.reports import OnReport, ReportReader
from ray_gen.storage import Folder, StorageError


class Watch:
    """Looks at the files that the workers write: draws the progress, and passes reports on."""

    def __init__(
        self, run: Folder, line: ProgressLine, on_report: OnReport | None, images: int
    ) -> None:
        """on_report: gets the reports that come, if any. images: from which the run goes on."""
        self._run = run
        self.line = line
        self._on_report = on_report
        self._reader = ReportReader(run, images)

    def look(self) -> None:
        """Looks once. Raises what `on_report` raises."""
        progress: dict[str, Any] | None = read_progress(self._run, PROGRESS)
        if progress is not None:
            self.line.trained(progress)
        if self._on_report is None:
            return
        found: list[tuple[int, dict[str, float]]] = []
        with suppress(OSError, StorageError):  # the next look may succeed
            found = self._reader.new()
        for images, metrics in found:
            self._on_report(images, metrics)
