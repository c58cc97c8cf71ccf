"""`evaluate`: in this process, or on Ray workers. Only workers need Ray."""

from __future__ import annotations

import os
from typing import Any

import torch

from ray_gen.distributed import World
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.request import Request, measure
from ray_gen.evaluation.scores import Scores


def evaluate(
    run: str | os.PathLike[str] | None = None,
    *,
    generated: str | None = None,
    reference: str | None = None,
    split: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    on_corrupt: str | None = None,
    workers: int = 1,
    progress: Progress = silent,
    **settings: Any,
) -> Scores:
    """The scores of a run folder, a checkpoint or an exported model, each with its protocol.

    generated: pictures instead of a run: a folder (or `parquet:…`). reference: real images as
    `data` of an experiment names them, e.g. "folder:~/photos" or "mnist5k"; None: the data that
    the run was trained on. split: "train" or "held_out" of them; None: as `evaluation.reference`
    says. image_size, channels, on_corrupt: as `data` of an experiment has them, for pictures and
    their reference; a run's reference is brought to the run's size, so it takes on_corrupt alone.
    workers: 1 evaluates in this process; more are Ray workers, with a GPU each where the cluster
    has any, and give the same values. settings: fields of `evaluation` that replace the run's own,
    e.g. metrics=["fid"], count=10_000. Raises Refused.
    """
    request = Request.of(
        run,
        generated=generated,
        reference=reference,
        split=split,
        image_size=image_size,
        channels=channels,
        on_corrupt=on_corrupt,
        **settings,
    )
    if workers > 1:
        from ray_gen.launch.evaluate_workers import evaluate_on_workers

        return evaluate_on_workers(request, workers, progress)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return measure(request, World(device=device), progress)
