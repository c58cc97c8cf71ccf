"""The three kinds of metrics: what each has to see of which images, and what it says then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_gen.core import ImageShape
from ray_gen.distributed import World
from ray_gen.evaluators.base import Extractor, Images
from ray_gen.evaluators.cache import ReferenceCache
from ray_gen.evaluators.compare import compared
from ray_gen.evaluators.embedding import Embedding, Sizes
from ray_gen.evaluators.fid import bias_warning
from ray_gen.evaluators.images import Consumer, own_share, show
from ray_gen.evaluators.inception_score import SPLITS
from ray_gen.evaluators.nearest_neighbour import SIDE, Nearest, Queries, memorisation
from ray_gen.evaluators.plan import Plan
from ray_gen.evaluators.sliced_wasserstein import PATCHES, Pictures, sliced_wasserstein


@dataclass(frozen=True)
class Result:
    """A value, its standard deviation, and what the protocol has to say of this metric."""

    value: float
    spread: float | None
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Metrics of one kind: who sees which images, and then, on every rank, the results."""

    finish: Callable[[], dict[str, Result]]
    on_generated: list[Consumer]
    on_reference: list[Consumer] = field(default_factory=list[Consumer])
    on_held_out: list[Consumer] = field(default_factory=list[Consumer])


def through_an_extractor(
    plan: Plan,
    generated: Images,
    reference: Images,
    extractor: Extractor,
    cache_folder: Path | None,
) -> Part:
    """FID, KID, Inception Score, precision and recall, density and coverage.

    Collective: every rank, same order.
    """
    world = plan.world
    sizes = Sizes.of(extractor, generated.take([0]))
    plan.check_logits(sizes.logits)
    own = own_share(len(generated), plan.batch_size, world)
    ours = Embedding(extractor, sizes, plan.needs, own, world)

    needs = plan.needs - {"logits"}
    cache = ReferenceCache(cache_folder, reference, extractor)
    expected = Embedding.shapes(sizes, needs, len(reference))
    kept = cache.read(expected) if world.rank == 0 else None
    known = bool(expected) and bool(world.maxima([int(kept is not None)])[0])
    if known:  # as if rank 0 had seen them all
        own = range(len(reference) if world.rank == 0 else 0)
    else:
        own = own_share(len(reference), plan.batch_size, world)
    theirs = Embedding(extractor, sizes, needs, own, world)
    if kept is not None:
        theirs.adopt(kept)

    protocol = {
        "extractor": extractor.name,
        "extractor_weights": extractor.digest,
        "resizing": extractor.resizing,
    }
    few = bias_warning(len(generated), len(reference))
    said: dict[str, dict[str, Any]] = {
        "fid": {} if few is None else {"warning": few},
        "kid": {"subsets": plan.kid_subsets, "subset_size": plan.kid_subset_size},
        "inception_score": {"splits": SPLITS},
        "precision": {"neighbours": plan.neighbours},
        "recall": {"neighbours": plan.neighbours},
        "density": {"neighbours": plan.density_neighbours},
        "coverage": {"neighbours": plan.density_neighbours},
    }

    def finish() -> dict[str, Result]:
        ours.finish(len(generated))
        theirs.finish(len(reference))
        if not known and world.rank == 0:
            cache.write(theirs.tensors())
        return {
            name: Result(value, spread, {**protocol, **said[name]})
            for name, (value, spread) in compared(plan, ours, theirs).items()
        }

    return Part(finish, [ours], [] if known or not expected else [theirs])


def through_patches(plan: Plan, generated: Images, reference: Images, shape: ImageShape) -> Part:
    """Sliced Wasserstein distance, of equally many images of both."""
    count = min(len(generated), len(reference))
    ours, theirs = (
        Pictures(shape, len(images), count, own_share(len(images), plan.batch_size, plan.world))
        for images in (generated, reference)
    )

    def finish() -> dict[str, Result]:
        scales = sliced_wasserstein(ours, theirs, plan.seed, plan.world, plan.progress)
        mean = sum(scales.values()) / len(scales)
        protocol = {
            "unit": "10^-3, mean over scales",
            "scales": scales,
            "images_of_each": ours.count,
            "patches_of_an_image": PATCHES,
        }
        return {"sliced_wasserstein": Result(mean, None, protocol)}

    return Part(finish, [ours], [theirs])


def through_neighbours(
    plan: Plan, generated: Images, held_out: Images, training: Images, shape: ImageShape
) -> Part:
    """Distance to the training set."""
    world = plan.world
    ours, others = (
        Queries(len(images), own_share(len(images), plan.batch_size, world))
        for images in (generated, held_out)
    )

    def finish() -> dict[str, Result]:
        nearest = Nearest.of(ours, others, shape, world.device)
        # Every rank sees all training images, and has its own share of the others.
        alone = World(device=world.device)
        show(training, [nearest], alone, plan.batch_size, plan.progress, "training images")
        found = memorisation(nearest, ours, others, world)
        protocol = {
            "unit": "median distance of samples to their nearest training image, over that of "
            "held-out images; much less than 1: copies",
            "median_distance_of_samples": found.generated,
            "median_distance_of_held_out": found.held_out,
            "samples_nearer_than_99_percent_of_held_out": found.below,
            "distance": f"root mean square over pixels in [0, 1], at most {SIDE}x{SIDE}",
            "samples": ours.spread.count,
            "held_out": {**held_out.description, "images": others.spread.count},
            "training": {**training.description, "images": len(training)},
        }
        return {"nearest_neighbour": Result(found.ratio, None, protocol)}

    return Part(finish, [ours], on_held_out=[others])
