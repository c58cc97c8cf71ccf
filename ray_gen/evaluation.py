"""What a model is worth: samples against real images, and a VAE's likelihood, on all workers."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ray_gen.core import Bounds, Networks, Objective
from ray_gen.data import Split, Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluators.base import Extractor, Images, Progress, Score, silent
from ray_gen.evaluators.images import as_rgb, chosen, quantised
from ray_gen.evaluators.likelihood import likelihood_scores
from ray_gen.evaluators.names import LIKELIHOOD, METRICS, NEED_NO_WEIGHTS
from ray_gen.evaluators.samples import sample_scores
from ray_gen.experiment import Experiment
from ray_gen.experiment.data import Data
from ray_gen.experiment.evaluation import CustomFeatures, Evaluation, InceptionFeatures
from ray_gen.pipeline import Pipeline, load
from ray_gen.pipeline.pretrained import is_pretrained, read_config
from ray_gen.sampling import sampled
from ray_gen.storage import Folder
from ray_gen.training.build import DTYPES, class_of, import_target
from ray_gen.training.sources import cache_folder, open_source

COUNT = 50_000
"""Images to generate where the settings do not say, or as many as the reference has."""


@dataclass(frozen=True)
class Model:
    """What is evaluated: networks in eval mode, on the worker's device."""

    experiment: Experiment
    objective: Objective
    networks: Networks
    description: Mapping[str, Any]
    """For the protocol: the run, the images that it has seen, which weights."""


class Samples:
    """Images that a model draws: image i is a function of (seed, i) and its label alone."""

    digest = None

    def __init__(self, model: Model, count: int, labels: Tensor | None, seed: int) -> None:
        assert model.objective.has_prior
        self._model, self._count, self._labels, self._seed = model, count, labels, seed
        first = next(iter(model.networks.parameters()))
        self._device, self._dtype = first.device, first.dtype
        self.description = {**model.description, "seed": seed}
        if labels is not None:
            self.description["labels"] = "drawn evenly from those of the whole reference"

    def __len__(self) -> int:
        return self._count

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 (N, C, H, W)"""
        model, numbers = self._model, torch.tensor(indices, device=self._device)
        labels = None if self._labels is None else self._labels[numbers]
        return quantised(
            sampled(
                model.objective,
                model.networks,
                self._seed,
                "evaluation",
                numbers,
                labels,
                self._dtype,
            )
        )


class Stored:
    """A split of a store."""

    def __init__(self, store: Store, split: str, name: str, device: torch.device) -> None:
        self.images: Split = store.train if split == "train" else store.held_out
        self._device = device
        self.description = {"data": name, "split": split}
        if store.stream is not None and split == "train":
            sample = f"a sample of {len(self.images):,} of {store.stream.rows:,} images"
            self.description["split"] = f"train, {sample}"
        self.digest = None if store.digest is None else f"{store.digest} {split}"

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 (N, C, H, W)"""
        pixels = self.images.images_NHWC[torch.tensor(indices)]
        return pixels.to(self._device).permute(0, 3, 1, 2).contiguous()


