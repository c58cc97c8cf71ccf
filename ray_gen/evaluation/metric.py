"""What a metric is. Each is one file in `metrics/`, listed once in its `__init__`.

A metric owns its name, its settings, what it needs, its checks and its computation. Settings are
made of these classes, so their files import torch only where they compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from ray_gen.errors import Refused
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.scores import Better, Score
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from ray_gen.core import ImageShape
    from ray_gen.distributed import World
    from ray_gen.evaluation.embedding import Embedding, Need, Sizes
    from ray_gen.evaluation.extractors import Extractor
    from ray_gen.evaluation.images import Consumer, Images
    from ray_gen.evaluation.subject import Labelled, Subject

Set = Literal["generated", "reference", "held_out", "training"]
"""A set of images. held_out: images that were not trained on. training: all that were."""

OwnSettings = TypeVar("OwnSettings", bound=Settings)


class Lacking(Refused):
    """A metric cannot be had here. Where nobody named it, it is left out and `why` is told."""

    def __init__(self, message: str, why: str | None) -> None:
        """why: for a reader who did not ask for the metric. None: it need not be told."""
        self.why = why
        super().__init__(message)


@dataclass(frozen=True)
class Given:
    """What an evaluation gives to its metrics, alike on every rank."""

    world: World
    sets: Mapping[Set, Images] = field(default_factory=dict)
    """generated and reference, for metrics of samples; others where there are such images."""
    extractor: Extractor | None = None
    """What sees images for the metrics on features."""
    no_extractor: str | None = None
    """Why there is none, where nobody named one."""
    subject: Subject | None = None
    """The model that is evaluated. None: the generated images are somebody else's."""
    labelled: Labelled | None = None
    """The held-out images of the data, with their labels."""
    data: str = "the data"
    """Its name, for messages."""
    count: int | None = None
    """`evaluation.count`."""
    batch_size: int = 64
    """Images on the device at once, of each rank."""
    seed: int = 0
    automatic: bool = False
    """Whether nobody named the metrics: numbers that do not fit are made to fit."""
    cache_folder: Path | None = None
    """Where statistics of the reference are kept. None: nowhere."""
    progress: Progress = silent
    _shapes: dict[Set, ImageShape] = field(default_factory=dict, init=False, repr=False)

    @property
    def smallest(self) -> int:
        """Images of the smaller of the two sets."""
        return min(len(self.sets["generated"]), len(self.sets["reference"]))

    @property
    def shape(self) -> ImageShape:
        """(channels, height, width) of the generated images."""
        return self.shape_of("generated")

    def shape_of(self, name: Set) -> ImageShape:
        """(channels, height, width) of the first image of a set, which stands for all."""
        from ray_gen.evaluation.images import shape_of

        if name not in self._shapes:
            self._shapes[name] = shape_of(self.sets[name], name.replace("_", "-"))
        return self._shapes[name]

    @cached_property
    def sizes(self) -> Sizes:
        """Of what the extractor gives for an image."""
        from ray_gen.evaluation.embedding import Sizes

        assert self.extractor is not None
        return Sizes.of(self.extractor, self.sets["generated"].take([0]))

    def described(self, name: Set, images: int | None = None) -> dict[str, Any]:
        """A set for a protocol. images: how many of it were looked at; None: all."""
        of = self.sets[name]
        return {**of.description, "images": len(of) if images is None else images}


class Metric(ABC, Generic[OwnSettings]):
    """Measures one or several values that belong together. One object is one evaluation."""

    scores: ClassVar[Mapping[str, Better]]
    """Names of the values that it yields at most, and which is the better one."""
    asked_as: ClassVar[tuple[str, ...]] = ()
    """What `evaluation.metrics` calls it. Empty: by the names of its values."""
    of_samples: ClassVar[bool] = True
    """Whether it looks at generated images and a reference."""
    needs_weights: ClassVar[bool] = False
    """Whether it looks at images through an extractor, whose weights have to be there."""
    compares_pixels: ClassVar[bool] = False
    """Whether both sets must have one height and width."""
    settings_class: ClassVar[type[Settings]] = Settings
    """Its own fields in `evaluation`, by names that no other metric has."""

    def __init__(self, settings: OwnSettings, given: Given) -> None:
        self.settings = settings
        self.given = given

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names that `evaluation.metrics` takes for it."""
        return cls.asked_as or tuple(cls.scores)

    def compares_with(self) -> Sequence[Set]:
        """The sets that it compares the generated images with."""
        return ("reference",) if self.of_samples else ()

    def check(self) -> None:
        """Refuse what cannot be measured, alike on every rank, before anything is computed.

        Raises Lacking for what is not here, Refused for settings that do not fit.
        """

    def sees(self, name: Set) -> Sequence[Consumer]:
        """What looks at each batch of the pass over a set of images."""
        return ()

    @abstractmethod
    def measure(self) -> Iterator[Score]:
        """The values, after the passes. Of samples, the protocol says only what is this metric's
        own. Collective: every rank, same order."""


class FeatureMetric(Metric[OwnSettings]):
    """Compares what an extractor sees in both sets. All such metrics share one pass over each set;
    one of the ranks computes each metric."""

    needs_weights = True
    needs: ClassVar[frozenset[Need]]

    @abstractmethod
    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        """Name, value and spread of each of `scores`, in their order. On one rank only."""

    def protocol(self) -> Mapping[str, Any]:
        """What the protocol says of this metric beside the extractor."""
        return {}

    def measure(self) -> Iterator[Score]:
        """Not called: see `comparison.measured`, which shares the work of all such metrics."""
        raise NotImplementedError
