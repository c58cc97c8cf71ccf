"""The benchmark compares like with like, and runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from ray_gen.experiment import Experiment
from ray_gen.training.build import build_networks, build_objective
from tests.helpers import CLASSES

JOBS = Path(__file__).resolve().parent.parent / "jobs"
CPU = torch.device("cpu")
NEEDS_PYTHAE = pytest.mark.skipif(find_spec("pythae") is None, reason="pythae is not installed")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with its neighbours importable."""
    monkeypatch.syspath_prepend(JOBS)
    import benchmark

    return benchmark


def _networks(given: dict, channels: int, side: int) -> nn.ModuleDict:
    experiment = Experiment.of(given).resolved((channels, side, side), CLASSES)
    return build_networks(experiment, build_objective(experiment))


def _count(*networks: nn.Module) -> int:
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def test_vae_peer_has_our_parameters(benchmark: ModuleType) -> None:
    import _peers

    assert _count(_peers.ExampleVaeNetwork()) == _count(_networks(benchmark.VAE, 1, 28))


@NEEDS_PYTHAE
def test_pythae_has_our_parameters(benchmark: ModuleType) -> None:
    import _peers

    images, labels = torch.zeros(128, 28, 28, 1, dtype=torch.uint8), torch.zeros(128)
    theirs = _peers.PythaeVae(images, labels, CPU).model
    assert _count(theirs) == _count(_networks(benchmark.VAE, 1, 28))


def test_dcgan_peer_has_our_parameters(benchmark: ModuleType) -> None:
    import _peers

    ours = _networks(benchmark.DCGAN, 3, 64)
    assert _count(_peers.example_generator()) == _count(ours["generator"])
    assert _count(_peers.example_discriminator()) == _count(ours["discriminator"])
    assert _count(ours) == 3_576_704 + 2_765_568


@pytest.mark.parametrize(
    "row", ["bare step", "ray_gen", "pytorch/examples", pytest.param("pythae", marks=NEEDS_PYTHAE)]
)
def test_vae_contestants_do_the_same_arithmetic(benchmark: ModuleType, row: str) -> None:
    """The same number of FLOPs in matrix products, for the same number of images."""
    model = replace(benchmark.MODELS["vae"], images=256)
    weights = 784 * 400 + 400 * 40 + 20 * 400 + 400 * 784
    # Forward, gradients of the weights, and of every layer's input but the image.
    flops = 2 * 128 * (3 * weights - 784 * 400)
    assert benchmark.counted_flops(model.build(row, 128, CPU), 1, CPU) == (128, flops)


def test_a_ratio_is_taken_within_rounds(benchmark: ModuleType) -> None:
    fast, slow = benchmark.Row("fast"), benchmark.Row("slow")
    fast.images_per_second = [200.0, 20.0, 300.0]
    slow.images_per_second = [100.0, 10.0, 100.0]
    assert benchmark.ratio(fast, slow) == 2.0


PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA Something": None,
}


@pytest.mark.parametrize(("name", "peak"), PEAKS.items())
def test_peak_of_a_device(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert benchmark.dense_bf16_peak(torch.device("cuda")) == peak


@pytest.mark.slow
def test_one_short_run_prints_every_row(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    arguments = ["--rounds", "1", "--seconds", "0.1", "--device", "cpu", "--json", path]
    done = subprocess.run(
        [sys.executable, JOBS / "benchmark.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    starts = [line.strip() for line in done.stdout.splitlines()]
    for name, tables in {
        "bare step": 2,
        "ray_gen ": 2,
        "whole trainer": 2,
        "pytorch/examples": 2,
        "pythae ": 1,
    }.items():
        assert sum(line.startswith(name) for line in starts) == tables, done.stdout
    models = json.loads(path.read_text())["models"]
    for rows in models.values():
        for row in rows:
            assert len(row["images_per_second"]) == row["installed"]
