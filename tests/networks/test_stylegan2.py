"""StyleGAN2 against the papers' equations, written out here image by image in float64, and against
the sizes that the published networks have."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.core import Signature, Styled, begin_phase, phase_modules
from ray_gen.experiment.networks import StyleGan2Network
from ray_gen.networks.blur import Blur
from ray_gen.networks.stylegan2 import StyleGan2Generator
from ray_gen.networks.stylegan2_discriminator import StyleGan2Discriminator

Weights = dict[str, Tensor]
TINY = {"channel_base": 64, "channel_max": 6, "style_size": 5, "mapping_layers": 2}
SHAPE = (3, 16, 24)  # from a start map of 4 x 6


def generator(shape=SHAPE, label_count=None, numbers=0, **options: Any) -> StyleGan2Generator:
    torch.manual_seed(0)
    settings = StyleGan2Network.model_validate({**TINY, **options})
    signature = Signature((7,), shape, label_count, "tanh", label_numbers=numbers)
    return StyleGan2Generator(signature, **settings.arguments()).double()


def discriminator(
    shape=SHAPE, label_count=None, numbers=0, outputs=1, **options: Any
) -> StyleGan2Discriminator:
    torch.manual_seed(1)
    settings = StyleGan2Network.model_validate({**TINY, **options})
    signature = Signature(shape, (outputs,), label_count, label_numbers=numbers)
    return StyleGan2Discriminator(signature, **settings.arguments()).double()


def moved(network: torch.nn.Module) -> Weights:
    """The weights of a network, none of them as special as it begins."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return {name: value.detach() for name, value in network.state_dict().items()}


def noise_for(network: StyleGan2Generator, count: int) -> Weights:
    generator = torch.Generator().manual_seed(2)
    return {
        name: (torch.rand if spec.distribution == "uniform" else torch.randn)(
            count, *spec.shape, generator=generator, dtype=torch.float64
        )
        for name, spec in network.noise.items()
    }


# The papers' equations


def lrelu(x: Tensor) -> Tensor:
    """With the gain √2 that keeps the variance."""
    return math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)


def dense(x: Tensor, w: Weights, name: str, rate: float = 1.0) -> Tensor:
    """An equalised layer: the weight times rate / √inputs."""
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    return x @ (weight * rate / math.sqrt(weight.shape[1])).t() + bias * rate


def rms_normalised(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def filtered(x: Tensor) -> Tensor:
    """[1, 3, 3, 1] / 8 in both directions, where the filter lies wholly inside: (C, H, W)."""
    for axis in (1, 2):
        n = x.shape[axis] - 3
        x = sum(k * x.narrow(axis, i, n) for i, k in enumerate((1, 3, 3, 1))) / 8
    return x


def padded(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (before, after, before, after))


def with_zeros(x: Tensor) -> Tensor:
    """(C, H, W) to (C, 2 H, 2 W): zeros between the pixels."""
    found = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2])
    found[:, ::2, ::2] = x
    return found


def up(x: Tensor) -> Tensor:
    return 4 * filtered(padded(with_zeros(x), 2, 1))


