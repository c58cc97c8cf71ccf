"""A run of Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from ray_gen.runs.loggers.logger import LoggedRun, Picture

START_SECONDS = 50.0
"""How long the start waits for a server, while the run goes on."""
FINISH_SECONDS = 15.0
"""How long the end waits for a server. After that, W&B's own process takes some 13 s to give up."""


class Wandb:
    """Sends a run to Weights & Biases. The horizontal axis of every chart is images.

    W&B's own files lie in `wandb/` of the run folder. They hold the experiment, the numbers, the
    versions of packages and the name of the machine, but neither the key nor a git repository.
    """

    def __init__(self, project: str, entity: str | None, mode: Any) -> None:
        """See `ray_gen.experiment.loggers.WandbLogger`."""
        self._project, self._entity, self._mode = project, entity, mode

    def start(self, run: LoggedRun) -> None:
        """Begins a run of W&B, or goes on with the one whose id is in the memory."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_job_creation=True,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            init_timeout=START_SECONDS,
            save_code=False,
            silent=True,
            symlink=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._wandb = wandb
        self._run = wandb.init(
            id=run.memory.setdefault("id", secrets.token_hex(4)),
            name=run.name,
            project=self._project,
            entity=self._entity,
            mode=self._mode,
            dir=str(run.folder),
            config=dict(run.experiment),
            resume="allow",
            settings=settings,
        )
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """Sends them."""
        self._run.log({"images": images, **values})

    def pictures(self, images: int, values: Mapping[str, Picture]) -> None:
        """Sends them as PNG."""
        sent = {tag: self._wandb.Image(_without_axis(value)) for tag, value in values.items()}
        self._run.log({"images": images, **sent})

    def end(self, how: str) -> None:
        """Waits until everything is sent, and until W&B's own process has written its files. That
        process would also delay the end of this process, if the server is dead."""
        try:
            self._run.finish(exit_code=int(how == "failed"))
        finally:
            self._wandb.teardown()


def _without_axis(picture: Picture) -> Picture:
    """(H, W, 1) as (H, W)."""
    return picture[:, :, 0] if picture.shape[2] == 1 else picture
