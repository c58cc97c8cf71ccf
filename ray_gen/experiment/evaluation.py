"""`evaluation`: what a run is worth, measured while it trains or after it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, field_validator

from ray_gen.evaluators.names import LIKELIHOOD, LIKELIHOOD_SCORES, METRICS
from ray_gen.experiment.settings import Component, Settings, free


class InceptionFeatures(Component):
    """InceptionV3 with the weights that were ported from TensorFlow: what FID is defined with."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluators.extractors.inception:Inception"
    }
    kind: Literal["inception"] = "inception"
    weights: str | None = None
    """A file with its state dict. None: fetched on first use (91 MB)."""


class TorchvisionFeatures(Component):
    """A classifier of torchvision; its features are the inputs of its last linear layer."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluators.extractors.torchvision:Torchvision"
    }
    kind: Literal["torchvision"] = "torchvision"
    backbone: str
    """Its name in torchvision.models, e.g. resnet50."""
    weights: str | None = None
    """A file with its state dict. None: torchvision's default weights, fetched on first use."""


class CustomFeatures(Component):
    """A class of your own that maps uint8 images (N, 3, H, W) to features (N, D)."""

    targets: ClassVar[Mapping[str, str]] = {
        "extractor": "ray_gen.evaluators.extractors.custom:Custom"
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
        InceptionFeatures | TorchvisionFeatures | CustomFeatures, Field(discriminator="kind")
    ],
    BeforeValidator(_inception_unless_named),
]


class Evaluation(Settings):
    """Metrics of samples against a reference, and of a VAE's likelihood. Measuring changes nothing
    of the run."""

    every_images: PositiveInt | None = free(None)
    """Images between two evaluations while the run trains. None: none."""
    metrics: tuple[str, ...] | Literal["auto"] = free("auto")
    """auto: those that need no weights, and with weights at hand all of them."""
    count: PositiveInt | None = free(None)
    """Images to generate, and of the reference to compare them with; of the held-out images, if
    there are more, so many are chosen for the likelihood. None: as many as the reference has, at
    most 50,000, and all held-out images."""
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
    kid_subsets: PositiveInt = free(100)
    """Subsets that KID is averaged over."""
    kid_subset_size: PositiveInt = free(1000)
    """Images of each."""
    neighbours: PositiveInt = free(3)
    """k of precision and recall (Kynkäänniemi et al. 2019: 3)."""
    density_neighbours: PositiveInt = free(5)
    """k of density and coverage (Naeem et al. 2020: 5)."""
    importance_samples: PositiveInt = free(100)
    """K of a VAE's importance-weighted bound; 5000 is what papers report."""
    placement: Literal["inline", "beside"] = free("inline")
    """inline: the workers stop training and evaluate together. beside: a Ray task of its own, where
    the cluster has resources left, on a saved checkpoint."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores that these metrics may give."""
        asked = (*METRICS, LIKELIHOOD) if self.metrics == "auto" else self.metrics
        named = [(name,) if name in METRICS else tuple(LIKELIHOOD_SCORES) for name in asked]
        return tuple(name for names in named for name in names)

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: Any) -> Any:
        if not metrics:
            raise ValueError("no metric is named; leave the field out for all that can be had")
        if metrics != "auto" and len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice; name each once")
        for name in () if metrics == "auto" else metrics:
            if name not in (*METRICS, LIKELIHOOD):
                known = (*METRICS, LIKELIHOOD)
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
                raise ValueError(f"there is no metric {name!r}{hint}")
        return metrics
