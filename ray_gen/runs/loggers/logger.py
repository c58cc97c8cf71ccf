"""What a logger is. This file is the reference for your own class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(H, W, 1 or 3)."""


@dataclass(frozen=True)
class LoggedRun:
    """What a logger knows about a run."""

    name: str
    """The name of the run folder."""
    location: str
    """The run folder: a path or a URI."""
    folder: Path
    """A local folder. Files in it belong to the run folder: with each report they are copied there,
    if it is behind a URI."""
    images: int
    """Training images at which this part of the run begins: 0, or the images of the checkpoint from
    which the run goes on."""
    experiment: Mapping[str, Any]
    """All settings, as in experiment.yaml."""
    hyperparameters: Mapping[str, float | str | bool]
    """The settings that identify the run, by dotted path. In a search: the settings that it
    varies."""
    later: tuple[str, ...]
    """Tags of scores that come later than the first report."""
    memory: dict[str, Any]
    """What the logger keeps for the next part of the run, as JSON: the id of the run on a server,
    for example. Whatever `start` and later calls put in is in it again after a resume. It is a file
    of the run folder, so it must hold no credentials."""


@runtime_checkable
class Logger(Protocol):
    """Four methods. The first worker calls them, in this order: `start` once, just before the first
    report; then `numbers` and `pictures` for each report; then `end` once, if the worker is not
    killed.

    A resumed run calls `start` again, with the same `run.memory`. If it goes on from an earlier
    checkpoint, it repeats some steps and comes to the same numbers; your logger gets each report
    once.

    Your own class is called in its own thread, so it may wait for a server. An exception, or a call
    that takes longer than a minute, never stops the run: the user is told once, and the logger is
    not called again. Put the file on PYTHONPATH and name the class:
    `loggers=[tensorboard,{kind: custom, target: "my_loggers:Lines", options: {file: log.txt}}]`.

        # my_loggers.py
        from pathlib import Path

        class Lines:
            def __init__(self, file):
                self.name = file

            def start(self, run):
                self.file = Path(run.folder, self.name).open("a")
                part = run.memory["part"] = run.memory.get("part", 0) + 1
                print(f"{run.name}, part {part}, from {run.images} images", file=self.file)

            def numbers(self, images, values):
                print(images, values, file=self.file, flush=True)

            def pictures(self, images, values):
                shapes = {tag: picture.shape for tag, picture in values.items()}
                print(images, shapes, file=self.file)

            def end(self, how):
                print(how, file=self.file)
                self.file.close()
    """

    def start(self, run: LoggedRun) -> None:
        """Begin, or go on under the id in `run.memory`."""

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """The metrics of a report, by tag ("loss/kl"), after `images` training images. Scores of an
        evaluation beside the run come later than reports with more images."""

    def pictures(self, images: int, values: Mapping[str, Picture]) -> None:
        """Grids of samples, by tag ("images/samples"): uint8 (H, W, 1 or 3)."""

    def end(self, how: str) -> None:
        """Close everything. how: "finished", "stopped" (somebody asked for it) or "failed". A run
        that was stopped or has failed may go on later."""
