"""Measures all metrics of one evaluation in one pass over each set of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from ray_gen import core
from ray_gen.errors import Refused
from ray_gen.evaluation.cache import ReferenceCache
from ray_gen.evaluation.embedding import Embedding, Need
from ray_gen.evaluation.extractors import takes_16_bits
from ray_gen.evaluation.images import Consumer, own_share, seen_in_words, show, size_in_words
from ray_gen.evaluation.metric import FeatureMetric, Given, Lacking, Metric, Set, Shown
from ray_gen.evaluation.metrics import METRICS, without_weights
from ray_gen.evaluation.scores import Score, Scores
from ray_gen.evaluation.subject import Subject
from ray_gen.precision import full_precision
from ray_gen.settings import Settings

_DOES = {
    "Reconstructs": "does not reconstruct images",
    "Encodes": "has no encoder",
    "Codes": "has no codes",
}
"""What an objective lacks, by the protocol of `core` that it does not fulfil."""


def or_without_weights(subject: Subject | None) -> str:
    """The end of a remedy: the metrics that a model can have without weights. subject None: of
    pictures of another tool."""
    *names, last = without_weights(None if subject is None else subject.objective) or ("others",)
    return f"or set evaluation.metrics to {', '.join(names)}{' and ' * bool(names)}{last} only"


class Comparison:
    """The metrics of one evaluation, checked when it is made.

    The number of ranks changes no value, and every rank returns the same values. (FID may differ in
    its last digits: float64 sums in another order.) Every method is collective: every rank, same
    order.
    """

    def __init__(self, names: Sequence[str], settings: Settings, given: Given) -> None:
        """names: keys of METRICS. settings: with the fields of their `settings_class`. Raises
        Refused for what cannot be measured. But if the user named no metrics (`given.automatic`),
        a metric that raises Lacking is left out instead."""
        self.given = given
        self.without: dict[str, str] = {}
        """Names of the metrics that were left out, and why."""
        self._names: list[str] = []
        self._metrics: dict[type[Metric[Any]], Metric[Any]] = {}
        for name in names:
            kind = METRICS[name]
            try:
                if kind not in self._metrics:
                    metric = kind(settings, given)
                    self._check(metric, name)
                    self._metrics[kind] = metric
                self._names.append(name)
            except Lacking as lacking:
                if not given.automatic:
                    raise
                if lacking.why is not None:
                    self.without[name] = lacking.why

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that are measured."""
        return tuple(self._names)

    def _check(self, metric: Metric[Any], name: str) -> None:
        """name: the one that was asked for."""
        given = self.given
        if metric.of_reconstructions:
            self._check_reconstructs(metric, name)
        if metric.of_samples:
            if given.subject is not None and not given.subject.objective.has_prior:
                why = f"the objective {given.subject.kind} has no prior to sample from"
                remedy = "leave it out, or measure reconstructions, e.g. psnr, rsliced_wasserstein"
                raise Lacking(f"evaluation.metrics: {name}: {why}; {remedy}", why)
            self._check_images(metric, name)
        metric.check()
        if metric.of_samples:
            self._check_shapes(metric, name)

    def _check_images(self, metric: Metric[Any], asked: str) -> None:
        sets = self.given.sets
        for name, field in (("generated", "count"), ("reference", "reference")):
            count = len(sets[cast(Set, name)])
            if count < 2:
                raise Refused(f"evaluation.{field}: at least two images are needed, not {count}")
        self._check_extractor(metric, asked)

    def _check_reconstructs(self, metric: Metric[Any], asked: str) -> None:
        """The model can do what a metric of reconstructions needs, and there are held-out
        images."""
        given, where = self.given, f"evaluation.metrics: {asked}"
        if given.subject is None:
            raise Lacking(f"{where}: pictures have no reconstructions; name a run instead", None)
        objective, kind = given.subject.objective, given.subject.kind
        if not isinstance(objective, getattr(core, metric.needs_of_objective)):
            does = _DOES[metric.needs_of_objective]
            raise Lacking(f"{where}: the objective {kind} {does}; leave it out", None)
        if given.automatic and objective.has_prior:
            raise Lacking(f"{where}: was not asked for", None)
        if "originals" not in given.sets:
            why = f"it needs held-out images with 8 or 16 bits, and {given.data} has none"
            raise Lacking(
                f"{where}: {why}; set data.held_out_fraction to 0.1, or leave it out", why
            )
        if metric.needs_weights and len(given.sets["originals"]) < 2:
            raise Lacking(
                f"{where}: at least two held-out images are needed; set data.held_out_fraction",
                "at least two held-out images are needed",
            )
        self._check_extractor(metric, asked)

    def _check_extractor(self, metric: Metric[Any], asked: str) -> None:
        """The extractor is there and takes the images, if the metric needs one."""
        extractor = self.given.extractor
        if metric.needs_weights and extractor is None and self.given.no_extractor is not None:
            raise Lacking(self.given.no_extractor, self.given.no_extractor)
        if metric.needs_weights and extractor is None:
            raise Refused(
                f"evaluation.features: {asked} needs an extractor; name one, "
                f"{or_without_weights(self.given.subject)}"
            )
        if metric.needs_weights:
            self._check_channels()

    def _check_channels(self) -> None:
        """The extractor takes the channels of the images."""
        given, extractor = self.given, self.given.extractor
        assert extractor is not None
        channels, wanted = given.shape[0], extractor.channels
        if channels == wanted or (wanted == 3 and channels - given.opacity in (1, 3)):
            return
        sees = "grey or RGB images" if wanted == 3 else f"{wanted} channel{'s' * (wanted > 1)}"
        without = " of which none is opacity" if wanted == 3 and channels in (2, 4) else ""
        why = (
            f"{extractor.name} sees {sees}, and the images have {channels}"
            f"{' channels' if wanted == 3 else ''}{without}; name a trained run of such images by "
            "--features run:RUN"
        )
        message = f"evaluation.features: {why}, {or_without_weights(given.subject)}"
        if given.default_extractor:
            raise Lacking(message, why)
        raise Refused(message)

    def _check_shapes(self, metric: Metric[Any], asked: str) -> None:
        """Channels, heights and widths of the sets fit the metric."""
        given = self.given
        channels, height, width = given.shape
        for name in metric.compares_with():
            theirs, what = given.shape_of(name), name.replace("_", "-")
            if theirs[0] != channels:
                raise Refused(
                    f"evaluation: the generated images have {channels} and the {what} images "
                    f"{theirs[0]} channels; set data.channels to {channels}"
                )
            if metric.compares_pixels and theirs != given.shape:
                own, other = size_in_words(given.shape), size_in_words(theirs)
                raise Refused(
                    f"evaluation: {asked} compares pixels, and the generated images are {own}, the "
                    f"{what} images {other} (height x width); set data.image_size to "
                    f"{height if height == width else own}"
                )

    @torch.no_grad()
    def scores(self) -> Scores:
        """Shows all images to the metrics and measures them. Values in the order of `names`."""
        metrics = list(self._metrics.values())
        by_sides: dict[tuple[Shown, Shown], list[FeatureMetric[Any]]] = {}
        for metric in metrics:
            if isinstance(metric, FeatureMetric):
                by_sides.setdefault(metric.sides, []).append(metric)
        of_features = [_Features(own, self.given, sides) for sides, own in by_sides.items()]
        order: tuple[Shown, ...] = (
            *("reference", "held_out", "generated"),
            *("originals", "reconstructed"),
        )
        for name in order:
            consumers = [consumer for shared in of_features for consumer in shared.sees(name)]
            consumers += [consumer for metric in metrics for consumer in metric.sees(name)]
            if consumers:
                given, what = self.given, f"{name.replace('_', '-')} images"
                images = given.sets[name]
                show(images, consumers, given.world, given.batch_size, given.progress, what)
        with full_precision(self.given.world.device):
            measured = [score for shared in of_features for score in shared.measure()]
            for metric in metrics:
                if not isinstance(metric, FeatureMetric):
                    own = list(metric.measure())
                    _check_names(metric, [score.name for score in own])
                    measured += own
        found = {score.name: self._with_protocol(score) for score in measured}
        kinds = {name: METRICS[name] for name in self._names}
        wanted = [
            score
            for name, kind in kinds.items()
            for score in ((name,) if name in kind.scores else kind.scores)
            if score in found
        ]
        return Scores(tuple(found[name] for name in wanted), self.left_out())

    def left_out(self) -> tuple[str, ...]:
        """Sentences about the metrics that were left out, one for each reason."""
        by_reason: dict[str, list[str]] = {}
        for name, why in self.without.items():
            by_reason.setdefault(why, []).append(name)
        return tuple(f"{', '.join(names)}: {why}" for why, names in by_reason.items())

    def _with_protocol(self, score: Score) -> Score:
        """A score with the protocol entries that all metrics of samples share."""
        kind = next(kind for kind in self._metrics if score.name in kind.scores)
        if kind.of_reconstructions:
            given, sets = self.given, self.given.sets
            made = None if kind.needs_of_objective != "Reconstructs" else sets["reconstructed"]
            common = {"originals": given.described("originals"), "seed": given.seed}
            if made is not None:
                common["reconstructions"] = {**made.description, "images": len(made)}
            seen = {"seen_as": self._seen_by(kind, ("originals",))}
            return Score(
                score.name, score.value, score.spread, {**common, **seen, **score.protocol}
            )
        if not kind.of_samples:
            return score
        common = {
            "generated": self.given.described("generated"),
            "reference": self.given.described("reference"),
            "seed": self.given.seed,
            "seen_as": self._seen_by(kind, ("generated", "reference")),
        }
        return Score(score.name, score.value, score.spread, {**common, **score.protocol})

    def _seen_by(self, kind: type[Metric[Any]], names: Sequence[Set]) -> str:
        """The channels that a metric sees of these sets, in words."""
        given = self.given
        bits = max(given.bits_of(name) for name in names)
        if not kind.needs_weights:
            return seen_in_words(given.shape[0], bits, opacity=given.opacity, rgb=kind.has_network)
        extractor = given.extractor
        assert extractor is not None
        most_bits = 16 if takes_16_bits(extractor) else 8
        return seen_in_words(
            given.shape[0],
            bits,
            opacity=given.opacity,
            rgb=extractor.channels == 3,
            most_bits=most_bits,
        )


