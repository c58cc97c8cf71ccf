"""Each label changes only its own images, and only in conditional networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_gen.core import ImageToVector, VectorToImage
from ray_gen.networks.conv import ConvDecoder, ConvEncoder
from ray_gen.networks.dcgan import DcganDiscriminator, DcganGenerator
from ray_gen.networks.mlp import Mlp

SHAPE = (1, 8, 8)
MLP = {
    "hidden_sizes": [16],
    "activation": "relu",
    "initial_weights": "default",
    "label_size": 3,
    "spectral_norm": False,
}
CONV = {"width": 4, "label_size": 3}
DCGAN = {"width": 4, "batch_norm": True, "label_size": 3, "spectral_norm": False}

TO_IMAGE = [(Mlp, MLP), (ConvDecoder, CONV), (DcganGenerator, DCGAN)]
TO_VECTOR = [(Mlp, MLP), (ConvEncoder, CONV), (DcganDiscriminator, DCGAN)]
BOTH = [(kind, options, True) for kind, options in TO_IMAGE]
BOTH += [(kind, options, False) for kind, options in TO_VECTOR]


def network_and_input(kind, options, to_image: bool, label_count: int | None):
    signature = (
        VectorToImage(5, SHAPE, label_count) if to_image else ImageToVector(SHAPE, 5, label_count)
    )
    network: nn.Module = kind(signature, **options)
    return network.eval(), torch.randn(1, 5) if to_image else torch.randn(1, *SHAPE)


@pytest.mark.parametrize(("kind", "options", "to_image"), BOTH)
def test_another_label_gives_another_output(kind, options, to_image: bool) -> None:
    network, x = network_and_input(kind, options, to_image, label_count=4)
    outputs = network(x.repeat(4, *[1] * (x.dim() - 1)), torch.arange(4)).detach()
    for first in range(4):
        for second in range(first):
            assert float((outputs[first] - outputs[second]).abs().max()) > 1e-4


@pytest.mark.parametrize(("kind", "options", "to_image"), BOTH)
def test_each_image_has_its_own_label(kind, options, to_image: bool) -> None:
    network, x = network_and_input(kind, options, to_image, label_count=4)
    both = torch.cat([x, torch.randn_like(x)])
    alone, together = network(x, torch.tensor([2])), network(both, torch.tensor([2, 3]))
    torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize(("kind", "options", "to_image"), BOTH)
def test_every_label_learns(kind, options, to_image: bool) -> None:
    """Each label's row gets a gradient from its own images and from no other."""
    network, x = network_and_input(kind, options, to_image, label_count=4)
    labels = torch.tensor([1, 3, 3])
    network(torch.randn(3, *x.shape[1:]), labels).square().sum().backward()
    (table,) = [m for m in network.modules() if isinstance(m, nn.Embedding)]
    reached = table.weight.grad.abs().sum(1) > 0
    assert reached.tolist() == [False, True, False, True]


@pytest.mark.parametrize(("kind", "options", "to_image"), BOTH)
def test_without_labels_there_is_no_table(kind, options, to_image: bool) -> None:
    network, x = network_and_input(kind, options, to_image, label_count=None)
    assert not any(isinstance(module, nn.Embedding) for module in network.modules())
    assert torch.equal(network(x, None), network(x, torch.tensor([1])))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (4, 1, 1)])
def test_mlps_do_any_shape(shape: tuple[int, int, int]) -> None:
    images = Mlp(VectorToImage(5, shape), **MLP)(torch.randn(2, 5), None)
    assert images.shape == (2, *shape)
    assert Mlp(ImageToVector(shape, 7), **MLP)(images, None).shape == (2, 7)


@pytest.mark.parametrize("hidden_sizes", [[], [16], [16, 8]])
def test_mlps_are_linear_layers_with_an_activation_between_each_two(hidden_sizes) -> None:
    options = {**MLP, "hidden_sizes": hidden_sizes}
    encoder = Mlp(ImageToVector(SHAPE, 7), **options)
    sizes = [64, *hidden_sizes, 7]
    linear = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == sizes[:-1]
    assert [layer.out_features for layer in linear] == sizes[1:]
    images = torch.randn(4, *SHAPE)
    expected = images.flatten(1)
    for position, layer in enumerate(linear):
        expected = expected @ layer.weight.T + layer.bias
        if position < len(linear) - 1:
            expected = expected.clamp(min=0)
    torch.testing.assert_close(encoder(images, None), expected)


@pytest.mark.parametrize(("kind", "options"), TO_IMAGE)
def test_tanh_only_where_the_signature_asks_for_it(kind, options) -> None:
    torch.manual_seed(1)
    identity = kind(VectorToImage(5, SHAPE, output="identity"), **options).eval()
    torch.manual_seed(1)
    tanh = kind(VectorToImage(5, SHAPE, output="tanh"), **options).eval()
    z = 10 * torch.randn(8, 5)
    torch.testing.assert_close(tanh(z, None), identity(z, None).tanh())


@pytest.mark.parametrize(("kind", "options", "to_image"), BOTH)
def test_networks_leave_what_they_are_given_alone(kind, options, to_image: bool) -> None:
    """In-place activations must not reach the caller's images."""
    network, x = network_and_input(kind, options, to_image, label_count=None)
    before = x.clone()
    network(x, None)
    assert torch.equal(x, before)
