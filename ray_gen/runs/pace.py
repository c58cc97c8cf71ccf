"""How fast a run is, and when it will end."""

from __future__ import annotations

import time
from collections import deque

PACE_SECONDS = 30.0
"""The pace of training is measured over this time, or over a third of all training if that is
longer: estimates of long runs should not follow each change of a machine's load."""
FIRST_SECONDS = 2.0
"""Training before the first estimate."""


class Pace:
    """The pace of training, and the time of what interrupts it: reports, checkpoints, evaluations.

    The first step is not measured: it may compile.
    """

    def __init__(
        self, total_images: int = 0, evaluate_every: int | None = None, batch_size: int = 1
    ) -> None:
        """total_images: of the whole run. evaluate_every: images between two evaluations that
        interrupt training; one more is at the end. None: none. batch_size: images of a step."""
        self._total, self._evaluate_every = total_images, evaluate_every
        self._batch_size = batch_size
        self._parts: deque[tuple[float, int]] = deque()  # seconds, images
        self._seconds, self._images = 0.0, 0
        self._all_seconds, self._all_images = 0.0, 0
        self._last: tuple[float, int] | None = None  # None: not only training since then
        self._before: tuple[float, int] | None = None
        self._evaluating_since: float | None = None
        self._evaluations: list[float] = []
        self._evaluated_now = 0.0
        self._other_seconds = 0.0

    def trained(self, images: int) -> None:
        """Note that `images` images are done. Since the last call there was only training, or a
        call of `interrupted` or `evaluates`."""
        now = time.monotonic()
        if self._last is not None:
            part = now - self._last[0], images - self._last[1]
            self._parts.append(part)
            self._add(*part)
            self._all_seconds += part[0]
            self._all_images += part[1]
        elif self._before is not None and self._pace:
            since, done = self._before
            other = now - since - (images - done) / self._pace - self._evaluated_now
            self._other_seconds += max(0.0, other)
            self._all_images += images - done
            self._all_seconds += (images - done) / self._pace
        self._evaluated_now = 0.0
        self._last = self._before = now, images
        longest = max(PACE_SECONDS, self._all_seconds / 3)
        while self._parts and self._seconds - self._parts[0][0] >= longest:
            seconds, count = self._parts.popleft()
            self._add(-seconds, -count)

    def interrupted(self) -> None:
        """Note that something other than training has happened since the last call, or begins."""
        self._last = None

    def evaluates(self) -> None:
        """Note that an evaluation begins."""
        self.interrupted()
        self._evaluating_since = time.monotonic()

    def evaluated(self) -> None:
        """Note that the evaluation has ended."""
        if self._evaluating_since is not None:
            self._evaluated_now = time.monotonic() - self._evaluating_since
            self._evaluations.append(self._evaluated_now)
            self._evaluating_since = None

    def _add(self, seconds: float, images: int) -> None:
        self._seconds, self._images = self._seconds + seconds, self._images + images

    @property
    def _pace(self) -> float:
        """Images per second of training, 0 if not known."""
        return self._images / self._seconds if self._parts and self._seconds > 0 else 0.0

    @property
    def rate(self) -> float | None:
        """Images per second of training, or None if not known yet."""
        return self._pace or None

    def left(self, images: int) -> float | None:
        """Seconds until the run ends, with all that will interrupt it. None if not known yet. The
        first evaluation is not known before it has ended."""
        if not self._pace or self._all_seconds < FIRST_SECONDS:
            return None
        to_come = max(0, self._total - images)
        seconds = to_come / self._pace + to_come * self._other_seconds / self._all_images
        if self._evaluations:
            seconds += self._evaluations_to_come(images) * self._evaluation_seconds
        if self._evaluating_since is not None and self._evaluations:
            seconds += self.evaluation_left or 0.0
        return seconds

    def unknown_evaluations(self, images: int) -> int:
        """How many evaluations `left` does not count, because none has ended yet."""
        return 0 if self._evaluations else self._evaluations_to_come(images)

    @property
    def evaluation_left(self) -> float | None:
        """Seconds until the present evaluation ends. None without one, or if none has ended yet."""
        if self._evaluating_since is None or not self._evaluations:
            return None
        return max(0.0, self._evaluation_seconds - (time.monotonic() - self._evaluating_since))

    @property
    def _evaluation_seconds(self) -> float:
        return sum(self._evaluations[-3:]) / len(self._evaluations[-3:])

    def _evaluations_to_come(self, images: int) -> int:
        every = self._evaluate_every
        if every is None or images >= self._total:
            return 0
        between = self._total // every - images // every
        return between + (self._total % every >= self._batch_size)
