"""The benchmark compares like with like, and runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from ray_gen.experiment import Experiment
from ray_gen.recipes import families
from ray_gen.training.build import build_networks, build_objective
from tests.helpers import CLASSES, STYLEGAN2, gan

JOBS = Path(__file__).resolve().parent.parent / "jobs"
CPU = torch.device("cpu")
NEEDS_PYTHAE = pytest.mark.skipif(find_spec("pythae") is None, reason="pythae is not installed")


@pytest.fixture
def benchmark(job: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module, with its neighbours importable."""
    return job("benchmark")


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


def test_diffusers_has_our_parameters(benchmark: ModuleType) -> None:
    import _peers

    images, labels = torch.zeros(16, 64, 64, 3, dtype=torch.uint8), torch.zeros(16)
    theirs = _peers.DiffusersAutoencoder(images, labels, CPU).model
    assert _count(theirs) == _count(_networks(benchmark.LATENT, 3, 64))


def test_latent_contestants_do_the_same_arithmetic(benchmark: ModuleType) -> None:
    """Matrix products and convolutions of one step, the whole batch at once and in parts."""
    model = replace(benchmark.MODELS["latent"], images=32)
    rows = ("diffusers", "bare step", "ray_gen", "ray_gen, micro-batch 4")
    found = {row: benchmark.counted_flops(model.build(row, 16, CPU), 1, CPU) for row in rows}
    assert {images for images, _ in found.values()} == {16}
    expected = found.pop("diffusers")[1]
    for flops in (flops for _, flops in found.values()):
        assert flops == pytest.approx(expected, rel=1e-3)


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


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_gradients_of_a_convolution_in_groups_are_counted(
    benchmark: ModuleType, transposed: bool
) -> None:
    import _flops

    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(8, 12, 3, stride=2, padding=1, groups=4)
    images = torch.randn(5, 8, 6, 10, requires_grad=True)
    forward = _flops.flops_of(lambda: layer(images))
    # Each of the 8 x 12 / 4 pairs of channels meets 9 taps at each place of the smaller map.
    places = 6 * 10 if transposed else 3 * 5
    assert forward == 2 * 5 * places * 9 * (8 * 12 // 4)
    both = layer(images).sum()
    assert _flops.flops_of(both.backward) == 2 * forward
    of_weights = layer(images.detach()).sum()
    assert _flops.flops_of(of_weights.backward) == forward


R1 = ("objective.r1_weight=1",)
PASSES: dict[str, tuple[tuple[str, ...], str, tuple[float, float], tuple[float, float]]] = {
    "non_saturating": ((), "dcgan", (1, 2), (1, 1)),
    "R1": (R1, "dcgan", (1, 3), (1, 1)),
    "lazy R1": ((*R1, "objective.r1_every=4"), "dcgan", (1, 2.25), (1, 1)),
    "R2": (("objective.r2_weight=1",), "dcgan", (2, 3), (1, 1)),
    "WGAN-GP": (
        (
            "objective.loss=wasserstein",
            "objective.gradient_penalty_weight=10",
            "networks.discriminator.batch_norm=false",
        ),
        "dcgan",
        (2, 3),
        (1, 1),
    ),
    "consistency": (("objective.consistency_weight=1",), "dcgan", (1, 3), (1, 1)),
    "relativistic, R1 and R2": (
        ("objective.loss=relativistic", *R1, "objective.r2_weight=1"),
        "r3gan",
        (1, 2),
        (1, 2),
    ),
    # The path length is of half the images.
    "path length": ((*STYLEGAN2, "objective.path_length_weight=2"), "mlp", (1, 2), (1.125, 1)),
    "reconstruction": (
        ("objective.loss=hinge", "objective.reconstruction_weight=1"),
        "fastgan",
        (1, 2),
        (1, 1),
    ),
}
"""Changes, architecture, and passes of the generator and of the discriminator in an update of the
discriminator and in an update of the generator."""


@pytest.mark.parametrize("case", PASSES)
def test_passes_of_a_step(benchmark: ModuleType, store_8, case: str) -> None:
    import _limits

    changes, kind, of_discriminator, of_generator = PASSES[case]
    this = gan("objective.discriminator_steps=3", "training.ema_every_steps=1", *changes, kind=kind)
    found = _limits.step_of(this, store_8, CPU).passes
    for name, own, others in zip(
        ("generator", "discriminator"), of_discriminator, of_generator, strict=True
    ):
        assert found[name] == pytest.approx(own + others / 3)


def test_limits_of_a_family(benchmark: ModuleType, monkeypatch, tmp_path: Path, capsys) -> None:
    import _limits

    monkeypatch.setattr(
        _limits, "FAMILIES", {"dcgan": (32, ("generator", "discriminator"), ["width=1"])}
    )
    file = tmp_path / "numbers.json"
    given = ["--rounds", "1", "--seconds", "0.001", "--device", "cpu", "--json", str(file)]
    benchmark.main([*given, "--only", "limits"])
    product, convolution, step = json.loads(file.read_text())["limits"]
    assert product["flops"] == 2 * 2048**3
    assert convolution["passes"] == {}
    assert step["passes"] == {"generator": 2, "discriminator": 4}
    share = step["flops"] / step["seconds"][0] * product["seconds"][0] / product["flops"]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dcgan-32"))
    assert f"{share:.1%}" in row


def test_families_of_the_limits_are_those_that_ship(benchmark: ModuleType) -> None:
    import _limits

    assert _limits.FAMILIES.keys() == families.FAMILIES.keys()


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
        "bare step ": 3,
        "ray_gen ": 3,
        "ray_gen, micro-batch": 2,
        "whole trainer ": 3,
        "pytorch/examples": 2,
        "pythae ": 1,
        "diffusers ": 1,
    }.items():
        assert sum(line.startswith(name) for line in starts) == tables, done.stdout
    models = json.loads(path.read_text())["models"]
    for rows in models.values():
        for row in rows:
            assert len(row["images_per_second"]) == row["installed"]
