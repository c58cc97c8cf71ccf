"""The small encoder and decoder of maps: a forward pass written out, and the sizes that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, relu

from ray_gen.core import Balances, Signature
from ray_gen.experiment import ExperimentError
from ray_gen.experiment.networks import ConvNetwork
from ray_gen.networks.conv_maps import ConvMapDecoder, ConvMapEncoder, encoder_or_decoder
from tests.helpers import latent_autoencoder, vae

Weights = dict[str, Tensor]


def built(
    of: tuple[int, ...], to: tuple[int, ...], classes: int | None = None, **options: Any
) -> Any:
    arguments = ConvNetwork(width=3, label_size=2, **options).arguments()
    return encoder_or_decoder(Signature(of, to, classes), **arguments)


def weights(network: nn.Module) -> Weights:
    network.double()
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def layer(x: Tensor, of: Weights, name: str, **how: int) -> Tensor:
    apply = conv_transpose2d if how.pop("up", 0) else conv2d
    return apply(x, of[f"{name}.weight"], of[f"{name}.bias"], **how)


def residual(x: Tensor, of: Weights, name: str) -> Tensor:
    inner = relu(layer(relu(x), of, f"{name}.conv1", padding=1))
    return x + layer(inner, of, f"{name}.conv2")


def test_the_encoder_is_what_it_says() -> None:
    network = built((2, 8, 12), (5, 2, 3), blocks=2)
    assert isinstance(network, ConvMapEncoder)
    of, images = weights(network), torch.randn(2, 2, 8, 12, dtype=torch.float64)
    x = relu(layer(images, of, "layers.0", stride=2, padding=1))
    x = layer(x, of, "layers.2", stride=2, padding=1)
    assert x.shape == (2, 6, 2, 3)  # 3 channels, then 6
    x = residual(residual(x, of, "layers.3"), of, "layers.4")
    torch.testing.assert_close(network(images), layer(relu(x), of, "layers.6", padding=1))


def test_the_decoder_is_what_it_says() -> None:
    network = built((5, 2, 3), (2, 8, 12), blocks=1)
    assert isinstance(network, ConvMapDecoder) and isinstance(network, Balances)
    of, z = weights(network), torch.randn(2, 5, 2, 3, dtype=torch.float64)
    x = residual(layer(z, of, "layers.0", padding=1), of, "layers.1")
    x = relu(layer(relu(x), of, "layers.3", stride=2, padding=1, up=1))
    x = relu(layer(x, of, "layers.5", stride=2, padding=1, up=1))
    assert x.shape == (2, 3, 8, 12)
    torch.testing.assert_close(network(z), layer(x, of, "last", padding=1))


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize(("image", "latent"), [((3, 18, 28), (4, 9, 14)), ((1, 24, 8), (2, 3, 1))])
def test_any_ratio_and_every_pixel(image: Any, latent: Any, blocks: int) -> None:
    """No pixel is left out, also where sides leave no start map of 4 to 7 pixels."""
    assert ConvNetwork().size_problem(*image[1:], "map_to_map") is None
    encoder = built(image, latent, 3, blocks=blocks)
    decoder = built(latent, image, 3, blocks=blocks)
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        if name.endswith("bias"):
            nn.init.constant_(parameter, 9.0)  # no ReLU is 0
    images = torch.randn(2, *image, requires_grad=True)
    labels = torch.tensor([0, 2])
    z = encoder(images, labels)
    assert z.shape == (2, *latent)
    again = decoder(z, labels)
    assert again.shape == (2, *image)
    again.sum().backward()
    assert bool((images.grad != 0).all())


@pytest.mark.parametrize(
    ("image", "latent"),
    [((1, 8, 8), (4, 8, 8)), ((1, 12, 12), (4, 4, 4)), ((1, 16, 8), (4, 4, 4))],
)
def test_sides_that_are_not_halved_alike_are_refused(image: Any, latent: Any) -> None:
    for of, to in ((image, latent), (latent, image)):
        with pytest.raises(ValueError, match=f"{image[1]} x {image[2]} is not"):
            built(of, to)


def test_only_a_latent_that_is_a_vector_needs_a_start_map() -> None:
    """18 pixels are twice 9, but not 4 to 7 times a power of 2."""
    assert latent_autoencoder("data.image_size=18")
    with pytest.raises(ExperimentError, match=r"networks\.encoder: conv needs sides that are"):
        vae("data.image_size=18", kind="conv")