def modulated(x: Tensor, weight: Tensor, s: Tensor, *, demodulate: bool, doubles: bool) -> Tensor:
    """Equations 1 and 3, on one image (C, H, W): the weights themselves are scaled."""
    own = weight * s[None, :, None, None]
    if demodulate:
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if not doubles:
        return F.conv2d(x[None], own, padding=own.shape[2] // 2)[0]
    # Zeros between the pixels, a convolution that keeps all that it reaches, the filter.
    wide = F.conv2d(padded(with_zeros(x), 2, 1)[None], own.flip(2, 3))[0]
    return 4 * filtered(padded(wide, 1, 1))


def generated(w: Weights, style: list[Tensor], noise: list[Tensor]) -> Tensor:
    """One image from its styles, L times (W,), and a map of noise for each layer."""

    def layer(x: Tensor, name: str, i: int, doubles: bool) -> Tensor:
        s = dense(style[i][None], w, f"{name}.scales")[0]
        x = modulated(x, w[f"{name}.weight"], s, demodulate=True, doubles=doubles)
        return lrelu(x + w[f"{name}.noise_strength"] * noise[i] + w[f"{name}.bias"][:, None, None])

    def to_image(x: Tensor, name: str, i: int) -> Tensor:
        s = dense(style[i][None], w, f"{name}.scales")[0] / math.sqrt(x.shape[0])
        x = modulated(x, w[f"{name}.weight"], s, demodulate=False, doubles=False)
        return x + w[f"{name}.bias"][:, None, None]

    x = layer(w["start"][0], "second.0", 0, False)
    image = to_image(x, "to_image.0", 1)
    for i in range((len(style) - 2) // 2):
        x = layer(x, f"first.{i}", 2 * i + 1, True)
        x = layer(x, f"second.{i + 1}", 2 * i + 2, False)
        image = up(image) + to_image(x, f"to_image.{i + 1}", 2 * i + 3)
    return image


def mapped(w: Weights, x: Tensor, layers: int, rate: float) -> Tensor:
    for i in range(layers):
        x = lrelu(dense(x, w, f"mapping.{i}", rate))
    return x


@pytest.mark.parametrize("shape", [SHAPE, (1, 28, 28), (2, 20, 10)])
def test_the_generator_is_the_papers(shape) -> None:
    network = generator(shape).eval()
    w, z, noise = moved(network), torch.randn(3, 7).double(), noise_for(network, 3)
    style = mapped(w, rms_normalised(z), 2, 0.01)
    styles = network.styles(z, noise=noise)
    assert isinstance(network, Styled)
    assert styles.shape == (3, len(noise) + 1, 5)
    torch.testing.assert_close(styles, style[:, None].expand_as(styles))
    images = network(z, noise=noise)
    expected = [
        generated(w, [row] * (len(noise) + 1), [maps[i] for maps in noise.values()])
        for i, row in enumerate(style)
    ]
    torch.testing.assert_close(images, torch.stack(expected))


def test_each_layer_uses_its_own_style() -> None:
    network = generator().eval()
    w, noise = moved(network), noise_for(network, 2)
    styles = torch.randn(2, 6, 5).double()
    expected = [
        generated(w, list(styles[i]), [maps[i] for maps in noise.values()]) for i in range(2)
    ]
    torch.testing.assert_close(network.synthesize(styles, noise), torch.stack(expected))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (1, 28, 28)])
def test_the_discriminator_is_the_papers(residual: bool, shape) -> None:
    network = discriminator(shape, residual=residual, deviation_group=3).train()
    w, images = moved(network), torch.randn(6, *shape).double()

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        weight = w[f"{name}.weight"]
        gain = 1 / math.sqrt(weight[0].numel())
        return F.conv2d(x, weight * gain, w.get(f"{name}.bias"), stride, padding)

    def blurred(x: Tensor, padding: int) -> Tensor:
        return torch.stack([filtered(padded(one, padding, padding)) for one in x])

    x = lrelu(conv(images, "from_image"))
    for _ in range(2):
        block = f"blocks.b{x.shape[2]}"
        inner = lrelu(conv(x, f"{block}.first", padding=1))
        inner = lrelu(conv(blurred(inner, 2), f"{block}.second", stride=2))
        if residual:
            skip = conv(blurred(x, 1)[:, :, ::2, ::2], f"{block}.skip")
            inner = (inner + skip) / math.sqrt(2)
        x = inner
    deviation = []
    for start in (0, 3):  # groups of consecutive images
        group = x[start : start + 3]
        spread = (group - group.mean(0)).square().mean(0)
        deviation += [(spread + 1e-8).sqrt().mean()] * 3
    plane = torch.stack(deviation)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    x = lrelu(conv(torch.cat([x, plane], 1), "conv", padding=1))
    expected = dense(lrelu(dense(x.flatten(1), w, "dense")), w, "output")
    torch.testing.assert_close(network(images), expected)


