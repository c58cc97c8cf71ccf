"""Spectral normalisation against singular values in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ray_gen.core import ImageToVector, VectorToImage, begin_phase, phase_modules
from ray_gen.networks.dcgan import DcganDiscriminator, DcganGenerator
from ray_gen.networks.mlp import Mlp
from ray_gen.networks.spectral_norm import SpectralNorm, with_spectral_norm

LAYERS = {
    "linear": (lambda: nn.Linear(12, 7), 0),
    "conv": (lambda: nn.Conv2d(3, 8, 4, 2, 1), 0),
    "transposed": (lambda: nn.ConvTranspose2d(6, 5, 4, 2, 1), 1),
}


def largest_singular_value(weight: Tensor, out_axis: int) -> float:
    matrix = weight.detach().double().transpose(0, out_axis).reshape(weight.shape[out_axis], -1)
    return float(torch.linalg.svdvals(matrix)[0])


def phases(network: nn.Module, count: int) -> None:
    for _ in range(count):
        begin_phase(network)
        for module in phase_modules(network).values():
            module.end_phase(module.phase_statistics())


@pytest.mark.parametrize("kind", LAYERS)
def test_after_many_phases_the_largest_singular_value_is_one(kind: str) -> None:
    make, out_axis = LAYERS[kind]
    layer = with_spectral_norm(make().double())
    raw = layer.parametrizations.weight.original.detach().clone()
    phases(layer, 300)
    sigma = largest_singular_value(raw, out_axis)
    torch.testing.assert_close(layer.weight, raw / sigma, rtol=1e-6, atol=1e-9)
    assert largest_singular_value(layer.weight, out_axis) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_it_starts_near_enough(kind: str) -> None:
    make, out_axis = LAYERS[kind]
    layer = with_spectral_norm(make())
    assert largest_singular_value(layer.weight, out_axis) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("kind", LAYERS)
def test_it_follows_a_weight_that_trains(kind: str) -> None:
    make, out_axis = LAYERS[kind]
    layer = with_spectral_norm(make().double())
    original = layer.parametrizations.weight.original
    for _ in range(200):
        with torch.no_grad():
            original.mul_(1.003).add_(0.001)
        phases(layer, 1)
    assert largest_singular_value(layer.weight, out_axis) == pytest.approx(1.0, rel=1e-3)


def test_the_gradient_treats_the_singular_vectors_as_constants() -> None:
    """Miyato et al. 2018, eq. 12: ∂/∂W of <C, W / σ> is (C - <C, W̄> u vᵀ) / σ."""
    layer = with_spectral_norm(nn.Linear(12, 7).double())
    phases(layer, 300)
    original = layer.parametrizations.weight.original
    u, singular_values, vh = torch.linalg.svd(original.detach())
    sigma = singular_values[0]
    cotangent = torch.randn(7, 12, dtype=torch.float64)
    (found,) = torch.autograd.grad(layer.weight, original, cotangent)
    inner = (cotangent * original.detach() / sigma).sum()
    expected = (cotangent - inner * torch.outer(u[:, 0], vh[0])) / sigma
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", LAYERS)
def test_forward_passes_change_no_buffer(kind: str) -> None:
    make, _ = LAYERS[kind]
    layer = with_spectral_norm(make())
    before = copy.deepcopy(layer.state_dict())
    shape = (4, 12) if kind == "linear" else (4, 3 if kind == "conv" else 6, 8, 8)
    for training in (True, False):
        layer.train(training)
        layer(torch.randn(shape)).sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    phases(layer, 1)
    after = layer.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_it_is_exact_under_autocast() -> None:
    """16 bits would leave σ wrong by up to 0.4 %."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = with_spectral_norm(nn.Linear(64, 32)).to(device)
    expected = layer.weight.detach()
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(layer.weight, expected)


def test_a_copy_normalises_its_own_weight() -> None:
    """The EMA of a network is such a copy. Its phases must not read the original's weight."""
    layer = with_spectral_norm(nn.Linear(12, 7).double())
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.parametrizations.weight.original.copy_(torch.randn(7, 12))
    phases(other, 300)
    assert largest_singular_value(other.weight, 0) == pytest.approx(1.0, rel=1e-6)


def test_every_layer_of_every_network_that_offers_it_is_normalised() -> None:
    mlp = {
        "hidden_sizes": [16],
        "activation": "relu",
        "initial_weights": "default",
        "label_size": 3,
        "spectral_norm": True,
    }
    dcgan = {"width": 4, "batch_norm": False, "label_size": 3, "spectral_norm": True}
    networks = [
        Mlp(ImageToVector((1, 8, 8), 1), **mlp),
        Mlp(VectorToImage(5, (1, 8, 8)), **mlp),
        DcganDiscriminator(ImageToVector((1, 8, 8), 1), **dcgan),
        DcganGenerator(VectorToImage(5, (1, 8, 8)), **dcgan),
    ]
    for network in networks:
        phases(network.double(), 1000)
        layers = [m for m in network.modules() if hasattr(m, "parametrizations")]
        assert len(layers) == 2
        for layer in layers:
            out_axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            assert largest_singular_value(layer.weight, out_axis) == pytest.approx(1.0, rel=1e-3)


def test_an_average_of_the_layer_is_normalised_too() -> None:
    """Averages of unit vectors are shorter than 1; σ must not shrink with them."""
    norm = SpectralNorm(nn.Parameter(torch.randn(6, 5)), 0)
    weight = torch.randn(6, 5)
    expected = norm(weight)
    norm.left.mul_(0.8)
    norm.right.mul_(0.7)
    torch.testing.assert_close(norm(weight), expected)
