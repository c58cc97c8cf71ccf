"""The number of workers changes no value: real processes, connected by gloo."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from ray_gen.distributed import World
from ray_gen.evaluation.images import gathered, own_share
from ray_gen.evaluation.metrics import OF_SAMPLES
from ray_gen.evaluation.moments import Moments
from tests.evaluation.helpers import Made, Tiny, by_workers, measured, pictures

NO_TORCHVISION = ["fid", "density", "coverage", "sliced_wasserstein", "nearest_neighbour"]


def on_a_worker(
    world: World, metrics: list[str], folder: Path | None = None
) -> list[tuple[float, float]]:
    """(value, spread) of each score. No number of workers divides the sizes of the sets."""
    scores = measured(
        metrics,
        Made(pictures(203, 1)),
        Made(pictures(151, 2), "reference"),
        training=Made(pictures(130, 3)),
        held_out=Made(pictures(90, 4)),
        extractor=Tiny(),
        world=world,
        batch_size=32,
        kid_subset_size=50,
        cache_folder=folder,
    )
    return [(score.value, score.spread or 0.0) for score in scores]


@pytest.mark.parametrize(("count", "metrics"), [(2, list(OF_SAMPLES)), (3, NO_TORCHVISION)])
def test_all_values_are_those_of_one_worker(tmp_path: Path, count: int, metrics: list[str]) -> None:
    alone = on_a_worker(World(), metrics)
    work = partial(on_a_worker, metrics=metrics, folder=tmp_path / "cache")
    for _ in ("measured", "from the cache"):
        results = by_workers(count, work, tmp_path)
        assert all(values == results[0] for values in results)
        for name, value, expected in zip(metrics, results[0], alone, strict=True):
            assert value == pytest.approx(expected, rel=1e-6), name


def moments_and_rows(world: World) -> tuple[torch.Tensor, ...]:
    """Moments and rows of 3 batches of vectors far from zero. A fourth rank has no batch."""
    rows = torch.randn(70, 5, generator=torch.Generator().manual_seed(0)) + 1000
    own = own_share(70, 32, world)
    moments = Moments(5, world.device)
    if own:
        moments.add(rows[own.start : own.stop])
    moments.combine(world)
    whole = gathered(rows[own.start : own.stop], own, 70, world)
    return moments.mean, moments.covariance, whole


def test_a_worker_without_images_takes_part(tmp_path: Path) -> None:
    alone = moments_and_rows(World())
    for mean, covariance, rows in by_workers(4, moments_and_rows, tmp_path):
        assert torch.allclose(mean, alone[0], rtol=1e-14)
        assert torch.allclose(covariance, alone[1], rtol=1e-10)
        assert torch.equal(rows, alone[2])
