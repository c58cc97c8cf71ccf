"""Residual networks against the layers that the papers list, written out here one by one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.core import ImageToVector, Signature, VectorToImage, begin_phase
from ray_gen.experiment import ExperimentError
from ray_gen.networks.batch_norm import with_group_batch_norm
from ray_gen.networks.resnet import ResnetDiscriminator, ResnetGenerator
from ray_gen.training.build import build_networks, build_objective
from tests.helpers import gan

OPTIONS: dict[str, Any] = {
    "width": 64,
    "channels": None,
    "halvings": None,
    "hidden_channels": "input",
    "pooling": "sum",
    "labels": "concatenated",
    "label_size": 3,
    "shared_embedding": None,
    "latent_chunks": False,
    "attention": (),
    "spectral_norm": False,
    "initial_weights": "xavier",
}
SNGAN = {"labels": "conditional_batch_norm", "width": 2}
BIGGAN = {
    "labels": "conditional_batch_norm",
    "width": 4,
    "shared_embedding": 5,
    "latent_chunks": True,
    "attention": (8, 16),
    "initial_weights": "orthogonal",
    "spectral_norm": True,
}


def generator(side: int = 32, latent: int = 128, classes: int | None = None, **options: Any):
    signature = VectorToImage(latent, (3, side, side), classes, output="tanh")
    return ResnetGenerator(signature, **{**OPTIONS, **options})


def discriminator(side: int = 32, classes: int | None = None, **options: Any):
    return ResnetDiscriminator(ImageToVector((3, side, side), 1, classes), **{**OPTIONS, **options})


# Numbers of parameters


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel**2 + outputs


def of_generator(channels: list[int], latent: int = 128) -> int:
    """A linear layer to 4 x 4, a block for each two channels, BatchNorm and a convolution. The
    biases of the blocks' convolutions count, which ours has not."""
    count = (latent + 1) * 16 * channels[0]
    for inputs, outputs in itertools.pairwise(channels):
        norms = 2 * inputs + 2 * outputs
        count += conv(inputs, outputs) + conv(outputs, outputs) + conv(inputs, outputs, 1) + norms
    return count + 2 * channels[-1] + conv(channels[-1], 3)


def of_discriminator(channels: list[int], down: int, hidden_is_input: bool = True) -> int:
    count, inputs = 0, 3
    for number, outputs in enumerate(channels):
        hidden = inputs if number and hidden_is_input else outputs
        count += conv(inputs, hidden) + conv(hidden, outputs)
        if number < down or inputs != outputs:
            count += conv(inputs, outputs, 1)
        inputs = outputs
    return count + inputs + 1


def parameters(network: nn.Module) -> int:
    """With the biases that BatchNorm takes away, which ours has not."""
    lacking = sum(
        layer.out_channels
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.bias is None
    )
    return sum(p.numel() for p in network.parameters()) + lacking


TABLES = {
    32: ([256] * 4, [128] * 4, 2),
    64: ([1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], 5),
    128: ([1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024], 5),
}
"""Channels of mimicry's SNGANs, and how many blocks of D halve."""


@pytest.mark.parametrize("side", TABLES)
def test_parameters_are_those_of_the_published_tables(side: int) -> None:
    of_g, of_d, down = TABLES[side]
    with torch.device("meta"):
        assert parameters(generator(side)) == of_generator(of_g)
        assert parameters(discriminator(side, halvings=down)) == of_discriminator(of_d, down)
        wide = parameters(discriminator(side, hidden_channels="output"))
    assert wide == of_discriminator(of_d, down, hidden_is_input=False)


def test_sngan_at_32_pixels_has_4_3_and_1_05_million_parameters() -> None:
    with torch.device("meta"):
        assert parameters(generator()) == 4_276_739
        assert parameters(discriminator()) == 1_053_825


