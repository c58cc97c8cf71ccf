"""What workers ask for, against what a cluster has or can come to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_gen.errors import Refused
from ray_gen.experiment import ExperimentError
from ray_gen.launch import cluster
from ray_gen.launch.cluster import Share, bundles_of, equal_share, share_of, when_there
from ray_gen.launch.imports import searched_first
from ray_gen.launch.on_ray import bounded
from ray_gen.launch.search.checks import bundles_of_trials, room_for, trials_at_once
from tests.helpers import vae

# 24 images in groups of 6: at most 4 workers.
TWO, FOUR = {"CPU": 2.0}, {"CPU": 4.0}
GPUS = {"CPU": 8.0, "GPU": 2.0}


@pytest.fixture
def of(monkeypatch) -> Any:
    """share_of on a cluster of such nodes."""

    def share(asked: str, *nodes: dict[str, float]) -> Share:
        alive = [{"Resources": node, "Alive": True} for node in nodes]
        monkeypatch.setattr(cluster.ray, "nodes", lambda: alive)
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


class Autoscaler:
    """A cluster that starts a node of 2 CPU cores after 30 looks, or never."""

    def __init__(self, monkeypatch, starts: bool) -> None:
        self.requests: list[Any] = []
        self.looks = 0
        self.starts = starts
        self.gives_up_after = 1000
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(cluster.ray, "nodes", self.nodes)
        monkeypatch.setattr(cluster, "running_cluster", lambda: "there:6379")
        monkeypatch.setattr(
            cluster.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="there:6379")
        )
        monkeypatch.setattr(
            cluster, "request_resources", lambda bundles: self.requests.append(bundles)
        )
        monkeypatch.setattr(cluster, "coming_nodes", self.coming)
        sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)  # noqa: E731
        monkeypatch.setattr(
            cluster, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
        )

    def nodes(self) -> list[dict[str, Any]]:
        come = self.starts and self.looks > 30
        return [{"Resources": TWO if come else {"CPU": 0.0}, "Alive": True}]

    def coming(self, address: str) -> int:
        self.looks += 1
        return int(self.starts and self.looks < self.gives_up_after)


def waited(asked: str, say) -> Share:
    experiment = vae(asked)
    return when_there(lambda: share_of(experiment), bundles_of(experiment), say)


def test_nodes_that_are_on_their_way_are_waited_for(monkeypatch) -> None:
    autoscaler, said = Autoscaler(monkeypatch, starts=True), []
    share = waited("workers.count={min: 2, max: 4}", said.append)
    assert share == Share(4, 0.0, 1, 2)
    assert autoscaler.requests == [[{"CPU": 1}] * 2, []]
    assert said == ["waiting for 1 node"]


def test_a_search_waits_for_the_trials_that_it_asks_for(monkeypatch) -> None:
    """It stops waiting when no more nodes come. With room for one trial it does not wait at all."""
    asked = vae(
        "search.space={optimizers.autoencoder.learning_rate: {choice: [1e-3, 1e-4, 1e-5]}}",
        "search.concurrent=3",
        "search.workers.cpus=1",
    )
    wanted = trials_at_once(asked)
    bundles = bundles_of_trials(asked, wanted)
    assert bundles == [{"CPU": 1.0}] * 3
    autoscaler = Autoscaler(monkeypatch, starts=True)

    def room() -> tuple[Share, int]:
        return when_there(
            lambda: room_for(asked), bundles, lambda words: None, lambda found: found[1] >= wanted
        )

    autoscaler.gives_up_after = 40
    assert room() == (Share(1, 0.0, 1), 2)
    assert autoscaler.requests == [bundles, []]
    assert 60 <= autoscaler.looks <= 70
    room()
    assert len(autoscaler.requests) == 2


def test_an_evaluation_waits_for_nodes(monkeypatch) -> None:
    autoscaler = Autoscaler(monkeypatch, starts=True)
    found = when_there(lambda: equal_share(2), [{"CPU": 1.0}] * 2, lambda words: None)
    assert found == (False, 1)
    assert autoscaler.requests == [[{"CPU": 1.0}] * 2, []]


def test_a_cluster_that_starts_none_refuses_after_a_while(monkeypatch) -> None:
    autoscaler = Autoscaler(monkeypatch, starts=False)
    with pytest.raises(ExperimentError, match="2 workers with 1 CPU cores"):
        waited("workers.count=2", lambda words: None)
    assert autoscaler.requests[-1] == []
    assert 20 <= autoscaler.looks <= 30


def test_a_head_alone_asks_how_many(monkeypatch) -> None:
    Autoscaler(monkeypatch, starts=True)
    with pytest.raises(ExperimentError, match=r"say how many, e\.g\. workers\.count=4"):
        waited("workers.count=auto", lambda words: None)


def test_an_evaluation_beside_needs_a_node_too() -> None:
    beside = ("evaluation.every_images=1000", "evaluation.placement=beside")
    assert bundles_of(vae("workers.count=2", *beside)) == [{"CPU": 1.0}] * 3


def test_a_local_ray_starts_no_nodes_to_wait_for(monkeypatch) -> None:
    autoscaler = Autoscaler(monkeypatch, starts=True)
    monkeypatch.setattr(cluster, "running_cluster", lambda: None)
    with pytest.raises(ExperimentError, match="2 workers with 1 CPU cores"):
        waited("workers.count=2", lambda words: None)
    assert not autoscaler.requests


@pytest.mark.parametrize("span", ["{min: 3, max: 2}", "{min: 0, max: 2}", "{max: 5}", "{min: 1}"])
def test_spans_that_cannot_be(span: str) -> None:
    with pytest.raises(ExperimentError, match=r"workers\.count"):
        vae(f"workers.count={span}")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{min: 3, max: 2}", r"^workers\.count: min 3 is more than max 2$"),
        ("{mim: 1, max: 2}", r"^workers\.count\.mim: there is no such field; did you mean min\?$"),
        ("{min: 1}", r"^workers\.count\.max: is required and was not given$"),
    ],
)
def test_a_wrong_span_gives_exactly_one_message(given: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        vae(f"workers.count={given}")


def test_memory_of_a_worker_does_not_grow_when_others_leave() -> None:
    this = vae("workers.count={min: 1, max: 3}")
    assert bounded(this, Share(3, 0.0, 1, 1)).training.micro_batch_size == 12
    assert bounded(this, Share(3, 0.0, 1)).training.micro_batch_size is None
    given = this.with_fields(training__micro_batch_size=6)
    assert bounded(given, Share(3, 0.0, 1, 1)).training.micro_batch_size == 6


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example.com"])
def test_the_address_of_a_job_server_is_no_cluster(monkeypatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        Refused, match=rf"RAY_ADDRESS: {address} .*RAY_API_SERVER_ADDRESS={address}"
    ):
        cluster.running_cluster()


def test_workers_look_for_modules_where_the_driver_does_and_not_in_the_working_directory(
    monkeypatch, tmp_path: Path
) -> None:
    """The command's own folder and $PYTHONPATH come before the standard library. What
    `import_from_here` adds comes last."""
    monkeypatch.chdir(tmp_path)
    standard = [path for path in sys.path if path not in searched_first()]
    assert standard
    monkeypatch.setattr(sys, "path", ["/bin", "/mine", *standard, str(tmp_path)])
    assert searched_first() == ["/bin", "/mine"]
    monkeypatch.setattr(sys, "path", ["", *standard])  # as `python -c` has it
    assert searched_first() == [str(tmp_path)]


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_a_ray_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str | None
) -> None:
    with cluster.told_if_slow(address):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cluster, "SLOW_SECONDS", 0.0)
    with cluster.told_if_slow(address):
        time.sleep(0.2)
    (told,) = capsys.readouterr().err.splitlines()
    assert (address or "starts on this machine") in told and "; look at " in told
