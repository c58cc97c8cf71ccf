"""DCGAN against the layers that the paper lists, written out here one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ray_gen.core import ImageToVector, VectorToImage
from ray_gen.networks.conv import ConvDecoder, ConvEncoder
from ray_gen.networks.dcgan import DcganDiscriminator, DcganGenerator

SIZES = [8, 16, 28, 32, 48, 64, 128]


def generator(
    side: int = 64, channels: int = 3, width: int = 64, latent: int = 100, **options
) -> DcganGenerator:
    labels = options.pop("label_count", None)
    options = {"batch_norm": True, "label_size": 8, "spectral_norm": False, **options}
    signature = VectorToImage(latent, (channels, side, side), labels, output="tanh")
    return DcganGenerator(signature, width=width, **options)


def discriminator(
    side: int = 64, channels: int = 3, width: int = 64, **options
) -> DcganDiscriminator:
    labels = options.pop("label_count", None)
    options = {"batch_norm": True, "label_size": 8, "spectral_norm": False, **options}
    return DcganDiscriminator(
        ImageToVector((channels, side, side), 1, labels), width=width, **options
    )


def papers_generator() -> nn.Sequential:
    """Figure 1 of Radford et al. 2016 at 64 x 64 x 3."""
    return nn.Sequential(
        nn.ConvTranspose2d(100, 512, 4, 1, 0, bias=False),
        nn.BatchNorm2d(512),
        nn.ReLU(),
        nn.ConvTranspose2d(512, 256, 4, 2, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.ReLU(),
        nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def papers_discriminator() -> nn.Sequential:
    """Its mirror image, without a sigmoid: losses take logits."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 256, 4, 2, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.LeakyReLU(0.2),
        nn.Conv2d(256, 512, 4, 2, 1, bias=False),
        nn.BatchNorm2d(512),
        nn.LeakyReLU(0.2),
        nn.Conv2d(512, 1, 4, 1, 0, bias=False),
    )


def by_layer(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and statistics in their order, by the number of their layer."""
    return {name.split("layers.")[-1]: tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("ours", "papers", "image"),
    [
        (generator, papers_generator, False),
        (discriminator, papers_discriminator, True),
    ],
)
def test_it_is_the_papers_network(ours, papers, image: bool) -> None:
    """The same shapes in the same order, and with the same weights the same function."""
    network, reference = ours().double(), papers().double()
    weights = by_layer(network)
    expected = reference.state_dict()
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in expected.items()}
    reference.load_state_dict(weights)
    x = torch.randn((2, 3, 64, 64) if image else (2, 100), dtype=torch.float64)
    found = network(x, None)
    wanted = reference(x if image else x[:, :, None, None])
    torch.testing.assert_close(found, wanted.flatten(1) if image else wanted)


def test_weights_begin_as_in_the_paper() -> None:
    torch.manual_seed(0)
    for network in (generator(), discriminator()):
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                weight, count = layer.weight.detach(), layer.weight.numel()
                assert abs(float(weight.std()) - 0.02) < 5 * 0.02 / (2 * count) ** 0.5
                assert abs(float(weight.mean())) < 5 * 0.02 / count**0.5
                assert layer.bias is None or not layer.bias.any()
            if isinstance(layer, nn.BatchNorm2d):
                scale = layer.weight.detach()
                assert abs(float(scale.mean()) - 1.0) < 0.02
                assert 0.01 < float(scale.std()) < 0.03
                assert not layer.bias.any()


def test_there_is_no_batch_norm_at_the_image() -> None:
    for side in SIZES:
        kinds = [type(layer) for layer in generator(side, width=4).layers]
        assert kinds[-2:] == [nn.ConvTranspose2d, nn.Tanh]
        kinds = [type(layer) for layer in discriminator(side, width=4).layers]
        assert kinds[:2] == [nn.Conv2d, nn.LeakyReLU]
        assert (nn.BatchNorm2d in kinds) == (side > 8)  # at 8 there is no layer between
        assert kinds[-1] is nn.Conv2d
    without = [*generator(batch_norm=False).modules(), *discriminator(batch_norm=False).modules()]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in without)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", SIZES)
def test_every_size_works_in_both_directions(side: int, channels: int) -> None:
    shape = (channels, side, side)
    for label_count in (None, 4):
        labels = None if label_count is None else torch.tensor([0, 3])
        pairs = [
            (
                generator(side, channels, 4, 7, label_count=label_count),
                discriminator(side, channels, 4, label_count=label_count),
            ),
            (
                ConvDecoder(VectorToImage(7, shape, label_count), width=4, label_size=3),
                ConvEncoder(ImageToVector(shape, 1, label_count), width=4, label_size=3),
            ),
        ]
        for to_image, to_vector in pairs:
            images = to_image(torch.randn(2, 7), labels)
            assert images.shape == (2, *shape)
            assert to_vector(images, labels).shape == (2, 1)


def test_every_pixel_is_reached() -> None:
    """No border that a transposed convolution leaves constant, none that a convolution drops."""
    for side in SIZES:
        images = generator(side, 1, 4, 7)(torch.randn(3, 7), None)
        assert bool((images.std(0) > 0).all())
        images = torch.randn(1, 1, side, side, requires_grad=True)
        discriminator(side, 1, 4, batch_norm=False)(images, None).sum().backward()
        assert bool((images.grad != 0).all())
