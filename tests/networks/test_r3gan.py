"""R3GAN against the published counts of parameters, and a forward pass written out here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from ray_gen import losses as gan_losses
from ray_gen.core import Signature
from ray_gen.experiment.networks import R3ganNetwork
from ray_gen.losses import squared_gradient_norm
from ray_gen.networks.r3gan import R3ganDiscriminator, R3ganGenerator
from ray_gen.training.build import build_networks, build_objective
from tests.helpers import gan, stepped

IMAGENET = {"width": 1536, "group_width": 32}
PAPER = {
    "CIFAR-10": (32, 10, {}, 20.8, 21.3),
    "FFHQ-64": (64, None, {}, 22.4, 22.4),
    "FFHQ-256": (256, None, {}, 23.1, 23.0),
    "ImageNet-32": (32, 1000, IMAGENET, 82.9, 86.5),
    "ImageNet-64": (64, 1000, {**IMAGENET, "full_width_stages": 5}, 103.6, 107.2),
}
SMALL = {"width": 6, "full_width_stages": 2, "group_width": 4, "label_size": 3}


def networks(
    size: tuple[int, int],
    classes: int | None,
    *,
    numbers: int = 0,
    latent: int = 64,
    channels: int = 3,
    **options: Any,
) -> tuple[R3ganGenerator, R3ganDiscriminator]:
    arguments = R3ganNetwork(**options).arguments()
    image = (channels, *size)
    to_image = Signature((latent,), image, classes, "tanh", label_numbers=numbers)
    to_logit = Signature(image, (1,), classes, label_numbers=numbers)
    return R3ganGenerator(to_image, **arguments), R3ganDiscriminator(to_logit, **arguments)


@pytest.mark.parametrize("name", PAPER)
def test_it_has_as_many_parameters_as_the_paper(name: str) -> None:
    side, classes, options, *published = PAPER[name]
    with torch.device("meta"):
        both = networks((side, side), classes, **options)
    counted = [sum(p.numel() for p in network.parameters()) / 1e6 for network in both]
    assert [round(count, 1) for count in counted] == published


def filled(network: nn.Module) -> dict[str, Tensor]:
    """The network's weights by name, in float64 and drawn anew: W₃ begins with 0."""
    network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.5)
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def activated(x: Tensor, bias: Tensor) -> Tensor:
    x = x + bias[:, None, None]
    return torch.where(x > 0, x, 0.2 * x)


def mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """A 1 x 1 convolution."""
    return torch.einsum("oc,nchw->nohw", matrix, x)


def block(x: Tensor, weights: dict[str, Tensor], name: str, group_width: int) -> Tensor:
    y = activated(mixed(x, weights[f"{name}.widen.weight"]), weights[f"{name}.biases.0"])
    weight, parts = weights[f"{name}.grouped"], []
    for first in range(0, y.shape[1], group_width):
        group = slice(first, first + group_width)
        parts.append(conv2d(y[:, group], weight[group], padding=1))
    y = activated(torch.cat(parts, 1), weights[f"{name}.biases.1"])
    return x + mixed(y, weights[f"{name}.narrow.weight"])


def filters(channels: int) -> Tensor:
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    return torch.outer(line, line).expand(channels, 1, 4, 4)


def test_the_generator_is_the_papers() -> None:
    """24 x 40 pixels: two stages of 6 channels, then one of 3."""
    generator, _ = networks((24, 40), 5, numbers=2, latent=4, channels=2, **SMALL)
    weights = filled(generator)
    z = torch.randn(3, 4, dtype=torch.float64)
    labels = torch.tensor([[0, 0.3, -1], [4, 2, 0.5], [1, 0, 0]], dtype=torch.float64)
    code = torch.cat([torch.eye(5, dtype=torch.float64)[labels[:, 0].long()], labels[:, 1:]], 1)
    vector = torch.cat([z, code @ weights["from_labels"].t()], 1)
    x = (vector @ weights["from_vector"].t())[:, :, None, None] * weights["start"]
    assert x.shape == (3, 6, 6, 10)
    x = block(block(x, weights, "stages.0.0", 4), weights, "stages.0.1", 4)
    x = conv_transpose2d(x, 4 * filters(6), stride=2, padding=1, groups=6)
    x = block(block(x, weights, "stages.1.1", 4), weights, "stages.1.2", 4)
    x = mixed(x, weights["stages.2.0.weight"])
    x = conv_transpose2d(x, 4 * filters(3), stride=2, padding=1, groups=3)
    x = block(block(x, weights, "stages.2.2", 2), weights, "stages.2.3", 2)
    expected = mixed(x, weights["to_image.weight"])
    torch.testing.assert_close(generator(z, labels), expected)
    assert float(expected.abs().max()) > 1  # no tanh


