"""Shows a search while it runs: a table on a terminal, a line from time to time in a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.table import Table

from ray_gen.launch.progress import LOG_SECONDS, LineConsole
from ray_gen.searches.records import Mode, Trial, ranked, short_names

ROWS = 14
"""The table shows at most this many trials: running trials first, then the best."""


class Board:
    """Draws the trials of a search. Use as a context manager."""

    def __init__(self, total: int, images: int, metric: str, mode: Mode, *, show: bool) -> None:
        self._total, self._images, self._metric = total, images, metric
        self._mode: Mode = mode
        self._console = LineConsole(show=show)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)
        self._drawn = show and self._console.is_terminal
        self._logged_at = self._began = time.monotonic()
        self._seen_before = 0
        self._told = ""

    def __enter__(self) -> Board:
        if self._drawn:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a sentence that stays on the screen."""
        self._console.print(text, soft_wrap=True)

    def begin(self, trials: Sequence[Trial]) -> None:
        """Starts to measure the pace: images that trials have seen already do not count."""
        self._began = time.monotonic()
        self._seen_before = sum(trial.images for trial in trials)

    def show(self, trials: Sequence[Trial], reached: Mapping[str, int]) -> None:
        """Shows how far the trials are. reached: images that running trials have seen, if known.
        A trial may be further than its last judgement."""
        told = self._told_of(trials, reached)
        if self._drawn:
            self._live.update(self.table(trials, reached, told))
        elif told != self._told and time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            self._told = told
            self.say(told)

    def _told_of(self, trials: Sequence[Trial], reached: Mapping[str, int]) -> str:
        counts = Counter(trial.state for trial in trials)
        ended = counts["done"] + counts["stopped"] + counts["failed"]
        parts = [f"{ended}/{self._total} trials", f"{counts['running']} running"]
        parts += [f"{counts['stopped']} stopped early"] if counts["stopped"] else []
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        first = next(iter(ranked(trials, self._mode)), None)
        if first is not None and first.score is not None and first.state != "failed":
            parts.append(f"best {first.name}: {self._metric} {first.score:.5g}")
        left = self._seconds_left(trials, reached)
        parts += [] if left is None else [f"some {_span(left)} left"]
        return ", ".join(parts)

    def _seconds_left(self, trials: Sequence[Trial], reached: Mapping[str, int]) -> float | None:
        """Estimated from the mean number of images of an ended trial and the pace of the search."""
        now = sum(max(trial.images, reached.get(trial.name, 0)) for trial in trials)
        pace = (now - self._seen_before) / max(1e-9, time.monotonic() - self._began)
        ended = [trial.images for trial in trials if trial.state in ("done", "stopped")]
        if pace <= 0 or all(trial.score is None for trial in trials):
            return None
        each = sum(ended) / len(ended) if ended else self._images
        open_trials = self._total - sum(trial.ended for trial in trials)
        under_way = sum(
            max(trial.images, reached.get(trial.name, 0)) for trial in trials if not trial.ended
        )
        return max(0.0, open_trials * each - under_way) / pace

    def table(self, trials: Sequence[Trial], reached: Mapping[str, int], told: str) -> Table:
        paths = list(dict.fromkeys(path for trial in trials for path in trial.values))
        table = Table(box=None, title=told, title_justify="left", title_style="", pad_edge=False)
        for name in ("trial", "", "images", self._metric):
            table.add_column(name, justify="right" if name in ("images", self._metric) else "left")
        for name in short_names(paths).values():
            table.add_column(name, justify="right")
        running = [trial for trial in trials if trial.state == "running"]
        others = [trial for trial in ranked(trials, self._mode) if trial.state != "running"]
        best = next((t for t in ranked(trials, self._mode) if t.score is not None), None)
        for trial in (*running, *others)[:ROWS]:
            images = max(trial.images, reached.get(trial.name, 0))
            score = "" if trial.score is None else f"{trial.score:.5g}"
            values = [_short(trial.values.get(path)) for path in paths]
            style = "bold green" if trial is best and trial.state != "failed" else None
            row = (trial.name, trial.state, f"{images:,}", score, *values)
            table.add_row(*row, style=style or ("dim" if trial.state == "failed" else None))
        return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