def _check_names(metric: Metric[Any], names: Sequence[str], all_of_them: bool = False) -> None:
    """Raises ValueError unless a metric yields the values that it declares."""
    declared = set(metric.scores)
    if not declared.issuperset(names) or (all_of_them and declared != set(names)):
        raise ValueError(
            f"{type(metric).__name__} yields {', '.join(names) or 'nothing'}, but its `scores` are "
            f"{', '.join(metric.scores)}"
        )


class _Features:
    """What the feature metrics share: one embedding of each set. The embedding of the reference may
    come from the cache."""

    def __init__(
        self,
        metrics: Sequence[FeatureMetric[Any]],
        given: Given,
        sides: tuple[Shown, Shown],
    ) -> None:
        """sides: of these metrics. Collective: every rank, same order."""
        assert given.extractor is not None
        self._metrics, self._given, self._sides = metrics, given, sides
        generated, reference = (given.sets[name] for name in sides)
        self._counts = len(generated), len(reference)
        world, extractor = given.world, given.extractor
        needs = frozenset[Need]().union(*(metric.needs for metric in metrics))
        own = own_share(len(generated), given.batch_size, world)
        self._generated = Embedding(extractor, given.sizes, needs, own, world)

        needs -= {"logits"}
        self._cache = ReferenceCache(given.cache_folder, reference, extractor)
        expected = Embedding.shapes(given.sizes, needs, len(reference))
        kept = self._cache.read(expected) if world.rank == 0 else None
        self._known = bool(expected) and bool(world.maxima([int(kept is not None)])[0])
        if self._known:  # rank 0 takes the cached statistics, as if it had seen all images
            own = range(len(reference) if world.rank == 0 else 0)
        else:
            own = own_share(len(reference), given.batch_size, world)
        self._reference = Embedding(extractor, given.sizes, needs, own, world)
        if kept is not None:
            self._reference.adopt(kept)
        self._looks_at_reference = bool(expected) and not self._known

    def sees(self, name: Shown) -> list[Consumer]:
        """Consumers of a set."""
        generated, reference = self._sides
        if name == generated:
            return [self._generated]
        return [self._reference] if name == reference and self._looks_at_reference else []

    def measure(self) -> Iterator[Score]:
        """The values of all feature metrics. The ranks divide the metrics among themselves.
        Collective: every rank, same order."""
        given, world = self._given, self._given.world
        self._generated.finish(self._counts[0])
        self._reference.finish(self._counts[1])
        if not self._known and world.rank == 0:
            self._cache.write(self._reference.tensors())
        # One row per value: (value, spread). NaN: no spread.
        names = [name for metric in self._metrics for name in metric.scores]
        table = torch.zeros(len(names), 2, dtype=torch.float64, device=world.device)
        own = self._metrics[world.rank :: world.size]
        for done, metric in enumerate(own, 1):
            found = list(metric.compare(self._generated, self._reference))
            _check_names(metric, [name for name, _, _ in found], all_of_them=True)
            for name, value, spread in found:
                row = [value, math.nan if spread is None else spread]
                table[names.index(name)] = torch.tensor(row, dtype=torch.float64)
            given.progress(done, len(own), "comparisons of features")
        world.sum_(table)
        values = dict(zip(names, table.tolist(), strict=True))
        extractor = given.extractor
        assert extractor is not None
        common = {
            "extractor": extractor.name,
            "extractor_weights": extractor.digest,
            "resizing": extractor.resizing,
        }
        for metric in self._metrics:
            for name in metric.scores:
                value, spread = values[name]
                known = None if math.isnan(spread) else spread
                yield Score(name, value, known, {**common, **metric.protocol()})
