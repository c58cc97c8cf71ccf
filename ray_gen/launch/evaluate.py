"""`evaluate`: measures in this process or on Ray workers. Only workers need Ray."""

from __future__ import annotations

import os
from typing import Any

import torch

from ray_gen.distributed import World
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.request import Request, measure
from ray_gen.evaluation.scores import Scores
from ray_gen.pipeline.loading import trust
from ray_gen.runs.checkpoints import NEWEST, Choice


def evaluate(
    run: str | os.PathLike[str] | None = None,
    *,
    generated: str | None = None,
    reference: str | None = None,
    data: str | None = None,
    split: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    on_corrupt: str | None = None,
    checkpoint: Choice = NEWEST,
    trust_code: bool = False,
    workers: int = 1,
    progress: Progress = silent,
    **settings: Any,
) -> Scores:
    """The scores of a run folder, a checkpoint, an exported model or pictures, with protocols.

        scores = ray_gen.evaluate("digits", metrics=["sliced_wasserstein"], count=2000)
        scores["sliced_wasserstein"].value
        ray_gen.evaluate(generated="~/pictures", reference="folder:~/photos", image_size=64)

    run: path, URI or name of a run, a checkpoint or an exported model. checkpoint: of a run,
    "newest", "best" or a number of images. trust_code: run the source files of own classes that the
    run holds, and first say on stderr which. generated: instead of a run, a folder of pictures (or
    `parquet:…`). reference: real images in the form of an
    experiment's `data`, e.g. "folder:~/photos" or "mnist5k". None: the data that the run was
    trained on. data: where the data of the run lie now, if they have moved; they must be the same
    images. split: "train" or "held_out", of the reference. None: `evaluation.reference` of the
    settings. image_size, channels, on_corrupt: as in an experiment's `data`, for pictures and their
    reference. A run takes only on_corrupt, and only with a reference. The reference then gets the
    run's size and channels. workers: 1 evaluates in this process. More are Ray workers, each with a
    GPU if the cluster has GPUs. They give the same values. progress: called with the progress of
    the first worker. settings: fields of `evaluation` that replace the run's own, e.g.
    metrics=["fid"], count=10_000. Raises Refused or Failed.
    """
    if trust_code and run is not None:
        trust(run, checkpoint)
    request = Request.of(
        run,
        generated=generated,
        reference=reference,
        data=data,
        split=split,
        image_size=image_size,
        channels=channels,
        on_corrupt=on_corrupt,
        checkpoint=checkpoint,
        **settings,
    )
    if workers > 1:
        from ray_gen.launch.evaluate_workers import evaluate_on_workers

        return evaluate_on_workers(request, workers, progress)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return measure(request, World(device=device), progress)
