"""Measures models against one data set, during training and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ray_gen.core import Encodes, Networks, Objective, Reconstructs
from ray_gen.data import Split, Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.comparison import Comparison, or_without_weights
from ray_gen.evaluation.extractors import Extractor
from ray_gen.evaluation.images import Images, Subset, subset_of
from ray_gen.evaluation.metric import Given, Set
from ray_gen.evaluation.metrics import METRICS
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.reconstructions import Originals, Reconstructed, has_codes
from ray_gen.evaluation.scores import Scores
from ray_gen.evaluation.subject import SampledImages, Subject
from ray_gen.experiment import Experiment
from ray_gen.experiment.evaluation import (
    CustomFeatures,
    Evaluation,
    FeatureSettings,
    InceptionFeatures,
)
from ray_gen.pixels import selected
from ray_gen.training.build import DTYPES, class_of, import_target
from ray_gen.training.sources import cache_folder, open_source, with_labels_of

LEAST_COUNT = 1_000
"""Fewer images than this give scores that are mostly noise."""
SHARE_OF_TRAINING = 0.25
"""Images to generate in an evaluation, for each image trained between two evaluations."""
COUNT = 50_000
"""Images to generate if `evaluation.count` is not set, but never more than the reference has."""


def subject_of(
    experiment: Experiment,
    objective: Objective,
    networks: Networks,
    description: Mapping[str, Any],
) -> Subject:
    """A model of an experiment as Subject. networks: in eval mode. description: see Subject."""
    return Subject(
        objective,
        networks,
        kind=experiment.objective.kind,
        conditional=experiment.needs_labels,
        dtype=DTYPES[experiment.training.precision],
        description=description,
        bits=experiment.data.pictures.bits,
        opacity=experiment.data.pictures.has_opacity(),
    )


def during_training(
    experiment: Experiment,
    objective: Objective,
    networks: Networks,
    store: Store,
    world: World,
    progress: Progress = silent,
) -> tuple[Evaluator, Comparison]:
    """What evaluates the models of a run, and its comparison for these networks. Raises Refused for
    what cannot be measured. Collective: every rank, same order."""
    store = images_of(experiment, store)
    seen = with_labels_of(store, experiment, "data")
    name = experiment.data.pictures.short_form
    settings = fitting(experiment.evaluation, seen)
    evaluator = Evaluator(settings, seen, name, world, progress)
    subject = subject_of(experiment, objective, networks, {"weights": "ema"})
    return evaluator, evaluator.checked(subject)


def images_of(experiment: Experiment, store: Store) -> Store:
    """The images that samples are compared with: those of the store, or the images whose latents it
    holds. Raises Refused."""
    pictures = experiment.data.pictures
    if pictures is experiment.data:
        return store
    try:
        return open_source(pictures)
    except Refused as refused:
        raise Refused(
            f"data.encoded: samples are compared with the images that were encoded, and these"
            f" cannot be read ({refused}); put them back, or set evaluation.every_images=null and"
            " compare later with ray-gen evaluate RUN --reference IMAGES"
        ) from refused


def fitting(settings: Evaluation, store: Store) -> Evaluation:
    """The settings with a `count` that fits a run that evaluates every so many images, if none is
    set: an evaluation must not take longer than the training between two of them."""
    reference = store.train if settings.reference == "train" else store.held_out
    if settings.count is not None or settings.every_images is None or not len(reference):
        return settings
    fits = max(LEAST_COUNT, round(settings.every_images * SHARE_OF_TRAINING))
    return settings.model_copy(update={"count": min(fits, COUNT, len(reference))})


class SplitImages:
    """The images of one split of a store. In a data set that is streamed, "train" is a sample."""

    def __init__(self, store: Store, split: str, name: str, device: torch.device) -> None:
        """split: "train" or "held_out". name: name of the data, for the protocol."""
        self.split: Split = store.train if split == "train" else store.held_out
        self._device = device
        self.description = {"data": name, "split": split}
        if store.stream is not None and split == "train":
            sample = f"a sample of {len(self.split):,} of {store.stream.rows:,} images"
            self.description["split"] = f"train, {sample}"
        self.digest = None if store.digest is None else f"{store.digest} {split}"

    def __len__(self) -> int:
        return len(self.split)

    def take(self, indices: Sequence[int]) -> Tensor:
        """(N, C, H, W) on the device: uint8, 0 to 255, or uint16, 0 to 65,535."""
        pixels = selected(self.split.images_NHWC, torch.tensor(indices))
        return pixels.to(self._device).permute(0, 3, 1, 2).contiguous()


class Evaluator:
    """Measures models against the images of one store, as often as it is called.

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
        """name: name of the data, for the protocol. trained_on: whether the training split of the
        store counts as the images that the model was trained on. Raises Refused."""
        self.settings = settings
        self._store, self._name, self._world, self._progress = store, name, world, progress
        self._trained_on = trained_on
        self._automatic = settings.metrics == "auto"
        self._asked = list(METRICS) if settings.metrics == "auto" else list(settings.metrics)
        self._extractor: Extractor | None = None
        self._no_extractor: str | None = None
        self._refusal: Refused | None = None
        """Why there is no extractor, although the user named a metric that needs one."""
        if any(METRICS[name].needs_weights for name in self._asked):
            self._build_extractor()

    def scores(self, subject: Subject) -> Scores:
        """Measures a model. Raises Refused."""
        return self.checked(subject).scores()

    def checked(self, subject: Subject) -> Comparison:
        """The comparison that measures a model. Nothing is measured yet. Raises Refused for what
        cannot be measured."""
        self._check_extractor(subject)
        sets: dict[Set, Images] = {}
        if subject.objective.has_prior and any(METRICS[name].of_samples for name in self._asked):
            reference = self.reference(self.settings.reference)
            count = self.settings.count or min(COUNT, len(reference))
            labels = self._labels(reference, count) if subject.conditional else None
            generated = SampledImages(subject, count, labels, self.settings.seed)
            sets = {"generated": generated, "reference": reference}
        return Comparison(self._asked, self.settings, self._given(sets, subject, subject.opacity))

    def comparison_of(
        self, generated: Images, reference: Images, opacity: bool = False
    ) -> Comparison:
        """The comparison that measures images that exist already, e.g. pictures of another tool.
        opacity: whether their last channel is opacity. Raises Refused for what cannot be
        measured."""
        self._check_extractor(None)
        given = self._given({"generated": generated, "reference": reference}, None, opacity)
        return Comparison(self._asked, self.settings, given)

    def reference(self, split: str) -> SplitImages:
        """A split of the store: "train" or "held_out". Raises Refused if it has no images."""
        found = SplitImages(self._store, split, self._name, self._world.device)
        if not len(found):
            raise Refused(
                f"evaluation.reference: {self._name} has no {split} images; set "
                f"evaluation.reference to train, or {self._store.to_hold_out}"
            )
        return found

    def _given(self, sets: dict[Set, Images], subject: Subject | None, opacity: bool) -> Given:
        settings, device = self.settings, self._world.device
        if sets:
            count = settings.count or min(COUNT, *(len(images) for images in sets.values()))
            sets = {
                name: subset_of(images, count, settings.seed, "evaluation.count")
                for name, images in sets.items()
            }
        sets |= self._reconstructions(subject)
        if self._trained_on:
            sets["training"] = SplitImages(self._store, "train", self._name, device)
        if len(self._store.held_out):
            sets["held_out"] = SplitImages(self._store, "held_out", self._name, device)
        return Given(
            self._world,
            sets,
            extractor=self._extractor,
            no_extractor=self._no_extractor,
            subject=subject,
            opacity=opacity,
            labelled=self._store.held_out,
            data=self._name,
            count=settings.count,
            batch_size=settings.batch_size,
            seed=settings.seed,
            automatic=self._automatic,
            default_extractor=self._automatic and settings.features == InceptionFeatures(),
            cache_folder=cache_folder() / "references",
            progress=self._progress,
        )

    def _reconstructions(self, subject: Subject | None) -> dict[Set, Images]:
        """The held-out images, all or `evaluation.count` of them at random, and what the model
        makes of them. Nothing if the model cannot reconstruct, or there are no such images."""
        split, settings = self._store.held_out, self.settings
        asked = any(METRICS[name].of_reconstructions for name in self._asked)
        objective = None if subject is None else subject.objective
        if not asked or not isinstance(objective, (Reconstructs, Encodes)) or not len(split):
            return {}
        if split.images_NHWC.dtype.is_floating_point:  # maps have no levels
            return {}
        assert subject is not None
        images: Images = SplitImages(self._store, "held_out", self._name, self._world.device)
        count = min(settings.count or len(images), len(images))
        images = subset_of(images, count, settings.seed, "evaluation.count")
        labels = split.labels if subject.conditional else None
        if labels is not None and isinstance(images, Subset):
            labels = labels[images.numbers]
        originals = Originals(images, labels, subject)
        if not isinstance(objective, Reconstructs):
            return {"originals": originals}
        drawn = settings.reconstructions == "sample"
        if drawn and (has_codes(objective) or not isinstance(objective, Encodes)):
            raise Refused(
                f"evaluation.reconstructions: sample draws from a posterior, and the objective "
                f"{subject.kind} has none here; set evaluation.reconstructions to mode"
            )
        made = Reconstructed(subject, originals, settings.seed, drawn=drawn)
        return {"originals": originals, "reconstructed": made}

    def _labels(self, reference: SplitImages, count: int) -> Tensor:
        """Labels for `count` samples: int64 (count,), in the proportions of the whole reference. So
        both sets hold the same classes."""
        theirs = reference.split.labels
        if theirs is None:
            raise Refused(
                f"evaluation.reference: {self._name} has no labels, and a conditional model needs "
                "labels to generate samples; name data with labels"
            )
        return theirs[torch.arange(count) * len(theirs) // count].to(self._world.device)

    def _check_extractor(self, subject: Subject | None) -> None:
        """Raises Refused if the extractor that the user needs could not be built. The remedy names
        metrics that fit the model."""
        if self._refusal is not None:
            raise Refused(f"{self._refusal}; {or_without_weights(subject)}") from self._refusal

    def _build_extractor(self) -> None:
        """Builds the extractor on all ranks or on none. One rank alone may lack internet access or
        the file."""
        features = self.settings.features
        refusal: Refused | None = None
        try:
            self._extractor = extractor_of(features, self._world.device)
        except Refused as refused:
            refusal = refused
        if not self._world.maxima([int(refusal is not None)])[0]:
            return
        refusal = refusal or Refused("evaluation.features: another worker could not build them")
        # Features that the user named must exist. Only the default may be missing.
        if not self._automatic or features != InceptionFeatures():
            if not str(refusal).startswith("evaluation.features.weights"):
                raise refusal
            self._refusal = refusal
            return
        self._extractor, self._no_extractor = None, str(refusal)


def extractor_of(features: FeatureSettings, device: torch.device) -> Extractor:
    """The extractor that `evaluation.features` describes. Raises Refused."""
    build = import_target(features.targets["extractor"], "evaluation.features.kind")
    arguments = features.arguments()
    if isinstance(features, CustomFeatures):
        field = "evaluation.features.target"
        arguments["factory"] = class_of(features.target, field, "__call__")
    return build(**arguments, device=device)
