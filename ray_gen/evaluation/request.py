"""One evaluation: from the names of a run or pictures, and of a reference, to scores."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.comparison import Comparison
from ray_gen.evaluation.evaluator import Evaluator, SplitImages, subject_of
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.scores import Scores
from ray_gen.experiment import Experiment, absolute_path
from ray_gen.experiment.data import Data, DataSettings
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.experiment.named_data import named_by
from ray_gen.experiment.refusals import problems_of
from ray_gen.pipeline.loading import experiment_of, load_as
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import is_pretrained, read_config
from ray_gen.pixels import channels_in_words
from ray_gen.runs.checkpoints import NEWEST, Choice
from ray_gen.runs.names import run_folder
from ray_gen.storage import Folder
from ray_gen.training.sources import named_source, open_source, with_labels_of


@dataclass(frozen=True)
class Request:
    """One evaluation, in a form that can be sent to workers."""

    run: str | None
    """Absolute path or URI of a run folder, a checkpoint or an exported model. None: pictures are
    compared."""
    generated: Data | None
    """Pictures to compare instead of a run's samples. None: there is a run."""
    reference: Data | None
    """Data to compare with. None: the run's own data. If it has a digest, its images must still
    match the digest."""
    settings: Evaluation
    checkpoint: str = NEWEST
    """Which checkpoint of the run: see `runs.checkpoints.chosen_checkpoint`."""

    def to_json(self) -> str:
        """The request as text."""
        parts = {
            "generated": self.generated,
            "reference": self.reference,
            "settings": self.settings,
        }
        told = {name: part and part.model_dump(mode="json") for name, part in parts.items()}
        return json.dumps({"run": self.run, "checkpoint": self.checkpoint, **told})

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The request from the text of `to_json`."""
        given = json.loads(text)
        data: TypeAdapter[Data] = TypeAdapter(Data)
        sources = {
            name: given[name] and data.validate_python(given[name])
            for name in ("generated", "reference")
        }
        settings = Evaluation.model_validate(given["settings"])
        return cls(given["run"], **sources, settings=settings, checkpoint=given["checkpoint"])

    @classmethod
    def of(
        cls,
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
        **settings: Any,
    ) -> Request:
        """A request from the arguments of `launch.evaluate.evaluate`, checked. Raises Refused."""
        if (run is None) == (generated is None):
            raise Refused("evaluate: name either a run, or pictures with --generated")
        if data is not None and (run is None or reference is not None):
            raise Refused(
                "--data: says where the data of a run lie now; leave it out with --generated and"
                " with --reference"
            )
        if generated is not None and reference is None:
            raise Refused(
                "--reference: pictures are compared with real images; name a folder, or a source "
                "such as mnist5k or torchvision:CIFAR10"
            )
        decoding = {"image_size": image_size, "channels": channels, "on_corrupt": on_corrupt}
        decoding = {name: value for name, value in decoding.items() if value is not None}
        if split is not None:
            settings["reference"] = split
        if run is None:
            return cls(
                None,
                named_source(str(generated), "--generated", decoding),
                named_source(str(reference), "--reference", decoding),
                _settings(None, settings),
            )
        location, experiment = run_folder(run).location, experiment_of(run, checkpoint)
        if data is None:
            source = _reference(location, experiment, reference, decoding)
        elif decoding:
            raise Refused(
                f"data.{next(iter(decoding))}: the run's own data is read in the same way as for "
                "training; leave it out"
            )
        else:
            source = _moved(experiment, data)
        return cls(location, None, source, _settings(experiment, settings), str(checkpoint))


def measure(request: Request, world: World, progress: Progress = silent) -> Scores:
    """Measures a request. Raises Refused. Collective: every rank, same order."""
    return prepared(request, world, progress).scores()


def prepared(request: Request, world: World, progress: Progress = silent) -> Comparison:
    """What measures a request: data and model are read, nothing is measured yet. Raises Refused for
    what cannot be measured. Collective: every rank, same order."""
    decoded = partial(_decoded, progress)
    if request.run is None:
        assert request.generated is not None and request.reference is not None
        with named_by("--generated"):
            pictures = open_source(request.generated, decoded)
        with named_by("--reference"):
            store = open_source(request.reference, decoded)
        if pictures.image_shape[0] == store.image_shape[0] and pictures.opacity != store.opacity:
            told = [
                channels_in_words(one.image_shape[0], opacity=one.opacity)
                for one in (pictures, store)
            ]
            raise Refused(
                f"--reference: its images have {told[1]}, and the pictures {told[0]}; name images"
                " that both have opacity in their last channel, or both not"
            )
        evaluator = Evaluator(
            request.settings, store, request.reference.short_form, world, progress
        )
        reference = evaluator.reference(request.settings.reference)
        generated = SplitImages(pictures, "train", request.generated.short_form, world.device)
        return evaluator.comparison_of(generated, reference, store.opacity)
    weights, checkpoint = request.settings.weights, request.checkpoint
    pipeline = load_as(
        Model, request.run, weights=weights, device=world.device, checkpoint=checkpoint
    )
    experiment = pipeline.experiment
    data = request.reference or experiment.data.pictures
    moved = request.reference is not None and request.reference.digest is not None
    with nullcontext() if request.reference is None or moved else named_by("--reference"):
        store = open_source(data, decoded)
    if store.image_shape != experiment.picture_shape:
        raise Refused(
            f"--reference: its images are {store.image_shape} (channels, height, width), and the "
            f"run's images {experiment.picture_shape}; name images of the run's shape"
        )
    if None not in (data.digest, store.digest) and store.digest != data.digest:
        raise Refused(
            f"data: {data.short_form} is not what {request.run} was trained on: its images have "
            "changed since; put the old images back, or name images to compare with by --reference"
        )
    if experiment.needs_labels:
        store = with_labels_of(store, experiment, "--reference")
    own = request.reference is None or store.digest == experiment.data.pictures.digest
    evaluator = Evaluator(request.settings, store, data.short_form, world, progress, trained_on=own)
    described = _described(request, pipeline)
    return evaluator.checked(
        subject_of(experiment, pipeline.objective, pipeline.networks, described)
    )


def exported(run: str) -> Path | None:
    """The folder of an exported model. None: `run` is a run folder or a checkpoint."""
    folder = Folder(run)
    return folder.path if folder.is_local and is_pretrained(folder.path) else None


def _described(request: Request, pipeline: Model) -> dict[str, Any]:
    """The entries about the model in the protocol."""
    assert request.run is not None
    images, weights = pipeline.images_seen, request.settings.weights
    folder = exported(request.run)
    if folder is not None:
        _, facts = read_config(folder)
        images, weights = facts.images, facts.weights
    return {"run": request.run, "images seen": images, "weights": weights}


def _decoded(progress: Progress, done: int, total: int) -> None:
    progress(done, total, "decoding images")


def _settings(experiment: Experiment | None, changes: Mapping[str, Any]) -> Evaluation:
    """The run's own evaluation settings with changes, checked. Raises Refused."""
    own = Evaluation() if experiment is None else experiment.evaluation
    given = {**own.model_dump(mode="json"), **changes}
    try:
        return Evaluation.model_validate(given).absolute()
    except ValidationError as error:
        problems = problems_of(error, Evaluation, given)
        raise Refused("\n".join(f"evaluation.{problem}" for problem in problems)) from None


