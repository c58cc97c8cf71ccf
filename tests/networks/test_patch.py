"""The patch discriminator against the published layers, and the sizes that it can judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ray_gen.core import Signature
from ray_gen.experiment import ExperimentError
from ray_gen.experiment.networks import PatchNetwork
from ray_gen.networks.patch import PatchDiscriminator
from ray_gen.training.build import build_networks, build_objective
from tests.helpers import gan, vae


def discriminator(*image: int, classes: int | None = None, **options: Any) -> PatchDiscriminator:
    """image: its shape."""
    signature = Signature(image, (1,), classes, several_logits=True)
    return PatchDiscriminator(signature, **PatchNetwork(**options).arguments())


def published() -> nn.Sequential:
    """C64-C128-C256-C512 and the last convolution (Isola et al. 2017, appendix 6.1.2, 70 x 70)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 256, 4, 2, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.LeakyReLU(0.2),
        nn.Conv2d(256, 512, 4, 1, 1, bias=False),
        nn.BatchNorm2d(512),
        nn.LeakyReLU(0.2),
        nn.Conv2d(512, 1, 4, 1, 1),
    )


def test_it_is_the_published_one() -> None:
    ours, theirs = discriminator(3, 64, 64), published()
    assert sum(p.numel() for p in ours.parameters()) == 2_765_633
    theirs.load_state_dict({k.removeprefix("layers."): v for k, v in ours.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    logits = ours(images)
    assert logits.shape == (2, 1, 6, 6)
    torch.testing.assert_close(logits, theirs(images))


@pytest.mark.parametrize(
    ("size", "layers", "patches"),
    [
        ((256, 256), 3, (30, 30)),
        ((64, 96), 3, (6, 10)),
        ((32, 32), 2, (6, 6)),
        ((28, 31), 3, (1, 1)),
        ((12, 13), 2, (1, 1)),
        ((6, 6), 1, (1, 1)),
    ],
)
def test_each_patch_has_a_logit(size: tuple[int, int], layers: int, patches: Any) -> None:
    assert PatchNetwork(layers=layers).size_problem(*size) is None
    with torch.device("meta"):
        assert discriminator(3, *size, layers=layers)(torch.empty(2, 3, *size)).shape[2:] == patches


@pytest.mark.parametrize(("layers", "pixels"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_as_many_pixels_as_told(layers: int, pixels: int) -> None:
    network = discriminator(1, 96, 96, layers=layers, width=1, norm="none")
    images = torch.randn(1, 1, 96, 96, requires_grad=True)
    logits = network(images)
    middle = logits.shape[2] // 2
    (slope,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    assert int(slope[0, 0].any(0).sum()) == int(slope[0, 0].any(1).sum()) == pixels


@pytest.mark.parametrize(
    ("size", "layers", "told"),
    [
        ((23, 64), 3, "layers to 2 or less"),
        ((8, 8), 3, "layers to 1"),
        ((5, 64), 1, "sides of at least 6 pixels"),
    ],
)
def test_an_image_without_a_patch_is_refused(size: tuple[int, int], layers: int, told: str) -> None:
    problem = PatchNetwork(layers=layers).size_problem(*size)
    assert problem is not None and told in problem
    with pytest.raises(ValueError, match=told):
        discriminator(3, *size, layers=layers)


def test_the_settings_refuse_it_too() -> None:
    with pytest.raises(ExperimentError, match=r"networks\.discriminator: patch leaves no patch of"):
        gan("networks.discriminator={kind: patch}")


def test_an_objective_that_wants_a_vector_is_refused() -> None:
    this = vae("networks.encoder={kind: patch, layers: 1}")
    with pytest.raises(ExperimentError, match=r"networks\.encoder: gives a logit for each patch"):
        build_networks(this, build_objective(this))


def test_weights_begin_as_published() -> None:
    torch.manual_seed(0)
    network = discriminator(3, 64, 64, width=32)
    for layer in network.layers:
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
            weight = layer.weight.detach()
            assert abs(float(weight.std()) - 0.02) < 5 * 0.02 / (2 * weight.numel()) ** 0.5
            assert abs(float(weight.mean()) - isinstance(layer, nn.BatchNorm2d)) < 0.02
            assert layer.bias is None or not layer.bias.any()


def test_labels_join_the_image() -> None:
    network = discriminator(1, 8, 8, classes=3, layers=1, width=4, norm="none").eval()
    images = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    first, second = network(images, torch.tensor([0, 2]))
    assert not torch.equal(first, second)
