"""A run that begins with a trained model, or whose samples one decodes: finds and reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ray_gen.bottlenecks.codebook import begun_with
from ray_gen.core import Objective
from ray_gen.data.sources.latents import AUTOENCODER, LatentManifest
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, absolute_path
from ray_gen.experiment.data import LatentsData
from ray_gen.experiment.start import Start
from ray_gen.networks.autoencoder_kl_names import name_here
from ray_gen.objectives.bottleneck import QUANTISER
from ray_gen.objectives.in_latents import NAME, Decoding
from ray_gen.pipeline import pretrained
from ray_gen.runs.checkpoints import BEST, fetched, run_of
from ray_gen.runs.manifest import EMA, EXPERIMENT, NETWORKS, OF_A_MODEL, CheckpointError, Manifest
from ray_gen.runs.names import run_folder
from ray_gen.storage import Folder, default_storage
from ray_gen.training.build import build_networks, build_objective, distrust
from ray_gen.training.start import FOLDER, StartingPoint, begin, kept, kinds_of, table_of
from ray_gen.training.state import State, read_tensors
from ray_gen.weights import digest_of


def begun(
    experiment: Experiment, before: Experiment | None, run: Folder
) -> tuple[Experiment, StartingPoint | None]:
    """The experiment, which names the place and the digest of what it starts from; and that model,
    if the run has not begun. before: of the run's newest checkpoint, which has all that it needs.

    Raises Refused if the model is not there, or is not the one of the digest.
    """
    start = experiment.training.start_from
    if start is None:
        return experiment, None
    if before is not None:
        then = before.training.start_from
        if then is not None and _is_at(start.source, then.source):
            start = _at(start, then.source, start.digest or then.digest)
        return _with(experiment, start), None
    origin = _kept(start, run) or read(start)
    check_digest(start, origin)
    return _with(experiment, _at(start, origin.source, origin.digest())), origin


def _kept(start: Start, run: Folder) -> StartingPoint | None:
    """What the run kept when it was started before, if it is what the experiment asks for."""
    origin = kept(run)
    if origin is None or origin.weights != start.weights:
        return None
    same = _is_at(start.source, origin.source) and start.digest in (None, origin.digest())
    return origin if same else None


def _is_at(given: str, location: str) -> bool:
    """Whether the name, path or URI of a run means this location."""
    named = (Folder(absolute_path(default_storage())) / given).location
    return location in (given, absolute_path(given), named)


def _at(start: Start, source: str, digest: str | None) -> Start:
    return start.model_copy(update={"source": source, "digest": digest})


def _with(experiment: Experiment, start: Start) -> Experiment:
    return experiment.with_fields(training__start_from=start.model_dump(mode="json"))


def with_kept(experiment: Experiment, search: Folder) -> Experiment:
    """The experiment of the trials of a search: they start from what the search keeps."""
    start = experiment.training.start_from
    if start is None:
        return experiment
    return _with(experiment, _at(start, (search / FOLDER).location, start.digest))


def told_of(experiment: Experiment, origin: StartingPoint) -> Iterator[str]:
    """What the networks of an experiment take of a model, in lines. Raises Refused if nothing of it
    fits one of them."""
    objective = build_objective(experiment)
    networks = build_networks(experiment, objective)
    yield from table_of(experiment, objective, networks, origin).lines()


def check_digest(start: Start, origin: StartingPoint) -> None:
    """Raises Refused if a model is not the one that the experiment names."""
    if start.digest not in (None, origin.digest()):
        raise Refused(
            f"training.start_from.digest: {origin.told} is another model than the one that the "
            "experiment began with; put that one back, or set training.start_from.digest=null to "
            "begin with this one"
        )


def begin_from(experiment: Experiment, objective: Objective, state: State, run: Folder) -> None:
    """Gives a state before its first step the tensors that it starts from, if it starts from any:
    those in the run folder, else those of the source."""
    start = experiment.training.start_from
    if start is None:
        return
    origin = kept(run) or read(start)
    check_digest(start, origin)
    begin(state, table_of(experiment, objective, state.networks, origin))


def read(start: Start) -> StartingPoint:
    """The model that a run starts from: a run, a checkpoint, an exported folder, or what another
    run has kept. Unpickles nothing, and runs no code of it. Raises Refused."""
    try:
        given = run_folder(start.source)
    except Refused as error:
        raise Refused(f"training.start_from: {error}") from None
    if given.is_local:
        distrust(given.path)
    origin = kept(given.parent) if given.name == FOLDER else None
    if origin is not None:
        return origin
    try:
        if given.is_local and pretrained.is_of_diffusers(given.path):
            return _of_diffusers(given.path, start)
        if given.is_local and pretrained.is_pretrained(given.path):
            return _of_export(given.path, start)
        return _of_run(given, start)
    except CheckpointError as error:
        raise CheckpointError(f"training.start_from: {error}") from None


def take_autoencoder(experiment: Experiment, state: State) -> None:
    """Gives a state before its first step the autoencoder that lies beside its latents, which
    decodes samples. Nothing, if the data are images. Raises Refused."""
    data = experiment.data
    if not isinstance(data, LatentsData) or NAME not in state.networks:
        return
    tensors: dict[str, Tensor] | None = None
    beside = (Folder(data.path) / AUTOENCODER).fetched([pretrained.MODEL])
    with beside as folder, contextlib.suppress(CheckpointError):  # it is cut off
        tensors = pretrained.read_tensors(folder)
    if tensors is None or digest_of(tensors) != data.autoencoder_digest:
        raise Refused(
            f"data.path: the autoencoder in {data.path}/{AUTOENCODER} is damaged, or another than"
            " when the run began; put the old one back, or run the same ray-gen encode command"
            " again"
        )
    shift, factor = map(torch.from_numpy, LatentManifest.read(data.path).scale())
    for networks in (state.networks, state.ema, *state.profiles.values()):
        decoding = networks[NAME]
        assert isinstance(decoding, Decoding)
        own = decoding.networks.state_dict().keys()
        decoding.networks.load_state_dict({name: tensors[name] for name in own})
        decoding.shift.copy_(shift)
        decoding.scale.copy_(1.0 / factor)


def _of_run(given: Folder, start: Start) -> StartingPoint:
    with fetched(given, OF_A_MODEL) as (found, folder):
        manifest = Manifest.of_weights(folder, EMA if start.weights == "ema" else NETWORKS)
        experiment = Experiment.from_yaml((folder / EXPERIMENT).read_text(encoding="utf-8"))
        tensors = read_tensors(folder, NETWORKS) if NETWORKS in manifest.files else {}
        averages = read_tensors(folder, EMA) if start.weights == "ema" else {}
    name = run_of(given).name + (f"/{BEST}" if found.name == BEST else "")
    told = f"{name}, {manifest.images:,} images"
    return _origin(given.location, told, start, experiment, {**tensors, **averages}, averages)


def _of_export(folder: Path, start: Start) -> StartingPoint:
    experiment, facts = pretrained.read_config(folder)
    if start.weights == "raw" and facts.weights == "ema":
        raise Refused(
            f"training.start_from.weights: {folder} holds averages (EMA) and no raw weights; name "
            "the run itself, or set it to ema"
        )
    tensors = pretrained.read_tensors(folder)
    averages = tensors if facts.weights == "ema" else {}
    told = f"{folder.name} (exported)" + (f", {facts.images:,} images" if facts.images else "")
    return _origin(str(folder), told, start, experiment, tensors, averages)


def _of_diffusers(folder: Path, start: Start) -> StartingPoint:
    """An AutoencoderKL or a VQModel of diffusers, with the names that its tensors have here."""
    kind, theirs = pretrained.read_diffusers(folder)
    tensors: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        here = name_here(name)
        if here is not None:
            tensors[".".join(here)] = _as_linear(name, tensor)
    codes = tensors.get(f"{QUANTISER}.codes")
    if codes is not None:
        tensors |= {f"{QUANTISER}.{name}": value for name, value in begun_with(codes).items()}
    kinds = {"encoder": "autoencoder_kl", "decoder": "autoencoder_kl"}
    told = f"{folder.name} (diffusers' {kind})"
    return StartingPoint(str(folder), told, start.weights, tensors, kinds, None)


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """Attention's weights as matrices: the oldest files have 1 x 1 convolutions."""
    return tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor


def _origin(
    location: str,
    told: str,
    start: Start,
    experiment: Experiment,
    tensors: dict[str, Tensor],
    averages: dict[str, Tensor],
) -> StartingPoint:
    labelled = experiment.needs_labels and experiment.data.classes is not None
    averaged = tuple(dict.fromkeys(name.partition(".")[0] for name in averages))
    return StartingPoint(
        location,
        told + (f", EMA of {' and '.join(averaged)}" if averaged else ", raw weights"),
        start.weights,
        tensors,
        kinds_of(experiment),
        tuple(experiment.data.classes or ()) if labelled else None,
    )
