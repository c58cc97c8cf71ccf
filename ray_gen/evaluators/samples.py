"""All metrics of samples against a reference, in one pass over each set of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ray_gen.distributed import World
from ray_gen.evaluators.base import Extractor, Images, Progress, Score, silent
from ray_gen.evaluators.images import shape_of, show
from ray_gen.evaluators.names import FROM_AN_EXTRACTOR
from ray_gen.evaluators.parts import (
    Part,
    Result,
    through_an_extractor,
    through_neighbours,
    through_patches,
)
from ray_gen.evaluators.plan import Plan


@torch.no_grad()
def sample_scores(
    metrics: Sequence[str],
    generated: Images,
    reference: Images,
    *,
    extractor: Extractor | None = None,
    training: Images | None = None,
    held_out: Images | None = None,
    world: World,
    batch_size: int = 64,
    seed: int = 0,
    cache_folder: Path | None = None,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    neighbours: int = 3,
    density_neighbours: int = 5,
    progress: Progress = silent,
    check_only: bool = False,
) -> list[Score]:
    """The scores of all generated images against all of the reference, in the order asked.

    metrics: names of METRICS. extractor: for those that need one. training, held_out: for
    nearest_neighbour; held-out images are the reference unless given (an FID is often taken against
    the training images). batch_size: images on the device at once, of each rank. seed: of KID's
    subsets, the Inception Score's order, patches and directions. cache_folder: where statistics of
    the reference are kept; None keeps none. neighbours, density_neighbours: the papers' 3 and 5.

    The values do not depend on the number of ranks (FID up to the order of a sum in float64), and
    all ranks return the same. Collective: every rank, same order.
    """
    plan = Plan(
        metrics,
        world,
        batch_size,
        seed,
        kid_subsets,
        kid_subset_size,
        neighbours,
        density_neighbours,
        progress,
    )
    plan.check_metrics(extractor=extractor is not None, training=training is not None)
    plan.check_counts(len(generated), len(reference))
    unseen = reference if held_out is None else held_out
    others = [("reference", reference)]
    if training is not None and "nearest_neighbour" in metrics:
        others += [("training", training), ("held-out", unseen)]
    shape = shape_of(generated, "generated")
    plan.check_shapes(shape, [(what, shape_of(images, what)) for what, images in others])
    if check_only:
        return []

    parts: list[Part] = []
    if extractor is not None and plan.needs & FROM_AN_EXTRACTOR:
        parts.append(through_an_extractor(plan, generated, reference, extractor, cache_folder))
    if "sliced_wasserstein" in metrics:
        parts.append(through_patches(plan, generated, reference, shape))
    if training is not None and "nearest_neighbour" in metrics:
        parts.append(through_neighbours(plan, generated, unseen, training, shape))

    on_reference = [consumer for part in parts for consumer in part.on_reference]
    on_held_out = [consumer for part in parts for consumer in part.on_held_out]
    on_generated = [consumer for part in parts for consumer in part.on_generated]
    if unseen is reference:
        on_reference, on_held_out = on_reference + on_held_out, []
    for images, consumers, what in (
        (reference, on_reference, "reference images"),
        (unseen, on_held_out, "held-out images"),
        (generated, on_generated, "generated images"),
    ):
        show(images, consumers, world, batch_size, progress, what)

    results: dict[str, Result] = {}
    for part in parts:
        results |= part.finish()
    protocol = {
        "generated": {**generated.description, "images": len(generated)},
        "reference": {**reference.description, "images": len(reference)},
        "seed": seed,
    }
    return [
        Score(name, found.value, found.spread, {**protocol, **found.protocol})
        for name, found in ((name, results[name]) for name in metrics)
    ]