def test_labels_enter_as_published() -> None:
    """In G a normalised vector of the class is beside z. In D it is mapped, and multiplied with the
    features. Numbers enter linearly before the normalisation."""
    labels = torch.tensor([[0, 0.5, -1.0], [2, 0.1, 2.0]])
    g, d = (
        generator(label_count=3, numbers=2).eval(),
        discriminator(label_count=3, numbers=2).eval(),
    )
    w, z = moved(g), torch.randn(2, 7).double()

    def embedded(w: Weights) -> Tensor:
        classes = w["labels.table.weight"][labels[:, 0].long()]
        return rms_normalised(classes + dense(labels[:, 1:].double(), w, "labels.numbers"))

    style = mapped(w, torch.cat([rms_normalised(z), embedded(w)], 1), 2, 0.01)
    torch.testing.assert_close(g.styles(z, labels)[:, 0], style)
    w, images, seen = moved(d), torch.randn(2, *SHAPE).double(), []
    d.output.register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    logits = d(images, labels)
    of_label = mapped(w, embedded(w), 2, 0.01)
    expected = (seen[0] * of_label).sum(1, keepdim=True) / math.sqrt(5)
    torch.testing.assert_close(logits, expected)
    assert discriminator(label_count=3, outputs=4)(
        images.repeat(2, 1, 1, 1), labels[:, 0].long().repeat(2)
    ).shape == (4, 4)


# What the published networks have


def convolution(inputs: int, outputs: int, kernel: int = 3, *, styled: bool, noise: bool) -> int:
    count = outputs * inputs * kernel * kernel + outputs
    return count + (inputs * 512 + inputs if styled else 0) + noise


