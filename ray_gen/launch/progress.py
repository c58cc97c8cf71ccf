"""One line that shows how far a run is. A terminal and a notebook update it; a log gets a new line
from time to time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from ray_gen.storage import Folder

LOG_SECONDS = 10.0
"""Time between two lines if there is neither a terminal nor a notebook."""
BAR_WIDTH = 12


def watched() -> bool:
    """Whether somebody looks at the output of this process: in a terminal or in a notebook."""
    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter


class LineConsole(Console):
    """Prints sentences on stderr as they are. Its reader may go: Ctrl-C also ends the `tee` that a
    run writes to."""

    def __init__(self, *, show: bool) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False, quiet=not show)

    def on_broken_pipe(self) -> None:
        """Falls silent. rich would end the process, before the run has saved."""
        self.quiet = True


class ProgressLine:
    """Draws the progress that a run reports. Use as a context manager."""

    def __init__(self, total_images: int, *, show: bool) -> None:
        self._console = LineConsole(show=show)
        self._total = total_images
        self._notebook = _NotebookLine() if show and self._console.is_jupyter else None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[left]}", style="progress.remaining", markup=False),
            TextColumn(
                "{task.fields[detail]}", markup=False, table_column=Column(overflow="ellipsis")
            ),
            console=self._console,
            transient=True,
            disable=not (show and self._console.is_terminal),
        )
        self._task: TaskID | None = None
        self._logged_at: float | None = None
        self._logged: dict[str, Any] = {}
        self._said: set[str] = set()
        self._images = 0

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        self._task = self._bar.add_task("starting", total=None, left="", detail="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._notebook is not None:
            self._notebook.show("")

    @property
    def _is_updated(self) -> bool:
        """Whether a reader sees one line that changes, and not one line after the other."""
        return self._console.is_terminal or self._notebook is not None

    def _draw(
        self,
        description: str,
        *,
        left: str = "",
        detail: str = "",
        completed: int = 0,
        total: int | None = None,
    ) -> None:
        assert self._task is not None
        self._bar.update(
            self._task,
            description=description,
            left=left,
            detail=detail,
            completed=completed,
            total=total,
        )
        if self._notebook is not None:
            done = round(BAR_WIDTH * min(completed, total) / total) if total else 0
            bar = "━" * done + "╌" * (BAR_WIDTH - done) if total else ""
            self._notebook.show(
                "  ".join(part for part in (description, bar, left, detail) if part)
            )

    def say(self, text: str) -> None:
        """Prints a sentence that stays on the screen."""
        self._console.print(text, soft_wrap=True)

    def say_once(self, text: str) -> None:
        """Prints a sentence only once, even if it is reported several times."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def stage(self, description: str) -> None:
        """Shows what goes on before training begins."""
        self._draw(description)
        if not self._is_updated:
            self.say(description)

    def decoded(self, done: int, total: int) -> None:
        """Shows how many images are decoded."""
        self._draw(
            "decoding images",
            completed=done,
            total=total,
            left=_clock(self._bar.tasks[0].time_remaining),
            detail=f"{done:,}/{total:,}",
        )

    def trained(self, progress: Mapping[str, Any]) -> None:
        """Shows how far the run is, from its progress file (`runs/progress.py`): `passed_over` has
        sentences about checkpoints that were skipped, `warnings` sentences about loggers, and
        `failure` says why training no longer helps."""
        for sentence in progress.get("passed_over", ()):
            self.say_once(sentence)
        for sentence in progress.get("warnings", ()):
            self.say_once(f"warning: {sentence}")
        if "failure" in progress:
            self.say_once(f"warning: {progress['failure']}")
        images, metrics = int(progress["images"]), progress["metrics"]
        if images < self._images:
            self.say(f"the workers were started again, at {images:,} images")
        self._images = images
        rate = progress["rate"] or metrics.get("speed/images_per_second")
        left = progress.get("seconds_left")
        if left is None and "seconds_left" not in progress and rate:  # of a version before 0.2
            left = max(0, self._total - images) / rate
        doing, done, total, until = progress["doing"], images, self._total, left
        detail = f"{images:,}/{self._total:,} images"
        part = progress.get("part")
        if part is not None:
            doing, done, total, until = "evaluating", part["done"], part["of"], part["seconds_left"]
            detail = f"{part['what']} {done:,}/{total:,}"
        told = "  ".join([detail, f"{rate:,.0f}/s" if rate else "", losses(metrics)]).strip()
        told = told if part is None else f"{detail}  at {images:,} images"
        self._draw(doing, completed=done, total=total, left=_clock(until), detail=told)
        now = time.monotonic()
        if self._logged_at is None:
            self._logged_at = now
        if self._is_updated or progress == self._logged:
            return
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at, self._logged = now, dict(progress)
            evaluations = progress.get("evaluations_left", 0)
            until_then = "" if until is None else f"{in_words(until)} left"
            if until_then and evaluations and part is None:
                until_then += f" and {evaluations} evaluation{'s' * (evaluations > 1)}"
            if doing == "training":
                self.say(f"{until_then or 'training'}  {told}")
            else:
                self.say("  ".join(text for text in (doing, until_then, told) if text))


class _NotebookLine:
    """A line in the output of a notebook's cell. Each text replaces the one before. Plain text
    needs no widgets, which many notebooks do not have."""

    def __init__(self) -> None:
        from IPython.display import display  # a notebook has it

        self._text = ""
        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)

    def show(self, text: str) -> None:
        if text != self._text:
            self._text = text
            self._handle.update({"text/plain": text}, raw=True)


def in_words(seconds: float) -> str:
    """A time that is left: 95 s, 12 min, 3 h 5 min."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def _clock(seconds: float | None) -> str:
    """1:23:45, or nothing if unknown."""
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


NO_SCORES = ("loss", "speed", "memory", "samples")
"""Groups of metrics that say little about a model at its end."""


def scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a person wants to know of a run at its end: scores of held-out images and of
    evaluations, and what the objective reports besides its losses."""
    return {
        tag: value
        for tag, value in metrics.items()
        if tag.partition("/")[0] not in NO_SCORES and not tag.endswith("_spread")
    }


def losses(metrics: Mapping[str, float]) -> str:
    """The losses of a report, in short form."""
    shown = {tag: value for tag, value in metrics.items() if tag.startswith("loss/")}
    return "  ".join(f"{tag.partition('/')[2]} {value:.4g}" for tag, value in shown.items())


def read_progress(run: Folder, name: str) -> dict[str, Any] | None:
    """The last progress that the run reported, or None."""
    try:
        return json.loads(run.read_text(name))
    except (OSError, ValueError):
        return None
