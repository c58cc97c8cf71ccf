"""`evaluation`: what a run is worth, measured while it trains or after it."""

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

from ray_gen.evaluation.metrics import ALL, METRICS, scores_of
from ray_gen.settings import Component, Location, Settings, absolute_path, free


class InceptionFeatures(Component):
    """InceptionV3 with the weights that were ported from TensorFlow: what FID is defined with."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.inception:Inception"
    }
    kind: Literal["inception"] = "inception"
    weights: str | None = None
    """A file with its state dict. None: fetched on first use (91 MB)."""


class TorchvisionFeatures(Component):
    """A classifier of torchvision; its features are the inputs of its last linear layer."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.torchvision:Torchvision"
    }
    kind: Literal["torchvision"] = "torchvision"
    backbone: str
    """Its name in torchvision.models, e.g. resnet50."""
    weights: str | None = None
    """A file with its state dict. None: torchvision's default weights, fetched on first use."""


class RunFeatures(Component):
    """The encoder or the discriminator of a trained run, for images that ImageNet's features do not
    know."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.run:TrainedRun"
    }
    kind: Literal["run"] = "run"
    run: Location
    """A run folder, a checkpoint or an exported model. Its model takes no labels."""
    part: Literal["auto", "encoder", "discriminator"] = "auto"
    """What sees the images. auto: the encoder if there is one. An export has no discriminator."""


class CustomFeatures(Component):
    """A class of your own that maps uint8 images (N, 3, H, W) to features (N, D)."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluation.extractors.custom:Custom"
    }
    kind: Literal["custom"] = "custom"
    target: str
    """package.module:Name, importable on every node."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments."""

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
    """So that `evaluation.features.weights=FILE` alone is enough."""
    return {"kind": "inception", **given} if isinstance(given, dict) else given


Features = Annotated[
    Annotated[
        InceptionFeatures | TorchvisionFeatures | RunFeatures | CustomFeatures,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_inception_unless_named),
]


class _ForAllMetrics(Settings):
    every_images: PositiveInt | None = free(None)
    """Images between two evaluations while the run trains. None: none."""
    metrics: tuple[str, ...] | Literal["auto"] = free("auto")
    """Names of metrics. auto: all that can be had; without the weights of `features`, those that
    need none."""
    count: PositiveInt | None = free(None)
    """Images to generate, and images of the reference to compare them with. None: as many as the
    reference has, at most 50,000. A likelihood is measured on at most `count` held-out images.
    None: on all."""
    reference: Literal["train", "held_out"] = free("train")
    """The split that samples are compared with."""
    features: Features = free(InceptionFeatures())
    """What looks at images for metrics on features."""
    weights: Literal["ema", "raw"] = free("ema")
    """Which weights are sampled from. While a run trains it is the EMA."""
    batch_size: PositiveInt = free(64)
    """Images that go through a network at once."""
    seed: NonNegativeInt = free(0)
    """Of the samples, of subsets and of projections."""
    placement: Literal["inline", "beside"] = free("inline")
    """inline: the workers stop training and evaluate together. beside: a Ray task of its own, where
    the cluster has resources left, on a saved checkpoint."""

    def absolute(self) -> Self:
        """The same, with the path of a run made absolute, against where this process runs."""
        if not isinstance(self.features, RunFeatures):
            return self
        run = absolute_path(self.features.run)
        return self.model_copy(update={"features": self.features.model_copy(update={"run": run})})

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores that these metrics may give."""
        return scores_of(METRICS if self.metrics == "auto" else self.metrics)

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: Any) -> Any:
        if not metrics:
            raise ValueError("no metric is named; leave the field out for all that can be had")
        if metrics != "auto" and len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice; name each once")
        for name in () if metrics == "auto" else metrics:
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(METRICS)}"
                raise ValueError(f"there is no metric {name!r}{hint}")
        return metrics


if TYPE_CHECKING:

    class _OfEachMetric(_ForAllMetrics):
        """The fields that the metrics own: see `Metric.settings_class`."""
else:
    _own = dict.fromkeys(kind.settings_class for kind in ALL if kind.settings_class is not Settings)
    _OfEachMetric = create_model("_OfEachMetric", __base__=(*_own, _ForAllMetrics))


class Evaluation(_OfEachMetric):
    """Metrics of samples against a reference, and of a model's likelihood. Measuring changes
    nothing of the run. Some fields belong to one metric and stand in its file."""