@pytest.mark.parametrize("labelled", [False, True])
def test_the_discriminator_is_the_papers(labelled: bool) -> None:
    _, discriminator = networks((24, 24), 5 if labelled else None, channels=2, **SMALL)
    weights = filled(discriminator)
    images = torch.randn(3, 2, 24, 24, dtype=torch.float64)
    labels = torch.tensor([0, 4, 1])
    x = mixed(images, weights["from_image.weight"])
    x = block(block(x, weights, "stages.2.0", 2), weights, "stages.2.1", 2)
    x = conv2d(x, filters(3), stride=2, padding=1, groups=3)
    x = mixed(x, weights["stages.2.3.weight"])
    x = block(block(x, weights, "stages.1.0", 4), weights, "stages.1.1", 4)
    x = conv2d(x, filters(6), stride=2, padding=1, groups=6)
    x = block(block(x, weights, "stages.0.0", 4), weights, "stages.0.1", 4)
    assert x.shape == (3, 6, 6, 6)
    features = (x * weights["end"]).sum((2, 3)) @ weights["to_vector"].t()
    if labelled:
        features = (features * weights["from_labels"].t()[labels]).sum(1, keepdim=True)
    torch.testing.assert_close(discriminator(images, labels if labelled else None), features)


def residual_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in network.named_modules() if hasattr(m, "narrow"))


@pytest.mark.parametrize("side", [32, 64])
def test_weights_begin_as_in_the_paper(side: int) -> None:
    torch.manual_seed(0)
    count = 8 if side == 32 else 10
    deviations: dict[str, tuple[Tensor, float]] = {}
    for network in networks((side, side), 10, width=64):
        assert len(list(residual_blocks(network))) == count
        gain = (2 / 1.04) ** 0.5 * count**-0.25
        for name, one in residual_blocks(network):
            assert not one.narrow.weight.any()
            assert not any(bias.any() for bias in one.biases)
            inputs = one.widen.weight.shape[1]
            deviations[f"{name} W1"] = (one.widen.weight, gain / inputs**0.5)
            deviations[f"{name} W2"] = (one.grouped, gain / (16 * 9) ** 0.5)
    generator, discriminator = networks((side, side), 10, width=64)
    deviations |= {
        "start": (generator.start, 1.0),
        "from z": (generator.from_vector, 128**-0.5),
        "z's labels": (generator.from_labels, 10**-0.5),
        "end": (discriminator.end, 1 / 4),
        "to logit": (discriminator.to_vector, 64**-0.5),
        "D's labels": (discriminator.from_labels, 640**-0.5),
        "from image": (discriminator.from_image.weight, 3**-0.5),
    }
    for name, (weight, expected) in deviations.items():
        error = 5 * expected / (2 * weight.numel()) ** 0.5
        assert abs(float(weight.detach().std()) - expected) < error, name


def test_a_block_begins_as_the_identity() -> None:
    for network in networks((8, 8), None, width=16):
        for _, one in residual_blocks(network):
            x = torch.randn(2, 16, 4, 4)
            assert torch.equal(one(x), x)


def test_under_autocast_only_the_named_stages_are_in_bf16() -> None:
    for network in networks((32, 32), 3, width=16, bf16_from=16):
        for name, parameter in network.named_parameters():
            if name.endswith("narrow.weight"):
                nn.init.normal_(parameter, 0.0, 0.1)
        seen: list[torch.dtype] = []

        def note(module: nn.Module, given: Any, found: Tensor, to: list = seen) -> None:
            to.append(found.dtype)

        for stage in network.stages:
            stage.register_forward_hook(note)
        x = torch.randn(2, 64) if isinstance(network, R3ganGenerator) else torch.randn(2, 3, 32, 32)
        labels = torch.tensor([0, 2])
        exact = network(x, labels)
        assert set(seen) == {torch.float32}
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found = network(x, labels)
        by_side = seen if isinstance(network, R3ganGenerator) else seen[::-1]
        assert by_side == [torch.float32] * 2 + [torch.bfloat16] * 2
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, atol=0.05, rtol=0.05)


