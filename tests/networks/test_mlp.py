"""What the weights of fully connected networks are drawn from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ray_gen.core import ImageToVector, VectorToImage
from ray_gen.networks.mlp import Mlp

OPTIONS = {"activation": "tanh", "label_size": 3, "spectral_norm": False}


def linear_layers(initial_weights: str, decoder: bool) -> list[nn.Linear]:
    options = {**OPTIONS, "hidden_sizes": [200, 100], "initial_weights": initial_weights}
    network = (
        Mlp(VectorToImage(50, (1, 28, 28)), **options)
        if decoder
        else Mlp(ImageToVector((1, 28, 28), 100), **options)
    )
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("initial_weights", ["default", "glorot"])
def test_initial_weights_are_uniform_within_their_bound(
    initial_weights: str, decoder: bool
) -> None:
    layers = linear_layers(initial_weights, decoder)
    assert len(layers) == 3
    for layer in layers:
        outputs, inputs = layer.weight.shape
        glorot = initial_weights == "glorot"
        bound = math.sqrt(6 / (inputs + outputs)) if glorot else inputs**-0.5
        weights = layer.weight.detach().flatten()
        assert 0.99 * bound < float(weights.abs().max()) <= bound
        error = 5 / len(weights) ** 0.5  # five standard errors of a mean of U[-1, 1], and more
        assert abs(float(weights.mean())) < error * bound
        assert float(weights.std()) == pytest.approx(bound / math.sqrt(3), rel=error)
        assert bool((layer.bias == 0).all()) == glorot


def test_the_default_is_torchs_own() -> None:
    torch.manual_seed(3)
    ours = linear_layers("default", False)
    torch.manual_seed(3)
    expected = [nn.Linear(784, 200), nn.Linear(200, 100), nn.Linear(100, 100)]
    for layer, theirs in zip(ours, expected, strict=True):
        assert torch.equal(layer.weight, theirs.weight)
        assert torch.equal(layer.bias, theirs.bias)
