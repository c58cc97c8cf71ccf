"""The model of a step's time: its bytes are what a step sends, its formulas the known ones."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner

import ray_gen.training.step
from ray_gen.distributed import World
from ray_gen.training.build import build_objective
from ray_gen.training.gradients import FlatSum
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from tests.helpers import largest_difference, weights

JOBS = Path(__file__).resolve().parent.parent / "jobs"
PRETENDED = World(rank=0, size=2)
"""Acts as one of two ranks, in a group of one process. So a sum is this rank's own value."""


@pytest.fixture
def scaling(job: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module, with its neighbours importable."""
    return job("scaling")


@pytest.fixture
def arithmetic(scaling: ModuleType) -> ModuleType:
    """The model alone."""
    import _scaling_model

    return _scaling_model


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _stepped(experiment, steps: int, kind: type[FlatSum], patch: pytest.MonkeyPatch) -> State:
    """The state of one of two workers, the other's part of the batch left out."""
    objective = build_objective(experiment)
    state = State.build(experiment, objective, PRETENDED)
    meter = Meter(experiment.training.global_batch_size, PRETENDED)
    with patch.context() as patched:
        patched.setattr(ray_gen.training.step, "FlatSum", kind)
        step = ray_gen.training.step.Step(experiment, objective, state, PRETENDED, meter)
    generator = torch.Generator().manual_seed(0)
    part = experiment.training.global_batch_size // 2
    for _ in range(steps):
        step(torch.rand(part, 3, 64, 64, generator=generator), None)
    return state


SMALL = ("training.global_batch_size=8", "training.group_size=4")


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("dcgan-64", []),
        ("dcgan-64", ["objective.discriminator_steps=2", "objective.r1_weight=1"]),
        ("dcgan-64", ["networks.discriminator.spectral_norm=true"]),
        ("conv-vae-64", []),
    ],
)
@pytest.mark.usefixtures("group")
def test_bytes_are_what_a_step_sends(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch, model: str, options: list[str]
) -> None:
    """One all-reduce a phase that is due, of all its gradients and statistics."""
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def spy(tensor, *arguments, **options):
        sent.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *arguments, **options)

    monkeypatch.setattr(dist, "all_reduce", spy)
    experiment = scaling.experiment_of(model, 4, *SMALL, *options)
    _stepped(experiment, 2, FlatSum, monkeypatch)
    phases = scaling.phase_elements(experiment).values()
    expected = [
        4 * (gradients + others)
        for step in range(2)
        for gradients, others, every in phases
        if (step + 1) % every == 0
    ]
    assert sent == expected


def test_bytes_of_the_papers_networks(scaling: ModuleType) -> None:
    """Parameters as pytorch/examples counts them; BatchNorm's means, variances and one count."""
    found = scaling.phase_elements(scaling.experiment_of("dcgan-64"))
    discriminator = sum(2 * channels + 1 for channels in (128, 256, 512))
    generator = sum(2 * channels + 1 for channels in (512, 256, 128, 64))
    assert found == {
        "discriminator": (2_765_568, discriminator, 1),
        "generator": (3_576_704, generator, 1),
    }


