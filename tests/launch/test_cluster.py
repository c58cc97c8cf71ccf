"""What workers ask for, against what a cluster has or can come to."""

from __future__ import annotations

from typing import Any

import pytest

from ray_gen.experiment import ExperimentError
from ray_gen.launch import cluster
from ray_gen.launch.cluster import Share, share_of
from ray_gen.launch.driver import _bounded
from tests.helpers import vae

# 24 images in groups of 6: at most 4 workers.
TWO, FOUR = {"CPU": 2.0}, {"CPU": 4.0}
GPUS = {"CPU": 8.0, "GPU": 2.0}


@pytest.fixture
def of(monkeypatch) -> Any:
    """share_of on a cluster of such nodes, which can grow to such resources."""

    def share(asked: str, *nodes: dict[str, float], grown: dict[str, int] | None = None) -> Share:
        alive = [{"Resources": node, "Alive": True} for node in nodes]
        monkeypatch.setattr(cluster.ray, "nodes", lambda: alive)
        monkeypatch.setattr(cluster, "grown", lambda: grown or {})
        return share_of(vae(f"workers={asked}"))

    return share


@pytest.mark.parametrize(
    ("asked", "nodes", "share"),
    [
        ("{}", [TWO], Share(1, 0.0, 2)),
        ("{count: 2}", [TWO, TWO], Share(2, 0.0, 2)),
        ("{}", [GPUS], Share(2, 1.0, 1)),
        ("{count: {max: 4}}", [TWO, TWO], Share(4, 0.0, 1, 1)),
        ("{count: {min: 2, max: 4}}", [TWO], Share(4, 0.0, 1, 2)),
        ("{count: {min: 2, max: 4}}", [GPUS], Share(4, 1.0, 1, 2)),
        ("{count: {min: 1, max: 2}, cpus: 2}", [TWO], Share(2, 0.0, 2, 1)),
    ],
)
def test_what_a_cluster_has(of, asked: str, nodes: list[dict[str, float]], share: Share) -> None:
    assert of(asked, *nodes) == share


@pytest.mark.parametrize(
    ("asked", "nodes", "told"),
    [
        ("{count: 4}", [GPUS], "4 workers with a GPU each, and the cluster has 2 GPUs"),
        ("{count: {min: 3, max: 4}}", [GPUS], "3 workers with a GPU each"),
        ("{count: {min: 3, max: 4}}", [TWO], "3 workers with 1 CPU cores each.* has 2;"),
        ("{count: 2, cpus: 3}", [FOUR], "2 workers with 3 CPU cores each"),
    ],
)
def test_what_it_can_never_have(of, asked: str, nodes: Any, told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        of(asked, *nodes)


def test_a_cluster_that_starts_nodes_is_asked_for_them(of) -> None:
    head = {"CPU": 0.0}
    grown = {"CPU": 64, "GPU": 8}
    assert of("{count: 4}", head, grown=grown) == Share(4, 1.0, 1)
    assert of("{count: {min: 1, max: 4}}", head, grown=grown) == Share(4, 1.0, 1, 1)
    assert of("{count: 4, gpu: false, cpus: 8}", head, grown=grown) == Share(4, 0.0, 8)
    with pytest.raises(ExperimentError, match=r"4 workers with a GPU each, .* has no GPUs"):
        of("{count: 4}", head, grown={"CPU": 64, "GPU": 2})


@pytest.mark.parametrize("span", ["{min: 3, max: 2}", "{min: 0, max: 2}", "{max: 5}", "{min: 1}"])
def test_spans_that_cannot_be(span: str) -> None:
    with pytest.raises(ExperimentError, match=r"workers\.count"):
        vae(f"workers.count={span}")


def test_memory_of_a_worker_does_not_grow_when_others_leave() -> None:
    this = vae("workers.count={min: 1, max: 3}")
    assert _bounded(this, Share(3, 0.0, 1, 1)).training.micro_batch_size == 12
    assert _bounded(this, Share(3, 0.0, 1)).training.micro_batch_size is None
    given = this.with_fields(training__micro_batch_size=6)
    assert _bounded(given, Share(3, 0.0, 1, 1)).training.micro_batch_size == 6