def _reference(
    location: str, experiment: Experiment, named: str | None, decoding: Mapping[str, Any]
) -> Data | None:
    """The data to compare a run's samples with, read as the run reads its own. None: the run's own
    data."""
    own = experiment.data.pictures.pixel_fields()
    for name in own:
        if name in decoding:
            raise Refused(
                f"data.{name}: a reference always gets the run's own {name}; leave it out"
            )
    if named is not None:
        return named_source(named, "--reference", decoding, own)
    if decoding:
        raise Refused(
            "data.on_corrupt: the run's own data is read in the same way as for training; leave "
            "it out, or name other images with --reference"
        )
    return None if exported(location) is None else _data_of_export(location, experiment)


def _moved(experiment: Experiment, named: str) -> Data:
    """The run's own data at another place, read as the run reads them. Their digest must match the
    run's."""
    run, kind = experiment.data.pictures, type(named_source(named, "--data", {}))
    return named_source(
        named, "--data", {}, {name: getattr(run, name) for name in _kept(run, kind)}
    )


def _kept(run: DataSettings, kind: type[DataSettings]) -> list[str]:
    """The fields that data of another kind, at another place, have in common with a run's."""
    own, theirs = type(run).model_fields, kind.model_fields
    both = [name for name in own if name in theirs and name not in ("kind", "path", "dataset")]
    if kind is type(run) or "labels" not in both:
        return both
    # Files of images have a file of labels, or folders. Tables have only a column, of another name.
    if own["labels"].annotation == theirs["labels"].annotation:
        return both
    of_labels = ("label_column", *(("labels",) if getattr(run, "labels") != "none" else ()))  # noqa: B009
    return [name for name in both if name not in of_labels]


def _data_of_export(location: str, experiment: Experiment) -> Data | None:
    """The data of an exported model. The export holds only the last part of a local path, so the
    data is looked for in the current folder. None: the settings are enough, e.g. a URI."""
    data = experiment.data.pictures.with_places(absolute_path)
    path = getattr(data, "path", "://")
    if "://" in path:
        return None
    if not Path(path).exists() and not set(path) & set("*?[{"):  # a pattern of tar files
        raise Refused(
            f"--reference: {location} was trained on {experiment.data.pictures.short_form}, and an "
            "export does not hold the whole path; name images to compare with, or start in the "
            f"folder that holds {Path(path).name}"
        )
    return data  # pyright: ignore[reportReturnType]