def test_biggan_at_32_pixels_is_as_large_as_studiogans() -> None:
    """Its files of tensors have 37.9 MB (average of G) and 29.1 MB (D with Adam's two moments), in
    float32 (huggingface.co/Mingguksky/PyTorch-StudioGAN, CIFAR10-BigGAN)."""
    wide, condition = 4 * 96, 128 + 20
    block = 2 * conv(wide, wide) + conv(wide, wide, 1) + 4 * condition * wide
    attention = 2 * (wide * wide // 8) + 2 * (wide * wide // 2) + 1
    of_g = (20 + 1) * 16 * wide + 10 * 128 + 3 * block + attention + 2 * wide + conv(wide, 3)
    # In ours the attention's convolutions have no biases either; `parameters` adds them.
    of_g += 2 * (wide // 8) + wide // 2 + wide
    options = {**BIGGAN, "width": 96, "shared_embedding": 128, "attention": (16,)}
    network = generator(
        classes=10, latent=80, **{**options, "spectral_norm": False, "initial_weights": "xavier"}
    )
    assert parameters(network) == of_g == pytest.approx(37.9e6 / 4, rel=0.01)
    network = discriminator(
        classes=10, width=96, hidden_channels="output", labels="projection", attention=(16,)
    )
    assert parameters(network) == pytest.approx(29.1e6 / 4 / 3, rel=0.01)


# Forward passes


def normalised(x: Tensor) -> Tensor:
    """Each channel with mean 0 and variance 1 over images and positions."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def half(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


class Written:
    """The layers of a network, by the names of its parameters, with randomised weights."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.double().train()
        for parameter in network.parameters():
            parameter.data = 0.2 * torch.randn_like(parameter)
        for _ in range(20):
            begin_phase(network)
        self.weights = dict(network.named_parameters()) | dict(network.named_buffers())

    def weight(self, name: str) -> Tensor:
        """A weight, divided by uᵀ W v if it is normalised."""
        base = f"{name}.parametrizations.weight"
        if f"{base}.original" not in self.weights:
            return self.weights[f"{name}.weight"]
        weight = self.weights[f"{base}.original"]
        left, right = self.weights[f"{base}.0.left"], self.weights[f"{base}.0.right"]
        return weight / torch.einsum("i,ij,j", left, weight.flatten(1), right)

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weight(name)
        bias = self.weights.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))
        return torch.einsum("ni,oi->no", x, self.weight(name)) + bias

    def norm(self, name: str, x: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            gain, bias = self.weights[f"{name}.norm.weight"], self.weights[f"{name}.norm.bias"]
            return normalised(x) * gain[:, None, None] + bias[:, None, None]
        gain, bias = self.linear(f"{name}.gain", condition), self.linear(f"{name}.bias", condition)
        return normalised(x) * (1 + gain)[..., None, None] + bias[..., None, None]

    def attention(self, name: str, x: Tensor) -> Tensor:
        """Position by position."""
        height, width = x.shape[2:]

        def largest(maps: Tensor) -> Tensor:
            return (
                torch.stack([maps[..., i::2, j::2] for i in (0, 1) for j in (0, 1)])
                .amax(0)
                .flatten(2)
            )

        queries = self.conv(f"{name}.queries", x)
        keys = largest(self.conv(f"{name}.keys", x))  # (N, Q, P)
        values = largest(self.conv(f"{name}.values", x))  # (N, V, P)
        seen = torch.empty(*values.shape[:2], height, width, dtype=x.dtype)
        for i in range(height):
            for j in range(width):
                scores = (queries[:, :, i, j, None] * keys).sum(1).exp()  # (N, P)
                shares = scores / scores.sum(1, keepdim=True)
                seen[:, :, i, j] = (shares[:, None] * values).sum(2)
        return x + self.weights[f"{name}.strength"] * self.conv(f"{name}.out", seen)

    def generated(self, first: Tensor, conditions: list[Tensor | None], attended: set[int]):
        """first: the input of the first layer; conditions: one for each block."""
        channels = self.weights["norm.norm.weight"].numel()
        x = self.linear("first", first).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        for n, condition in enumerate(conditions):
            name = f"blocks.{n}"
            h = F.relu(self.norm(f"{name}.norm1", x, condition))
            h = self.conv(f"{name}.conv1", twice(h))
            h = self.conv(f"{name}.conv2", F.relu(self.norm(f"{name}.norm2", h, condition)))
            x = h + self.conv(f"{name}.shortcut", twice(x))
            if x.shape[2] in attended:
                x = self.attention(f"{name}.attention", x)
        assert x.shape[1] == channels
        return torch.tanh(self.conv("last", F.relu(self.norm("norm", x, None))))

    def features(self, x: Tensor, down: int, attended: dict[int, int]) -> Tensor:
        """Maps before the pooling. attended: whether self-attention follows a block."""
        for n in range(4):
            name = f"blocks.{n}"
            h = self.conv(f"{name}.conv1", x if n == 0 else F.relu(x))
            h = self.conv(f"{name}.conv2", F.relu(h))
            if n < down:
                h, x = half(h), half(self.conv(f"{name}.shortcut", x))
            x = h + x
            if n in attended:
                x = self.attention(f"{name}.attention", x)
        return F.relu(x)


LABELS = torch.tensor([0, 2, 1, 2])
ONE_HOT = torch.eye(3, dtype=torch.float64)[LABELS]


def test_sngan_generator_is_its_layers() -> None:
    written = Written(generator(classes=3, latent=7, **SNGAN))
    z = torch.randn(4, 7, dtype=torch.float64)
    expected = written.generated(z, [ONE_HOT] * 3, set())
    torch.testing.assert_close(written.network(z, LABELS), expected)


def test_biggan_generator_is_its_layers() -> None:
    written = Written(generator(classes=3, latent=8, **BIGGAN))
    z = torch.randn(4, 8, dtype=torch.float64)
    embedded = ONE_HOT @ written.weight("shared").T
    first, *chunks = z.chunk(4, 1)
    conditions = [torch.cat([embedded, chunk], 1) for chunk in chunks]
    expected = written.generated(first, conditions, {8, 16})
    torch.testing.assert_close(written.network(z, LABELS), expected)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("projects", [True, False])
def test_discriminators_are_their_layers(projects: bool, pooling: str) -> None:
    labels = "projection" if projects else "none"
    more = {"attention": (16,), "spectral_norm": True, "hidden_channels": "output"}
    options = {"width": 4, "labels": labels, "pooling": pooling, **(more if projects else {})}
    written = Written(discriminator(classes=3, **options))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    maps = written.features(images, 2, {0} if projects else set())
    assert maps.shape == (4, 8, 8, 8)
    pooled = maps.mean((2, 3)) if pooling == "mean" else maps.sum((2, 3))
    expected = written.linear("heads.output", pooled)
    if projects:
        vectors = written.weight("projection.vectors").T[LABELS]
        expected = expected + (vectors * pooled).sum(1, keepdim=True)
    torch.testing.assert_close(written.network(images, LABELS), expected)


def test_a_classifier_is_another_head() -> None:
    signature = Signature((3, 32, 32), {"logit": (1,), "classes": (3,)}, 3)
    written = Written(ResnetDiscriminator(signature, **{**OPTIONS, "width": 2, "labels": "none"}))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    found = written.network(images, LABELS)
    pooled = written.features(images, 2, set()).sum((2, 3))
    assert set(found) == {"logit", "classes"}
    for name, part in found.items():
        torch.testing.assert_close(part, written.linear(f"heads.{name}", pooled))


# Sizes


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (28, 28), (32, 32), (64, 64), (96, 160)])
def test_every_size_works_in_both_directions(size: tuple[int, int]) -> None:
    shape = (2, *size)
    for classes in (None, 4):
        labels = None if classes is None else torch.tensor([0, 3])
        to_image = ResnetGenerator(VectorToImage(7, shape, classes), **{**OPTIONS, "width": 1})
        images = to_image(torch.randn(2, 7), labels)
        assert images.shape == (2, *shape)
        to_vector = ResnetDiscriminator(ImageToVector(shape, 5, classes), **{**OPTIONS, "width": 1})
        assert to_vector(images, labels).shape == (2, 5)


