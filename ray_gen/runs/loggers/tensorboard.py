"""Event files for TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_gen import temporary
from ray_gen.runs.loggers.logger import LoggedRun, Picture
from ray_gen.storage import Folder

FOLDER = "tensorboard"
EVENTS_BYTES = 4 * 2**20
"""Behind a URI, an event file that is larger than this is closed, and a new one begins."""


class TensorBoard:
    """Writes scalars, grids, the hyperparameters of the run, and charts of tags that belong
    together."""

    def start(self, run: LoggedRun) -> None:
        """`purge_step` drops the events after the checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._is_local = Folder(run.location).is_local
        self._events = SummaryWriter(str(run.folder / FOLDER), purge_step=run.images + 1)
        self._begun = False

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """Writes a scalar for each."""
        if not self._begun:
            self._begin(tuple(values))
        for tag, value in values.items():
            self._events.add_scalar(tag, value, images)
        self._flush()

    def pictures(self, images: int, values: Mapping[str, Picture]) -> None:
        """Writes an image for each."""
        for tag, picture in values.items():
            self._events.add_image(tag, picture, images, dataformats="HWC")
        self._flush()

    def end(self, how: str) -> None:
        """Closes the event file."""
        self._events.close()

    def _begin(self, tags: Sequence[str]) -> None:
        """Writes what does not change. tags: of the first report."""
        from torch.utils.tensorboard.summary import hparams

        self._begun = True
        of_machine = ("speed/", "memory/")
        judged = [*self._run.later, *(tag for tag in tags if not tag.startswith(of_machine))]
        file: Any = self._events.file_writer
        for summary in hparams(dict(self._run.hyperparameters), dict.fromkeys(judged)):
            file.add_summary(summary)
        charts = charts_of(tags)
        if charts:
            shown = {title: ["Multiline", _exactly(tags)] for title, tags in charts.items()}
            self._events.add_custom_scalars({"on one chart": shown})

    def _flush(self) -> None:
        """Writes what is buffered. Behind a URI every copy transfers the whole file, so a large
        file is closed. The next event begins a new one."""
        self._events.flush()
        if self._is_local:
            return
        writer: Any = self._events.file_writer
        if writer is not None and _size(writer) > EVENTS_BYTES:
            self._events.purge_step = None  # else the next file would hide the events of this one
            self._events.close()


def charts_of(tags: Sequence[str]) -> dict[str, list[str]]:
    """Tags that are read together, by the title of their chart: those of real and of fake images,
    and all losses."""
    charts: dict[str, list[str]] = {}
    for tag in tags:
        fake = re.sub(r"\breal|_real", lambda found: found[0].replace("real", "fake"), tag)
        if fake != tag and fake in tags:
            charts[f"{tag} and {fake.rpartition('/')[2]}"] = [tag, fake]
    losses = [tag for tag in tags if tag.startswith("loss/")]
    return {**charts, "losses": losses} if len(losses) > 1 else charts


def _exactly(tags: Sequence[str]) -> list[str]:
    """Patterns that match only these tags."""
    return [f"^{re.escape(tag)}$" for tag in tags]


def _size(writer: Any) -> int:
    return Path(writer.event_writer._file_name).stat().st_size


def write_scalars(run: Folder, images: int, metrics: Mapping[str, float]) -> None:
    """Write scalars to a separate file, from another process than the run's writer."""
    from torch.utils.tensorboard import SummaryWriter

    with temporary.folder("scalars-") as folder:
        events = SummaryWriter(str(folder), filename_suffix=f".beside-{images}")
        for tag, value in metrics.items():
            events.add_scalar(tag, value, images)
        events.close()
        for file in folder.iterdir():
            run.put(file, f"{FOLDER}/{file.name}")
