"""`evaluation`: how good a run is, measured during training or after it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    create_model,
    field_validator,
)

from ray_gen.errors import Refused
from ray_gen.evaluation.metrics import ALL, BETTER, METRICS, metric_of, scores_of
from ray_gen.runs.names import run_folder
from ray_gen.settings import Component, Location, Settings, Told, free, or_its_kind


class InceptionFeatures(Component):
    """InceptionV3 with weights ported from TensorFlow: the features of FID's definition."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.inception:Inception"
    }
    kind: Literal["inception"] = "inception"
    weights: str | None = None
    """A file with the state dict of the network. None: downloaded on first use (91 MB)."""


class TorchvisionFeatures(Component):
    """A classifier of torchvision. Its features are the inputs of its last linear layer."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.torchvision:TorchvisionClassifier"
    }
    kind: Literal["torchvision"] = "torchvision"
    backbone: str
    """Name of the classifier in torchvision.models, e.g. resnet50."""
    weights: str | None = None
    """A file with the state dict of the network. None: torchvision's default weights, downloaded on
    first use."""


class Dinov2Features(Component):
    """DINOv2's ViT-L/14: with them `fid` is FD-DINOv2 (Stein et al. 2023)."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.transformers:Dinov2"
    }
    kind: Literal["dinov2"]
    weights: str | None = None
    """A file with the published state dict of a DINOv2: ViT-S, B or L, without registers. None:
    ViT-L/14's, downloaded on first use (1.2 GB)."""


class ClipFeatures(Component):
    """The image vectors of CLIP ViT-L/14 at 336 pixels: with them `mmd_rbf` is CMMD (Jayasumana et
    al. 2024)."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.transformers:Clip"
    }
    kind: Literal["clip"]
    weights: str | None = None
    """A file with the state dict of OpenAI's CLIP with a vision transformer, by Hugging Face's
    names. None: openai/clip-vit-large-patch14-336, downloaded on first use (1.7 GB)."""


class RunFeatures(Component):
    """The encoder or the discriminator of a trained run, for images that differ too much from
    ImageNet's."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.run:TrainedRun"
    }
    kind: Literal["run"] = "run"
    run: Location
    """The trained run: a run folder, a checkpoint or an exported model. Its model takes no
    labels."""
    part: Literal["auto", "encoder", "discriminator"] = "auto"
    """The network whose features are used. auto: the encoder if there is one, else the
    discriminator. An export has no discriminator."""


class CustomFeatures(Component):
    """Your own class. Its objects map uint8 images (N, 3, H, W) to float32 features (N, D)."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.custom:Custom"
    }
    kind: Literal["custom"] = "custom"
    target: str
    """The class, as package.module:Name. Every node must be able to import it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    @field_validator("target")
    @classmethod
    def _names_a_class(cls, target: str) -> str:
        if re.fullmatch(r"\w+(\.\w+)*:\w+", target) is None:
            raise ValueError(
                f"{target!r} names no class; write its module, a colon and its name, e.g. "
                "my_package.features:MyFeatures"
            )
        return target


def _inception_unless_named(given: Any) -> Any:
    """Adds the default kind, so that `evaluation.features.weights=FILE` alone is enough."""
    return {"kind": "inception", **given} if isinstance(given, dict) else given


_Features = (
    InceptionFeatures
    | TorchvisionFeatures
    | Dinov2Features
    | ClipFeatures
    | RunFeatures
    | CustomFeatures
)
FeatureSettings = Annotated[
    _Features,
    Field(discriminator="kind"),
    BeforeValidator(_inception_unless_named),
    or_its_kind(_Features),
]


class _ForAllMetrics(Settings):
    every_images: PositiveInt | None = free(None)
    """Training images between two evaluations during a run. None: no evaluation during a run."""
    metrics: tuple[str, ...] | Literal["auto"] = free("auto")
    """Names of the metrics to measure. auto: all metrics that can be measured, those of
    reconstructions (rfid, rkid, rsliced_wasserstein, psnr, ssim, lpips, codebook, latents) only of
    a model that makes no samples. Without the weights of the default `features`, those that need no
    weights."""
    count: Annotated[PositiveInt, Told(unit="images")] | None = free(None)
    """Number of images to generate, and of reference images to compare them with. A likelihood is
    measured on at most `count` held-out images. None: as many as the reference has, at most 50,000,
    and a likelihood on all held-out images; during a run at most a quarter of every_images, but at
    least 1,000."""
    reference: Literal["train", "held_out"] = free("train")
    """The split of the data that samples are compared with."""
    reconstructions: Literal["mode", "sample"] = free("mode")
    """What metrics of reconstructions decode. mode: the posterior's mean. sample: one draw from the
    posterior."""
    features: FeatureSettings = free(InceptionFeatures())
    """The network that extracts features from images, for the metrics on features."""
    weights: Literal["ema", "raw"] = free("ema")
    """The weights that are evaluated. During training always the EMA."""
    batch_size: Annotated[PositiveInt, Told(unit="images")] = free(64)
    """Images that go through a network at once, per worker."""
    seed: NonNegativeInt = free(0)
    """Seed of the samples, subsets and projections."""
    placement: Literal["inline", "beside"] = free("inline")
    """Where evaluations during training run. inline: the workers stop training and evaluate
    together. beside: a separate Ray task evaluates a saved checkpoint when the cluster has free
    resources."""

    def absolute(self) -> Self:
        """The settings with an absolute path of the run in `features`, if it names one. Raises
        Refused if there is no run of that name."""
        if not isinstance(self.features, RunFeatures):
            return self
        try:
            run = run_folder(self.features.run).location
        except Refused as refused:
            raise Refused(f"evaluation.features.run: {refused}") from None
        return self.model_copy(update={"features": self.features.model_copy(update={"run": run})})

    @property
    def is_beside(self) -> bool:
        """Whether each evaluation runs in its own task while the workers go on training."""
        return self.every_images is not None and self.placement == "beside"

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores that the metrics may give."""
        return scores_of(METRICS if self.metrics == "auto" else self.metrics)

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: Any) -> Any:
        if not metrics:
            raise ValueError("no metric is named; leave the field out to get all available metrics")
        if metrics != "auto" and len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice; name each once")
        for name in () if metrics == "auto" else metrics:
            if name in BETTER and name not in METRICS:
                whole = metric_of(name)
                raise ValueError(f"{name} is part of {whole}; set evaluation.metrics to {whole}")
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(METRICS)}"
                raise ValueError(f"there is no metric {name!r}{hint}")
        return metrics


if TYPE_CHECKING:

    class _OfEachMetric(_ForAllMetrics):
        """The fields of the metrics: see `Metric.settings_class`."""
else:
    _own = dict.fromkeys(kind.settings_class for kind in ALL if kind.settings_class is not Settings)
    _fields = [name for of in (*_own, _ForAllMetrics) for name in of.model_fields]
    if len(set(_fields)) < len(_fields):
        raise TypeError(f"two metrics have a field of one name: {sorted(_fields)}")
    _OfEachMetric = create_model("_OfEachMetric", __base__=(*_own, _ForAllMetrics))


class Evaluation(_OfEachMetric):
    """Metrics of samples against a reference, and of a model's likelihood. An evaluation never
    changes the run. Some fields belong to one metric and are defined in its file."""
