"""One line that tells how far a run is: it updates on a terminal, and comes again in a log."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from ray_gen.storage import Folder

LOG_SECONDS = 10.0
"""Between two lines where there is no terminal."""


class ProgressLine:
    """Draws what a run tells of itself. Use as a context manager."""

    def __init__(self, total_images: int, *, show: bool) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=not show)
        self._total = total_images
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", table_column=Column(overflow="ellipsis")),
            console=self._console,
            transient=True,
            disable=not (show and self._console.is_terminal),
        )
        self._task: TaskID | None = None
        self._logged_at = 0.0
        self._started: tuple[float, int] | None = None
        self._shown: dict[str, Any] = {}

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        self._task = self._bar.add_task("starting", total=None, detail="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A sentence that stays."""
        self._console.print(text, soft_wrap=True)

    def stage(self, description: str) -> None:
        """What is going on before the first image is trained on."""
        assert self._task is not None
        self._bar.update(self._task, description=description, total=None, detail="")
        if not self._console.is_terminal:
            self.say(description)

    def decoded(self, done: int, total: int) -> None:
        """Images decoded so far."""
        assert self._task is not None
        self._bar.update(
            self._task,
            description="decoding images",
            completed=done,
            total=total,
            detail=f"{done:,}/{total:,}",
        )

    def trained(self, progress: Mapping[str, Any]) -> None:
        """How far the run is: `images` and the `metrics` of the last report."""
        assert self._task is not None
        if progress == self._shown:
            return
        self._shown = dict(progress)
        images = int(progress["images"])
        now = time.monotonic()
        if self._started is None or images < self._started[1]:
            self._started, self._logged_at = (now, images), now
            self._bar.reset(self._task, total=self._total, description="training", detail="")
        since, first = self._started
        speed = (images - first) / (now - since) if now > since else 0.0
        detail = f"{images:,}/{self._total:,} images  {speed:,.0f}/s  {losses(progress['metrics'])}"
        self._bar.update(self._task, completed=images, detail=detail)
        if not self._console.is_terminal and now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            left = f"{(self._total - images) / speed:,.0f} s left" if speed else "waiting"
            self.say(f"{left}  {detail}")


def losses(metrics: Mapping[str, float]) -> str:
    """The losses and held-out scores of a report, shortly."""
    shown = {tag: value for tag, value in metrics.items() if tag.startswith("loss/")}
    return "  ".join(f"{tag.partition('/')[2]} {value:.4g}" for tag, value in shown.items())


def read_progress(run: Folder, name: str) -> dict[str, Any] | None:
    """What the run last told of itself, or None."""
    try:
        return json.loads(run.read_text(name))
    except (OSError, ValueError):
        return None
