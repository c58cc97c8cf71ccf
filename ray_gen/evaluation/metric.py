"""The base classes of metrics. A metric is one file in `metrics/`, listed once in its `__init__`.

The file owns the metric's name, settings, needs, checks and computation. A long computation may
stand in a file of its own (`patches.py`). `metrics/mmd_rbf.py` is the example to copy. The settings
tree imports all these files, so they import torch only inside functions.
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
    from ray_gen.core import ImageShape, Objective
    from ray_gen.distributed import World
    from ray_gen.evaluation.embedding import Embedding, Need, Sizes
    from ray_gen.evaluation.extractors import Extractor
    from ray_gen.evaluation.images import Consumer, Images
    from ray_gen.evaluation.subject import Labelled, Subject

Set = Literal["generated", "reference", "held_out", "training", "originals", "reconstructed"]
"""A set of images. generated: samples of a model, or pictures of another tool. reference: real
images to compare them with. training: images that the model was trained on. held_out: images that
it was not trained on. originals: those of the held-out images that are reconstructed, all or a
random part. reconstructed: their reconstructions, by the same numbers."""

Shown = Literal["generated", "reference", "held_out", "originals", "reconstructed"]
"""A set whose images are shown to metrics. Of the training images, which may be many more, a metric
makes its own pass."""

OwnSettings = TypeVar("OwnSettings", bound=Settings)


class Lacking(Refused):
    """Something that a metric needs is missing. If the user named the metric, the evaluation ends
    with `message`. Otherwise it leaves the metric out and reports `why`."""

    def __init__(self, message: str, why: str | None) -> None:
        """message: field, fact and remedy. why: the reason in a few words. None: the metric is left
        out without a report."""
        self.why = why
        super().__init__(message)


@dataclass(frozen=True)
class Given:
    """What an evaluation gives to its metrics. Every rank gets the same, except for `world`."""

    world: World
    """The ranks that evaluate together, and this rank's device."""
    sets: Mapping[Set, Images] = field(default_factory=dict)
    """Metrics of samples always have "generated" and "reference". "training" and "held_out" are
    there only if such images exist, "originals" and "reconstructed" only if the model can
    reconstruct."""
    extractor: Extractor | None = None
    """The network that gives features. None: a metric with `needs_weights` cannot be measured."""
    no_extractor: str | None = None
    """Why the default extractor could not be built. None: there was no such failure."""
    subject: Subject | None = None
    """The model that is evaluated. None: the generated images come from another tool."""
    labelled: Labelled | None = None
    """The held-out images of the data with their labels, for a likelihood."""
    data: str = "the data"
    """Name of the data, for messages."""
    count: int | None = None
    """`evaluation.count`: the number of images that the user set. None: not set."""
    batch_size: int = 64
    """Images on the device at once, per rank."""
    seed: int = 0
    """Seed of everything that a metric draws: subsets, splits, patches, directions."""
    automatic: bool = False
    """True if the user named no metrics. A metric then adapts a setting that does not fit (KID
    takes smaller subsets). If False, it refuses, unless the setting is the default."""
    cache_folder: Path | None = None
    """Folder for statistics of the reference. None: they are not kept."""
    progress: Progress = silent
    """Called with this rank's share of the work."""
    default_extractor: bool = False
    """Whether the user named no extractor. A metric that the default cannot serve may be left
    out."""
    opacity: bool = False
    """Whether the last channel of all images is opacity."""
    _looks: dict[Set, tuple[ImageShape, int]] = field(default_factory=dict, init=False, repr=False)

    @property
    def smallest(self) -> int:
        """Number of images in the smaller of the sets "generated" and "reference"."""
        return min(len(self.sets["generated"]), len(self.sets["reference"]))

    @property
    def shape(self) -> ImageShape:
        """(channels, height, width) of the images that the model makes."""
        return self.shape_of("generated" if "generated" in self.sets else "originals")

    def shape_of(self, name: Set) -> ImageShape:
        """(channels, height, width) of the images of a set, read from its first image. Raises
        Refused if the set is empty."""
        return self._look_at(name)[0]

    def bits_of(self, name: Set) -> int:
        """Bits of a channel of the images of a set, 8 or 16: see `shape_of`."""
        return self._look_at(name)[1]

    def _look_at(self, name: Set) -> tuple[ImageShape, int]:
        from ray_gen.evaluation.images import shape_and_bits_of

        if name not in self._looks:
            self._looks[name] = shape_and_bits_of(self.sets[name], name.replace("_", "-"))
        return self._looks[name]

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes of the extractor's features and logits. The extractor runs on one image to find
        out."""
        from ray_gen.evaluation.embedding import Sizes

        assert self.extractor is not None
        images = self.sets["generated" if "generated" in self.sets else "originals"]
        return Sizes.of(self.extractor, images.take([0]))

    def described(self, name: Set, images: int | None = None) -> dict[str, Any]:
        """The entry of a set in a protocol. images: how many were used. None: all."""
        from ray_gen.evaluation.images import size_in_words

        of = self.sets[name]
        used = len(of) if images is None else images
        return {**of.description, "images": used, "size": size_in_words(self.shape_of(name))}


class Metric(ABC, Generic[OwnSettings]):
    """Measures one value, or several values that are computed together.

    Every evaluation makes a new object. It calls `check`, then shows the images of each set to the
    consumers from `sees`, then calls `measure`.
    """

    scores: ClassVar[Mapping[str, Better]]
    """Names of the values that it may yield, each with the better direction. Each name belongs to
    one metric only."""
    asked_as: ClassVar[tuple[str, ...]] = ()
    """Its names in `evaluation.metrics`. Empty: the names of its values."""
    of_samples: ClassVar[bool] = True
    """Whether it compares generated images with other images. False: it measures the model."""
    of_reconstructions: ClassVar[bool] = False
    """Whether it measures reconstructions or latents of held-out images. `of_samples` is then
    False. If the user named no metrics, it is left out for a model that can make samples."""
    needs_of_objective: ClassVar[Literal["Reconstructs", "Encodes", "Codes"]] = "Reconstructs"
    """If `of_reconstructions`: what the objective must be, a protocol of `core`."""
    needs_weights: ClassVar[bool] = False
    """Whether it needs an extractor, and so the extractor's weights."""
    has_network: ClassVar[bool] = False
    """Whether it brings a network of its own, whose weights it needs."""
    compares_pixels: ClassVar[bool] = False
    """Whether all sets that it compares must have the same height and width."""
    settings_class: ClassVar[type[Settings]] = Settings
    """Class with its own fields of `evaluation`. No other metric may have fields of these names."""

    def __init__(self, settings: OwnSettings, given: Given) -> None:
        """settings: the whole `evaluation` section, which has the fields of `settings_class`."""
        self.settings = settings
        self.given = given

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Its names in `evaluation.metrics`."""
        return cls.asked_as or tuple(cls.scores)

    @classmethod
    def fits(cls, objective: Objective | None) -> bool:
        """If `of_reconstructions`: whether the objective is what it needs. None: there is none."""
        from ray_gen import core

        return isinstance(objective, getattr(core, cls.needs_of_objective))

    def compares_with(self) -> Sequence[Set]:
        """The sets that it compares with the generated images. The evaluation checks that their
        channels are equal, and their sizes if `compares_pixels`."""
        return ("reference",) if self.of_samples else ()

    def check(self) -> None:
        """Refuses what cannot be measured, before anything is computed, alike on every rank.

        Raises Lacking if something is missing, Refused if a setting does not fit. Each message
        names the field, the value and the remedy.
        """

    def sees(self, name: Shown) -> Sequence[Consumer]:
        """Consumers of a set. Each batch of the set is made once and shown to all consumers."""
        return ()

    @abstractmethod
    def measure(self) -> Iterator[Score]:
        """The values, after all images were shown. Collective: every rank, same order.

        The evaluation adds the sets and the seed to the protocol of a metric of samples. So the
        metric gives only its own entries, e.g. its settings. A table shows "unit" beside the name
        of the value, and always shows "warning".
        """


class FeatureMetric(Metric[OwnSettings]):
    """A metric on the features of both sets. It implements `compare` instead of `measure`.

    All feature metrics share one pass of the extractor over each set. Then the ranks divide the
    metrics among themselves, and one rank computes each metric.
    """

    needs_weights = True
    sides: ClassVar[tuple[Shown, Shown]] = ("generated", "reference")
    """The set that is measured, and the one that it is compared with."""
    needs: ClassVar[frozenset[Need]]
    """What an `Embedding` must hold for it: "moments", "features" or "logits"."""

    @abstractmethod
    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        """(name, value, spread) for each name in `scores`. Spread None: the metric has none.
        generated, reference: of the two `sides`.

        It runs on one rank only, so it must not communicate. Its arguments are finished embeddings
        of all images: features (N, D) and logits (N, K), float32 on the CPU, and moments, float64.
        """

    def protocol(self) -> Mapping[str, Any]:
        """The metric's own protocol entries. The evaluation adds the extractor, sets and seed."""
        return {}

    def measure(self) -> Iterator[Score]:
        """Never called: `Comparison.scores` computes all feature metrics together by `compare`."""
        raise NotImplementedError
