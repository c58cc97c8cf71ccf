"""`encode`: writes the latents of images as sharded Parquet, with a trained autoencoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ray_gen import temporary
from ray_gen.data.convert import Layout
from ray_gen.data.encode import Encoding, Form
from ray_gen.data.sources.latents import AUTOENCODER
from ray_gen.data.store import wanted_of
from ray_gen.errors import Refused
from ray_gen.evaluation.request import exported
from ray_gen.experiment import Experiment, absolute_path
from ray_gen.experiment.data import DataSettings, LatentsData
from ray_gen.launch.parts import Progress, written
from ray_gen.pipeline.encoder import encoder_of
from ray_gen.pipeline.loading import load_as
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import Weights, write_pretrained
from ray_gen.runs.checkpoints import NEWEST, Choice
from ray_gen.runs.names import run_folder
from ray_gen.storage import Folder
from ray_gen.training.sources import data_as_in_run, source_of
from ray_gen.version import __version__


def encode(
    run: str | os.PathLike[str],
    destination: str,
    source: str | None = None,
    *,
    weights: Weights = "ema",
    checkpoint: Choice = NEWEST,
    precision: Literal["fp16", "fp32"] = "fp16",
    flips: bool = False,
    shard_images: int = 8192,
    group_images: int = 256,
    local: bool | None = None,
    trust_code: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Write the latents of `source` as Parquet that `data=latents:DESTINATION` reads, and the
    autoencoder beside them. Returns the manifest.

    run: a run, a checkpoint or an exported model whose latent is one map. source: images, as
    `--data` names them; they are read as the run reads its own. None: the run's own. precision: of
    the stored numbers. flips: encode mirrored images, too; `data.flip` needs them. local: write in
    this process, not on Ray; None: if there is only one part. Writes only parts that are missing.
    Raises Refused.
    """
    location = run_folder(run).location
    model = load_as(
        Model,
        location,
        weights=weights,
        device="cpu",
        checkpoint=checkpoint,
        trust_code=trust_code,
    )
    data = _data(location, model.experiment, source)
    encoder = encoder_of(model, location, checkpoint, trust_code=trust_code)
    folder = Folder(absolute_path(destination))
    made = not folder.exists()
    folder.check_writable("another DEST")
    layout = Layout(
        wanted_of(**data.pixels()),
        data.held_out_fraction,
        data.on_corrupt == "skip",
        shard_images,
        group_images,
        0,
    )
    _, height, width = model.experiment.image_shape
    form = Form(precision, flips, (height, width), _facts(model, location, data))
    streamed = data.placement == "stream"
    encoding = Encoding(source_of(data), layout, folder, encoder, form, streamed)

    def in_process(missing: Sequence[int]) -> bool:
        return local if local is not None else len(missing) == 1

    return written(
        encoding,
        progress,
        holds="latents",
        made=made,
        begin=lambda: _keep(model, folder),
        in_process=in_process,
        with_gpu=True,
    )


def _data(location: str, experiment: Experiment, source: str | None) -> DataSettings:
    """The images to encode. Raises Refused."""
    if isinstance(experiment.data, LatentsData):
        raise Refused(
            f"{location}: was trained on latents itself; encode with the autoencoder beside them"
        )
    if source is not None:
        data = data_as_in_run(source, "SOURCE", experiment)
    elif exported(location) is not None:
        raise Refused(
            f"SOURCE: {location} is an exported model, which does not know where its images lie;"
            " name them: ray-gen encode RUN SOURCE DEST"
        )
    else:
        data = experiment.absolute().data
    if isinstance(data, LatentsData):
        raise Refused(f"SOURCE: {source} holds latents already; name images")
    return data


def _facts(model: Model, location: str, data: DataSettings) -> dict[str, Any]:
    """What the manifest tells of the autoencoder and of the images."""
    return {
        "version": __version__,
        "autoencoder": {
            "run": model.name,
            "place": location,
            "digest": model.origin.weights,
            "weights": model.facts.weights,
            "images_seen": model.images_seen,
            "folder": AUTOENCODER,
        },
        "source": data.model_dump(mode="json"),
    }


def _keep(model: Model, folder: Folder) -> None:
    """Writes the autoencoder beside the latents: they mean nothing without it. Files that lie there
    already are not touched."""
    facts = replace(model.facts, name=model.name)
    there = folder / AUTOENCODER
    with temporary.folder("encode-") as work:
        write_pretrained(work, model.experiment, model.objective, model.networks, facts)
        for file in sorted(filter(Path.is_file, work.rglob("*"))):
            name = file.relative_to(work).as_posix()
            if not there.exists(name) or there.read_bytes(name) != file.read_bytes():
                there.put(file, name)