def test_maps_keep_the_memory_format() -> None:
    """A channels-last input leaves every convolution channels-last."""
    networks = [generator(classes=3, latent=8, **BIGGAN), discriminator(width=4, attention=(16,))]
    seen: list[bool] = []

    def note(layer: nn.Module, given: Any, found: Tensor) -> None:
        seen.append(found.is_contiguous(memory_format=torch.channels_last))

    for network in networks:
        network.to(memory_format=torch.channels_last)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.register_forward_hook(note)
    images = networks[0](torch.randn(4, 8), LABELS)
    networks[1](images)
    assert len(seen) == 7 + 8
    assert all(seen)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: generator(100), "96 x 96 or 112 x 112"),
        (lambda: discriminator(100), "96 x 96 or 112 x 112"),
        (lambda: generator(channels=(4, 4, 4)), "needs 4 numbers.* there are 3"),
        (lambda: discriminator(halvings=5), "4 blocks cannot halve 32 x 32 pixels 5 times"),
        (lambda: discriminator(28, halvings=3), "4 blocks cannot halve 28 x 28 pixels 3 times"),
        (lambda: generator(attention=(7,)), "7 is not .* which are 8, 16, 32"),
        (lambda: discriminator(attention=(32,)), "32 is not .* which are 16, 8"),
        (lambda: generator(latent=79, latent_chunks=True), "79 numbers.* to 76 or 80"),
        (lambda: generator(latent=3, latent_chunks=True), "3 numbers.* to 4 or 8"),
        (
            lambda: ResnetDiscriminator(
                ImageToVector((3, 32, 32), 40, 3), **{**OPTIONS, "labels": "projection"}
            ),
            "one logit, but the objective asks for 40 numbers",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_do(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_problem_begins_with_its_field() -> None:
    this = gan("networks.generator={kind: resnet, attention: [7], width: 1}")
    with pytest.raises(ExperimentError, match=r"^networks\.generator\.attention: 7 is not"):
        build_networks(this, build_objective(this))


# Initial weights


def test_weights_begin_as_glorot_says() -> None:
    network = generator(width=8)
    for name, layer in network.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        gain = 2**0.5 if "conv" in name else 1.0
        fan = sum(layer.weight.shape[:2]) * layer.weight[0, 0].numel()
        bound = gain * (6 / fan) ** 0.5
        assert 0.97 * bound < float(layer.weight.detach().abs().max()) <= bound, name
        assert layer.bias is None or not layer.bias.any()


def test_orthogonal_weights_are_orthogonal() -> None:
    for network in (
        generator(classes=3, latent=8, **{**BIGGAN, "spectral_norm": False}),
        discriminator(classes=3, width=4, labels="projection", initial_weights="orthogonal"),
    ):
        layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        for layer in layers:
            matrix = layer.weight.detach().flatten(1)
            values = torch.linalg.svdvals(matrix)
            torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-4, atol=1e-4)


def test_normal_weights_have_a_deviation_of_0_02() -> None:
    weight = generator(width=16, initial_weights="normal").blocks[0].conv1.weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)