@pytest.mark.usefixtures("group")
def test_choices_sum_the_same(scaling: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts and statistics included: bit for bit, but for bf16, whose rounding is 2⁻⁹."""
    import _workers

    experiment = scaling.experiment_of(
        "dcgan-64",
        4,
        *SMALL,
        *(
            f"optimizers.{p}={{kind: sgd, learning_rate: 1e-3}}"
            for p in ("generator", "discriminator")
        ),
    )
    start = weights(_stepped(experiment, 0, FlatSum, monkeypatch))
    flat = weights(_stepped(experiment, 1, FlatSum, monkeypatch))
    moved = largest_difference(flat, start)
    assert moved > 0
    for kind in (_workers.EachParameter, _workers.Buckets, _workers.Compared):
        assert largest_difference(weights(_stepped(experiment, 1, kind, monkeypatch)), flat) == 0
    rounded = weights(_stepped(experiment, 1, _workers.Bf16, monkeypatch))
    assert 0 < largest_difference(rounded, flat) < moved / 50


def _times(arithmetic: ModuleType, **changes):
    given = {"sizes": [(1e7, 1.0), (2e7, 0.5)], "images_per_second": 1e4, "group_size": 16}
    return arithmetic.StepTime(**{**given, **changes})


def test_one_gpu_is_compute_alone(arithmetic: ModuleType) -> None:
    times = _times(arithmetic, hidden=0.5)
    for link in arithmetic.interconnects():
        assert link.all_reduce_seconds(1, 1e8) == 0
        assert times.step_seconds(64, 1, link) == 64 / 1e4
        assert times.weak(64, 1, link) == times.strong(64, 1, link) == 1


def test_the_ring_by_hand(arithmetic: ModuleType) -> None:
    """Four GPUs of one node, 100 MB at 1 GB/s, 1 ms a hop: 6 hops, and 1.5 times the bytes."""
    node = arithmetic.Link("", 4, 1.0, 1.0, hop_seconds=1e-3, bytes_per_second=1e9)
    assert node.all_reduce_seconds(4, 1e8) == pytest.approx(0.006 + 0.150)
    # Two such nodes, 0.5 GB/s between them, 2 ms: 12 hops inside, 2 between; 1.75 times the bytes.
    nodes = arithmetic.Link("", 4, 2e-3, 5e8, hop_seconds=1e-3, bytes_per_second=1e9)
    assert nodes.all_reduce_seconds(8, 1e8) == pytest.approx(0.012 + 0.004 + 0.350)
    # 256 machines, a few bytes: a tree of 8 levels, up and down, in the place of 510 hops.
    machines = arithmetic.Link("", 1, 1e-3, 1e9)
    assert machines.all_reduce_seconds(256, 4) == pytest.approx(0.016, rel=1e-4)


def test_a_step_adds_its_phases_and_hides_what_it_can(arithmetic: ModuleType) -> None:
    link = arithmetic.Link("", 1, 0.0, 1e9)
    summing = 0.010 + 0.5 * 0.020  # 2(n−1)/n = 1 for two
    plain = _times(arithmetic).step_seconds(160, 2, link)
    assert plain == pytest.approx(0.016 + summing)
    hiding = _times(arithmetic, hidden=0.25).step_seconds(160, 2, link)
    assert hiding == pytest.approx(plain - 0.25 * summing)
    bounded = _times(arithmetic, hidden=1.0).step_seconds(160, 2, link)
    assert bounded == pytest.approx(plain - 0.008)  # half of the compute


def test_launches_are_a_floor_under_compute(arithmetic: ModuleType) -> None:
    times = _times(arithmetic, kernel_seconds=5e-6, kernels=(600.0, 100.0))
    assert times.compute_seconds(16) == pytest.approx(0.0035)
    assert times.compute_seconds(3200) == pytest.approx(0.32)


def test_efficiency_falls_with_gpus(arithmetic: ModuleType) -> None:
    times = _times(arithmetic, kernel_seconds=5e-6, kernels=(600.0, 100.0))
    counts = [2**power for power in range(9)]
    for link in arithmetic.interconnects():
        for efficiency in (
            lambda n, link=link: times.weak(64, n, link),
            lambda n, link=link: times.strong(4096, n, link),
        ):
            found = [efficiency(count) for count in counts]
            assert found[0] == 1
            assert all(0 < fewer < more for more, fewer in pairwise(found))


def test_more_gpus_than_groups_have_no_efficiency(arithmetic: ModuleType) -> None:
    times, link = _times(arithmetic), arithmetic.interconnects()[0]
    assert times.strong(64, 4, link) is not None
    assert times.strong(64, 5, link) is None
    # Three GPUs share four groups: one takes two.
    assert times.strong(64, 3, link) < 64 / 1e4 / (3 * 32 / 1e4)


@pytest.mark.parametrize("algorithm", ["ring", "halving-doubling", "tree", "star"])
def test_a_fit_finds_what_made_the_points(arithmetic: ModuleType, algorithm: str) -> None:
    costs = [
        arithmetic.ALGORITHMS[algorithm](n, size) for n in (2, 3, 4) for size in (1e3, 1e5, 1e7)
    ]
    found = arithmetic.fit([(hops, size, 2e-4 * hops + size / 25e6) for hops, size in costs])
    assert found.hop_seconds == pytest.approx(2e-4)
    assert found.bytes_per_second == pytest.approx(25e6)
    assert max(found.residuals) < 1e-9


def test_published_tables_give_sensible_constants(arithmetic: ModuleType) -> None:
    """Within what the vendors say of the hardware: 450 GB/s of NVLink, 400 GB/s of network."""
    node = arithmetic.published(arithmetic.H200_NODE, 8, 1)
    nodes = arithmetic.published(arithmetic.B200_NODES, 32, 4, node.hop_seconds)
    assert 5e-7 < node.hop_seconds < 5e-6 < nodes.hop_seconds < 5e-5
    assert 200e9 < node.bytes_per_second < 450e9
    assert 100e9 < nodes.bytes_per_second < 400e9
    assert all(math.isfinite(value) for value in (*node.residuals, *nodes.residuals))


@pytest.mark.parametrize("command", ["measure", "choices"])
def test_links_need_root(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda tool: f"/sbin/{tool}")
    done = CliRunner().invoke(scaling.main, [command])
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == (
        "Error: network namespaces need root; run this with sudo"
    )


def test_predictions_are_printed_for_every_model(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "work_of_step", lambda model: (2.5e9, 600.0, 100.0))
    done = CliRunner().invoke(scaling.main, ["predict", "--images-per-second", "20000"])
    assert done.exit_code == 0, done.output
    assert done.output.count("predicted efficiency, weak") == len(scaling.MODELS)
    assert "strong, global batch 64: 4 GPUs at most" in done.output
    assert "20,000 images/s at most" in done.output