class Evaluator:
    """Evaluates models of one run, as often as it is asked, against one store.

    Its extractor is built once. Every method is collective: every rank, same order.
    """

    def __init__(
        self,
        settings: Evaluation,
        store: Store,
        name: str,
        world: World,
        progress: Progress = silent,
        trained_on: bool = True,
    ) -> None:
        """name: of the data, for the protocol. trained_on: whether its training split is what the
        model was trained on, or pictures are compared with. Raises Refused."""
        self.settings = settings
        self._store, self._name, self._world, self._progress = store, name, world, progress
        self._trained_on = trained_on
        self._auto = settings.metrics == "auto"
        self.metrics: list[str] = (
            [*METRICS, LIKELIHOOD] if settings.metrics == "auto" else list(settings.metrics)
        )
        self.without: list[str] = []
        self._extractor: Extractor | None = None
        if any(name in METRICS and METRICS[name].needs_weights for name in self.metrics):
            self._build_extractor()

    def scores(self, model: Model, *, check_only: bool = False) -> Scores:
        """All scores that were asked for and that the model has. check_only: none, but everything
        that can be refused is."""
        found: list[Score] = []
        asked = [name for name in self.metrics if name in METRICS]
        if not model.objective.has_prior:
            why = f"the objective {model.experiment.objective.kind} has no prior to sample from"
            if asked and not self._auto:
                raise Refused(f"evaluation.metrics: {asked[0]}: {why}")
            self._leave_out(asked, why)
        elif asked:
            found += self._sample_scores(model, asked, check_only)
        if LIKELIHOOD in self.metrics:
            found += self._likelihood_scores(model, check_only)
        return Scores(tuple(found), tuple(self.without))

    def compared(self, generated: Images, reference: Images) -> Scores:
        """The scores of images that are there already."""
        asked = [name for name in self.metrics if name in METRICS]
        found = self._compared(generated, reference, asked)
        return Scores(tuple(found), tuple(self.without))

    def _build_extractor(self) -> None:
        """On every rank, or on none: one rank may lack the network or the file."""
        features = self.settings.features
        refusal: Refused | None = None
        try:
            build = import_target(features.targets["extractor"], "evaluation.features.kind")
            arguments = features.arguments()
            if isinstance(features, CustomFeatures):
                field = "evaluation.features.target"
                arguments["factory"] = class_of(features.target, field, "__call__")
            self._extractor = build(**arguments, device=self._world.device)
        except Refused as refused:
            refusal = refused
        if not self._world.maxima([int(refusal is not None)])[0]:
            return
        refusal = refusal or Refused("evaluation.features: another worker cannot build them")
        # What was asked for must be there; only what nobody named may be missing.
        if not self._auto or features != InceptionFeatures():
            raise refusal
        self._extractor = None
        self._leave_out(
            [name for name in self.metrics if name in METRICS and name not in NEED_NO_WEIGHTS],
            str(refusal),
        )

    def _leave_out(self, names: Sequence[str], why: str) -> None:
        """Metrics that `auto` asks for and that cannot be had."""
        names = [name for name in names if name in self.metrics]
        if names:
            self.metrics = [name for name in self.metrics if name not in names]
            self.without.append(f"{', '.join(names)}: {why}")

    def _sample_scores(self, model: Model, metrics: Sequence[str], check_only: bool) -> list[Score]:
        reference = self.reference(self.settings.reference)
        count = self._count(reference)
        labels = None
        if model.experiment.needs_labels:
            # In the reference's proportions: a metric sees the classes that the model was told.
            theirs = reference.images.labels
            if theirs is None:
                raise Refused(
                    f"evaluation.reference: {self._name} has no labels, which a conditional model's"
                    " samples are drawn by"
                )
            labels = theirs[torch.arange(count) * len(theirs) // count].to(self._world.device)
        samples = Samples(model, count, labels, self.settings.seed)
        return self._compared(samples, reference, metrics, check_only)

    def reference(self, split: str) -> Stored:
        """A split of the store that has images."""
        found = Stored(self._store, split, self._name, self._world.device)
        if not len(found):
            raise Refused(
                f"evaluation.reference: {self._name} has no {split} images; set it to train, or "
                "data.held_out_fraction to 0.1"
            )
        return found

    def _count(self, reference: Images) -> int:
        return self.settings.count or min(COUNT, len(reference))

    def _compared(
        self,
        generated: Images,
        reference: Images,
        metrics: Sequence[str],
        check_only: bool = False,
    ) -> list[Score]:
        settings, device = self.settings, self._world.device
        count = settings.count or min(COUNT, len(generated), len(reference))
        subset = settings.kid_subset_size
        held_out = Stored(self._store, "held_out", self._name, device)
        training = Stored(self._store, "train", self._name, device) if self._trained_on else None
        if self._auto:
            subset = min(subset, count)
            self._leave_out_what_lacks(generated, held_out)
            metrics = [name for name in metrics if name in self.metrics]
        return sample_scores(
            metrics,
            chosen(generated, count, settings.seed, "evaluation.count"),
            chosen(reference, count, settings.seed, "evaluation.count"),
            extractor=self._extractor,
            training=training,
            held_out=held_out if len(held_out) else None,
            world=self._world,
            batch_size=settings.batch_size,
            seed=settings.seed,
            cache_folder=cache_folder() / "references",
            kid_subsets=settings.kid_subsets,
            kid_subset_size=subset,
            neighbours=settings.neighbours,
            density_neighbours=settings.density_neighbours,
            progress=self._progress,
            check_only=check_only,
        )

    def _leave_out_what_lacks(self, generated: Images, held_out: Images) -> None:
        if not self._trained_on:
            self._leave_out(["nearest_neighbour"], "the reference is not what was trained on")
        if not len(held_out):
            self._leave_out(["nearest_neighbour"], f"{self._name} has no held-out images")
        if self._extractor is not None and "inception_score" in self.metrics:
            with torch.no_grad():
                seen = self._extractor(as_rgb(generated.take([0])))
            if seen.logits is None:
                self._leave_out(
                    ["inception_score"], f"{self._extractor.name} gives no class scores"
                )

    def _likelihood_scores(self, model: Model, check_only: bool) -> list[Score]:
        held_out, count = self._store.held_out, self.settings.count
        if not isinstance(model.objective, Bounds):
            if self._auto:
                return []
            raise Refused(
                f"evaluation.metrics: {LIKELIHOOD}: the objective "
                f"{model.experiment.objective.kind} has none"
            )
        if not len(held_out):
            why = f"it is measured on held-out images, and {self._name} has none"
            if self._auto:
                self._leave_out([LIKELIHOOD], why)
                return []
            remedy = "name other images"
            if self._trained_on:
                remedy = "set data.held_out_fraction to 0.1"
            raise Refused(f"evaluation.metrics: {LIKELIHOOD}: {why}; {remedy}")
        if check_only:
            return []
        return likelihood_scores(
            model.objective,
            model.networks,
            held_out,
            samples=self.settings.importance_samples,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            world=self._world,
            conditional=model.experiment.needs_labels,
            dtype=DTYPES[model.experiment.training.precision],
            count=None if count is None else min(count, len(held_out)),
            description={**model.description, "data": self._name, "split": "held_out"},
            progress=self._progress,
        )


@dataclass(frozen=True)
class Scores:
    """What an evaluation found: `scores["fid"].value`."""

    scores: tuple[Score, ...]
    without: tuple[str, ...] = ()
    """What was left out and why, where nobody named the metrics."""

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(f"{name}; there are {', '.join(score.name for score in self.scores)}")

    def as_json(self) -> dict[str, Any]:
        """What JSON holds."""
        found = [
            {"name": s.name, "value": s.value, "spread": s.spread, "protocol": dict(s.protocol)}
            for s in self.scores
        ]
        return {"scores": found, "without": list(self.without)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Scores:
        """What `as_json` gave."""
        return cls(tuple(Score(**score) for score in given["scores"]), tuple(given["without"]))

    def as_metrics(self) -> dict[str, float]:
        """By tag, as a report holds them."""
        metrics: dict[str, float] = {}
        for score in self.scores:
            metrics[f"evaluation/{score.name}"] = score.value
            if score.spread is not None:
                metrics[f"evaluation/{score.name}_spread"] = score.spread
        return metrics


@dataclass(frozen=True)
class Request:
    """One evaluation, as it is told to workers."""

    run: str | None
    """A run folder, a checkpoint or what `export` wrote, by its absolute path or URI; None to
    compare pictures."""
    generated: Data | None
    """Pictures in the place of a run's samples."""
    reference: Data | None
    """None: the run's own data. With a digest it must be the data of that digest."""
    settings: Evaluation

    def to_json(self) -> str:
        """All of it as text."""
        parts = {
            "generated": self.generated,
            "reference": self.reference,
            "settings": self.settings,
        }
        told = {name: part and part.model_dump(mode="json") for name, part in parts.items()}
        return json.dumps({"run": self.run, **told})

    @classmethod
    def from_json(cls, text: str) -> Request:
        """What `to_json` wrote."""
        given = json.loads(text)
        data: TypeAdapter[Data] = TypeAdapter(Data)
        sources = {
            name: given[name] and data.validate_python(given[name])
            for name in ("generated", "reference")
        }
        return cls(given["run"], **sources, settings=Evaluation.model_validate(given["settings"]))


def measure(request: Request, world: World, progress: Progress = silent) -> Scores:
    """All scores of a request. Collective: every rank, same order."""
    decoded = partial(_decoded, progress)
    if request.run is None:
        assert request.generated is not None and request.reference is not None
        with _named_by("--generated"):
            pictures = open_source(request.generated, decoded)
        with _named_by("--reference"):
            store = open_source(request.reference, decoded)
        evaluator = Evaluator(request.settings, store, name_of(request.reference), world, progress)
        reference = evaluator.reference(request.settings.reference)
        generated = Stored(pictures, "train", name_of(request.generated), world.device)
        return evaluator.compared(generated, reference)
    pipeline = load(request.run, weights=request.settings.weights, device=world.device)
    data = request.reference or pipeline.experiment.data
    with nullcontext() if request.reference is None else _named_by("--reference"):
        store = open_source(data, decoded)
    if store.image_shape != pipeline.experiment.image_shape:
        raise Refused(
            f"--reference: its images are {store.image_shape} (channels, height, width) and the "
            f"run's {pipeline.experiment.image_shape}"
        )
    if None not in (data.digest, store.digest) and store.digest != data.digest:
        raise Refused(
            f"data: {name_of(data)} is not what {request.run} was trained on: its images have "
            "changed since; put the old ones back, or name what to compare with by --reference"
        )
    own = request.reference is None or store.digest == pipeline.experiment.data.digest
    evaluator = Evaluator(request.settings, store, name_of(data), world, progress, trained_on=own)
    described = _described(request, pipeline)
    model = Model(pipeline.experiment, pipeline.objective, pipeline.networks, described)
    return evaluator.scores(model)


def exported(run: str) -> Path | None:
    """The folder of a model that `export` wrote; None of a run or checkpoint."""
    folder = Folder(run)
    return folder.path if folder.is_local and is_pretrained(folder.path) else None


def _described(request: Request, pipeline: Pipeline) -> dict[str, Any]:
    """What a protocol says of the model of a request."""
    assert request.run is not None
    images, weights = pipeline.images_seen, request.settings.weights
    folder = exported(request.run)
    if folder is not None:
        _, facts = read_config(folder)
        images, weights = facts.images, facts.weights
    return {"run": request.run, "images seen": images, "weights": weights}


@contextmanager
def _named_by(option: str) -> Generator[None]:
    """What is wrong with a source, by the option that named it in the place of its own fields."""
    try:
        yield
    except Refused as refused:
        told = re.sub(r"\bdata\.(path|dataset)\b", option, str(refused))
        told = re.sub(r"\bset data\.kind=(\w+)", r"write \1:PATH", told)
        raise Refused(told) from refused


def _decoded(progress: Progress, done: int, total: int) -> None:
    progress(done, total, "decoding images")


def name_of(data: Data) -> str:
    """Data as it is named on a command line."""
    for field in ("path", "dataset"):
        if hasattr(data, field):
            return f"{data.kind}:{getattr(data, field)}"
    return data.kind