def test_other_outputs() -> None:
    arguments = R3ganNetwork(width=8).arguments()
    for classes, labels in ((None, None), (3, torch.tensor([0, 2]))):
        encoder = R3ganDiscriminator(Signature((1, 8, 8), (5,), classes), **arguments)
        assert encoder(torch.randn(2, 1, 8, 8), labels).shape == (2, 5)
    bounded = R3ganGenerator(
        Signature((4,), (1, 8, 8), None, "tanh"), **R3ganNetwork(width=8, tanh=True).arguments()
    )
    assert float(bounded(100 * torch.randn(2, 4)).abs().max()) <= 1.0


def test_samples_of_unbounded_images_are_clamped() -> None:
    this = gan(kind="r3gan")
    objective = build_objective(this)
    built = build_networks(this, objective)
    nn.init.normal_(built["generator"].to_image.weight, 0.0, 9.0)
    images = objective.sample(built, {"z": torch.randn(4, 5)}, None, {})
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


def test_a_width_that_leaves_no_channel_is_refused() -> None:
    assert R3ganNetwork(width=4).size_problem(128, 128) is None
    problem = R3ganNetwork(width=3).size_problem(128, 128)
    assert problem is not None and "at least 4" in problem
    assert R3ganNetwork(width=4).size_problem(100, 100) is not None


def penalty(discriminator: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """R1 of each image, and the gradient of its mean at all weights."""
    images = images.detach().requires_grad_()
    r1 = squared_gradient_norm(discriminator(images, None).to(images.dtype), images)
    slopes = torch.autograd.grad(r1.mean(), list(discriminator.parameters()), allow_unused=True)
    return r1.detach(), torch.cat([s.flatten() for s in slopes if s is not None]).double()


def test_a_penalty_in_bf16_is_within_1_percent_of_float64() -> None:
    torch.manual_seed(0)
    _, discriminator = networks((32, 32), None, width=16, blocks=1)
    for _, one in residual_blocks(discriminator):
        nn.init.normal_(one.narrow.weight, 0.0, 0.1)
    images = 2 * torch.rand(16, 3, 32, 32) - 1
    exact, slope = penalty(copy.deepcopy(discriminator).double(), images.double())
    with torch.autocast("cpu", torch.bfloat16):
        found, its_slope = penalty(discriminator, images)
    assert found.dtype == torch.float32
    error = abs(float(found.double().mean() / exact.mean()) - 1)
    assert 1e-6 < error < 0.01  # in float32 it would be smaller
    assert float((its_slope - slope).norm() / slope.norm()) < 0.03


@pytest.mark.parametrize("loss", ["relativistic", "non_saturating"])
@pytest.mark.parametrize(("precision", "bits"), [("fp32", [32, 32]), ("bf16", [16, 32])])
def test_the_precision_of_penalties_is_a_setting(
    store_8: Any, monkeypatch: pytest.MonkeyPatch, loss: str, precision: str, bits: list[int]
) -> None:
    """The bits of D's stages at 8 x 8 and 4 x 4 where R1 and R2 are computed."""
    seen: list[list[int]] = []
    real = gan_losses.squared_gradient_norm

    def noted(logits: Tensor, images: Tensor) -> Tensor:
        assert logits.dtype == images.dtype == torch.float32
        seen.append(stages[-2:])
        return real(logits, images)

    stages: list[int] = []
    stage = nn.Sequential.forward

    def forward(self: nn.Sequential, x: Tensor) -> Tensor:
        found = stage(self, x)
        stages.append(found.dtype.itemsize * 8)
        return found

    monkeypatch.setattr(gan_losses, "squared_gradient_norm", noted)
    monkeypatch.setattr(nn.Sequential, "forward", forward)
    this = gan(
        f"objective.loss={loss}",
        f"objective.penalty_precision={precision}",
        "objective.r1_weight=1",
        "objective.r2_weight=1",
        "training.precision=bf16",
        kind="r3gan",
    )
    stepped(this, build_objective(this), store_8, 1)
    assert seen == [bits] * 2
