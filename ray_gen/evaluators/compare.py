"""The metrics that compare embeddings, each computed by one of the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ray_gen.evaluators.density_coverage import density_coverage
from ray_gen.evaluators.embedding import Embedding
from ray_gen.evaluators.fid import frechet_distance
from ray_gen.evaluators.inception_score import inception_score
from ray_gen.evaluators.kid import kernel_distance
from ray_gen.evaluators.plan import Plan
from ray_gen.evaluators.precision_recall import precision_recall

Pair = tuple[float, float]
"""A value and its spread (NaN: it has none), or two values that are computed together."""


def compared(
    plan: Plan, generated: Embedding, reference: Embedding
) -> dict[str, tuple[float, float | None]]:
    """Value and spread of each metric. Collective: every rank, same order."""

    def kid() -> Pair:
        return kernel_distance(
            *_features(generated, reference),
            subsets=plan.kid_subsets,
            subset_size=plan.kid_subset_size,
            seed=plan.seed,
        )

    def fid() -> Pair:
        assert generated.moments is not None and reference.moments is not None
        return frechet_distance(generated.moments, reference.moments), math.nan

    def score() -> Pair:
        assert generated.logits is not None
        return inception_score(generated.logits, seed=plan.seed)

    def balls(metric: Callable[..., Pair], neighbours: int) -> Pair:
        first, second = _features(generated, reference)
        device = plan.world.device
        return metric(first.to(device), second.to(device), neighbours=neighbours)

    works: dict[tuple[str, ...], Callable[[], Pair]] = {
        ("precision", "recall"): lambda: balls(precision_recall, plan.neighbours),
        ("density", "coverage"): lambda: balls(density_coverage, plan.density_neighbours),
        ("kid",): kid,
        ("fid",): fid,
        ("inception_score",): score,
    }
    wanted = {names: work for names, work in works.items() if set(names) & set(plan.metrics)}
    scores: dict[str, tuple[float, float | None]] = {}
    for names, (first, second) in _divided(plan, wanted).items():
        if len(names) == 2:
            scores |= {names[0]: (first, None), names[1]: (second, None)}
        else:
            scores[names[0]] = first, None if math.isnan(second) else second
    return scores


def _features(generated: Embedding, reference: Embedding) -> tuple[Tensor, Tensor]:
    assert generated.features is not None and reference.features is not None
    return generated.features, reference.features


def _divided(
    plan: Plan, works: Mapping[tuple[str, ...], Callable[[], Pair]]
) -> dict[tuple[str, ...], Pair]:
    """The results of all works, of which the ranks take turns. Collective: every rank, same
    order."""
    world = plan.world
    table = torch.zeros(len(works), 2, dtype=torch.float64, device=world.device)
    own = list(enumerate(works.values()))[world.rank :: world.size]
    for done, (row, work) in enumerate(own, 1):
        table[row] = torch.tensor(work(), dtype=torch.float64)
        plan.progress(done, len(own), "comparisons of features")
    world.sum_(table)
    rows: list[list[float]] = table.tolist()
    return {names: (row[0], row[1]) for names, row in zip(works, rows, strict=True)}