def published(base: int, side: int, mapping: int, residual: bool) -> tuple[int, int]:
    """Parameters of G and D, counted layer by layer from the tables of the papers."""
    sides = [4 * 2**i for i in range(int(math.log2(side // 4)) + 1)]
    channels = [min(base // r, 512) for r in sides]
    g = mapping * (512 * 512 + 512) + channels[0] * 16
    for i, c in enumerate(channels):
        if i:
            g += convolution(channels[i - 1], c, styled=True, noise=True)
        g += convolution(c, c, styled=True, noise=True)
        g += convolution(c, 3, 1, styled=True, noise=False)
    d = convolution(3, channels[-1], 1, styled=False, noise=False)
    for small, big in pairwise(channels):
        d += convolution(big, big, styled=False, noise=False)
        d += convolution(big, small, styled=False, noise=False)
        d += big * small if residual else 0
    c = channels[0]
    d += convolution(c + 1, c, styled=False, noise=False) + (16 * c * c + c) + (c + 1)
    return g, d


@pytest.mark.parametrize(
    ("preset", "side", "expected"),
    [
        ("paper256", 256, (24_767_458, 24_001_089)),
        ("auto", 256, (23_191_522, 24_001_089)),
        ("auto", 1024, (28_794_124, 29_012_513)),
        ("cifar", 32, published(32_768, 32, 2, residual=False)),
    ],
)
def test_the_published_networks_have_as_many_parameters(preset, side: int, expected) -> None:
    settings = StyleGan2Network.published(preset, side)
    g = (settings[0].channel_base, side, settings[0].mapping_layers, settings[1].residual)
    assert published(*g) == expected
    with torch.device("meta"):
        image = (3, side, side)
        networks = (
            StyleGan2Generator(Signature((512,), image), **settings[0].arguments()),
            StyleGan2Discriminator(Signature(image, (1,)), **settings[1].arguments()),
        )
    found = tuple(sum(p.numel() for p in network.parameters()) for network in networks)
    assert found == expected


# What holds in a run


def test_mixing_takes_other_styles_from_a_layer_onwards() -> None:
    network = generator(mixing=0.5).train()
    noise = noise_for(network, 4)
    z, noise["mixing"] = (
        torch.randn(4, 7).double(),
        torch.tensor([[0.49, 0.0], [0.49, 0.999], [0.51, 0.0], [0.0, 0.5]], dtype=torch.float64),
    )
    styles = network.styles(z, noise=noise)
    own, other = network.eval().styles(z)[:, 0], network.styles(noise["other_z"])[:, 0]
    for i, first in enumerate((1, 5, 6, 3)):  # of six styles
        torch.testing.assert_close(styles[i, :first], own[i].expand(first, -1))
        torch.testing.assert_close(styles[i, first:], other[i].expand(6 - first, -1))
    assert set(network.noise) == {f"layer_{i}" for i in range(5)}
    assert "other_z" not in generator(mixing=0.0).train().noise


def test_styles_and_vectors_of_labels_keep_full_precision_under_autocast() -> None:
    """As published. In bfloat16 eight narrow layers move a sample as much as all convolutions."""
    network, judge = generator(label_count=3).float(), discriminator(label_count=3).float()
    noise = {name: values.float() for name, values in noise_for(network, 4).items()}
    z, labels = torch.randn(4, 7), torch.tensor([0, 1, 2, 0])
    seen: list[Tensor] = []
    judge.mapping.register_forward_hook(lambda _, given, vector: seen.append(vector))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            seen.append(network.styles(z, labels, noise))
            judge(torch.randn(4, *SHAPE), labels)
    (styles, vectors), (again, vectors_again) = seen[:2], seen[2:]
    assert again.dtype == vectors_again.dtype == torch.float32
    assert torch.equal(again, styles) and torch.equal(vectors_again, vectors)


def test_truncation_goes_to_the_mean_of_styles() -> None:
    network = generator(mixing=0.0).train()
    means = []
    for _ in range(3):
        begin_phase(network)
        z = torch.randn(8, 7).double()
        for part in z.split(4):  # micro-batches
            means.append(network.styles(part).detach()[:, 0].mean(0))
        for module in phase_modules(network).values():
            module.end_phase(module.phase_statistics())
    of_phase = [(a + b) / 2 for a, b in zip(means[::2], means[1::2], strict=True)]
    weights = [0.995**2, 0.995, 1.0]
    mean = sum(m * x for m, x in zip(of_phase, weights, strict=True)) / sum(weights)
    network.eval()
    z = torch.randn(2, 7).double()
    plain = network.styles(z)
    torch.testing.assert_close(network.styles(z, truncation=0.7), mean + 0.7 * (plain - mean))
    torch.testing.assert_close(network.styles(z, truncation=0.0), mean.expand_as(plain))


def test_a_judgement_does_not_depend_on_other_images() -> None:
    """In eval mode. In training it does, within a group."""
    network = discriminator(deviation_group=2)
    images = torch.randn(4, *SHAPE).double()
    begin_phase(network)
    together = network.train()(images)
    for module in phase_modules(network).values():
        module.end_phase(module.phase_statistics())
    others = torch.cat([images[:2], torch.randn(2, *SHAPE).double()])
    assert torch.equal(network(others)[:2], together[:2])
    assert not torch.allclose(network(others.roll(1, 0))[1], together[0])
    network.eval()
    torch.testing.assert_close(network(images)[:1], network(images[:1]))
    usual = network.deviation.usual.mean
    begin_phase(network)
    network.train()(images)
    torch.testing.assert_close(usual, network.deviation.usual._sums[0] / 2)


@pytest.mark.parametrize("padding", [1, 2])
def test_both_derivatives_of_the_filter(padding: int) -> None:
    blur, x = Blur(padding).double(), torch.randn(2, 3, 5, 6).double().requires_grad_()
    torch.testing.assert_close(
        blur(x), torch.stack([filtered(padded(one, padding, padding)) for one in x])
    )
    assert torch.autograd.gradcheck(blur, (x,))
    assert torch.autograd.gradgradcheck(lambda x: blur(x).square(), (x,))