def test_tables_of_classes_begin_as_plain_batch_norm() -> None:
    for initial in ("xavier", "orthogonal", "normal"):
        network = generator(classes=3, latent=7, **SNGAN, initial_weights=initial)
        z = torch.randn(2, 7).repeat(2, 1)
        images = network(z, torch.tensor([0, 0, 1, 2]))
        torch.testing.assert_close(images[2:], images[:2])


# Spectral norm


def normalised_layers(network: nn.Module) -> set[str]:
    return {name for name, layer in network.named_modules() if hasattr(layer, "parametrizations")}


def test_spectral_norm_is_on_all_weights_but_embeddings_of_a_generator() -> None:
    network = generator(classes=3, latent=8, **BIGGAN)
    all_layers = {
        name for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    assert normalised_layers(network) == all_layers - {"shared"}
    network = generator(classes=3, latent=8, **SNGAN, spectral_norm=True)
    assert not any("norm" in name for name in normalised_layers(network))
    network = discriminator(classes=3, width=4, labels="projection", spectral_norm=True)
    assert {"projection.vectors", "heads.output"} <= normalised_layers(network)
    assert len(normalised_layers(network)) == 8 + 2 + 2


def test_nothing_normalised_divides_by_zero() -> None:
    for options in (SNGAN, BIGGAN):
        network = generator(classes=3, latent=8, **{**options, "spectral_norm": True})
        assert bool(network(torch.randn(4, 8), LABELS).isfinite().all())


# Groups


def test_each_group_is_normalised_by_itself() -> None:
    """Gains are those of each image, statistics those of its group."""
    network = generator(classes=3, latent=8, **BIGGAN)
    z, labels = torch.randn(8, 8), torch.arange(8) % 3
    expected = torch.cat([network(z[:4], labels[:4]), network(z[4:], labels[4:])])
    found = with_group_batch_norm(network, 4)(z, labels)
    torch.testing.assert_close(found, expected)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
