"""FastGAN against its published table of layers, and against a forward pass written out here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.core import Reconstructing, Signature
from ray_gen.networks.fastgan import FastGanDiscriminator, FastGanGenerator
from ray_gen.networks.spectral_norm import SpectralNorm

SHARED = {"batch_norm": True, "label_size": 3, "spectral_norm": False}


def generator(shape: tuple[int, int, int], z: int = 4, width: int = 2, **more) -> FastGanGenerator:
    labels = more.pop("labels", {})
    signature = Signature((z,), shape, activation="tanh", **labels)
    return FastGanGenerator(signature, **{**SHARED, "width": width, **more})


def discriminator(shape: tuple[int, int, int], width: int = 2, **more) -> FastGanDiscriminator:
    labels = more.pop("labels", {})
    signature = Signature(shape, (1,), several_logits=True, reconstructs=True, **labels)
    return FastGanDiscriminator(signature, **{**SHARED, "width": width, **more})


def noise_for(network: nn.Module, count: int) -> dict[str, Tensor]:
    """U[0, 1): it serves as any noise here."""
    return {
        name: torch.rand(count, *noise.shape, dtype=torch.float64)
        for name, noise in network.noise.items()
    }


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_generator_at_256_pixels_has_the_parameters_of_the_published_table() -> None:
    """Kernels without biases; two numbers of BatchNorm for each of its channels; one strength for
    each of two noises. GLU halves, so a layer to c channels has 2c."""
    widths = {4: 1024, 8: 512, 16: 256, 32: 128, 64: 128, 128: 64, 256: 32}
    expected = 256 * 2048 * 16 + 2 * 2048  # z of 256 numbers to 4 x 4
    for side in (8, 16, 32, 64, 128, 256):
        inputs, c = widths[side // 2], widths[side]
        expected += inputs * 2 * c * 9 + 4 * c
        if side in (8, 32, 128):
            expected += c * 2 * c * 9 + 4 * c + 2
    for small, large in ((4, 64), (8, 128), (16, 256)):
        expected += widths[small] * widths[large] * 16 + widths[large] ** 2
    expected += 32 * 3 * 9
    with torch.device("meta"):
        assert count(generator((3, 256, 256), z=256, width=64)) == expected


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_the_discriminator_has_the_parameters_of_the_published_table(side: int) -> None:
    stem = {
        256: 3 * 16 * 9,
        512: 3 * 16 * 16,
        1024: 3 * 8 * 16 + 8 * 16 * 16 + 2 * 16,
    }[side]
    expected = stem
    sides = {256: 16, 128: 32, 64: 64, 32: 128, 16: 256, 8: 512}
    for small in (128, 64, 32, 16, 8):
        i, o = sides[2 * small], sides[small]
        expected += i * o * 16 + 2 * o + o * o * 9 + 2 * o  # the long way
        expected += i * o + 2 * o  # the short way
    for large, small in ((256, 32), (128, 16), (64, 8)):
        expected += sides[large] * sides[small] * 16 + sides[small] ** 2
    expected += 512 * 1024 + 2 * 1024 + 1024 * 16  # 5 x 5 logits
    expected += 3 * 32 * 16 + 32 * 64 * 16 + 2 * 64 + 64 * 128 * 16 + 2 * 128
    expected += 128 * 256 * 16 + 2 * 256 + 256 * 16  # 5 x 5 logits of the small image
    for inputs in (512, 256, 256):  # decoders from 8² to 128²
        for i, o in ((inputs, 128), (128, 64), (64, 64), (64, 32)):
            expected += i * 2 * o * 9 + 4 * o
        expected += 32 * 3 * 9
    with torch.device("meta"):
        assert count(discriminator((3, side, side), width=64)) == expected


class ByHand:
    """The tensors of a network by name, and the operations that the paper's layers are made of."""

    def __init__(self, network: nn.Module) -> None:
        self.of = network.state_dict()

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, self.of[f"{name}.weight"], stride=stride, padding=padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean((0, 2, 3), True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        weight, bias = (self.of[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def gate(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return x[:, :half] / (1 + torch.exp(-x[:, half:]))

    def up(self, x: Tensor, name: str) -> Tensor:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.gate(self.norm(self.conv(x, f"{name}.1", padding=1), f"{name}.2"))

    def noisy_up(self, x: Tensor, name: str, noise: Tensor) -> Tensor:
        strengths = self.of[f"{name}.strengths"]
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = self.conv(x, f"{name}.first", padding=1) + strengths[0] * noise[:, 0:1]
        x = self.gate(self.norm(x, f"{name}.after_first.0"))
        x = self.conv(x, f"{name}.second", padding=1) + strengths[1] * noise[:, 1:2]
        return self.gate(self.norm(x, f"{name}.after_second.0"))

    def excite(self, large: Tensor, small: Tensor, name: str) -> Tensor:
        pooled = mean_of_squares(small, small.shape[2] // 4)
        x = self.conv(pooled, f"{name}.layers.0")
        x = self.conv(x / (1 + torch.exp(-x)), f"{name}.layers.2")
        return large / (1 + torch.exp(-x))

    def down(self, x: Tensor, name: str, number: int = 0) -> Tensor:
        x = self.conv(x, f"{name}.{number}", 2, 1)
        return leaky(self.norm(x, f"{name}.{number + 1}"))

    def both_down(self, x: Tensor, name: str) -> Tensor:
        long = self.down(x, f"{name}.long")
        long = leaky(self.norm(self.conv(long, f"{name}.long.3", padding=1), f"{name}.long.4"))
        short = self.conv(mean_of_squares(x, 2), f"{name}.short.1")
        return (long + leaky(self.norm(short, f"{name}.short.2"))) / 2


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def mean_of_squares(x: Tensor, side: int) -> Tensor:
    """Means over squares of side x side pixels."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // side, side, w // side, side).mean((3, 5))


def test_the_generator_is_the_forward_pass_written_out() -> None:
    torch.manual_seed(0)
    network = generator((3, 64, 64)).double().train()
    for up in network.ups:
        if hasattr(up, "strengths"):
            nn.init.normal_(up.strengths)
    z, noise = torch.randn(3, 4).double(), noise_for(network, 3)
    assert {name: of.shape for name, of in network.noise.items()} == {
        "stage_1": (2, 8, 8),
        "stage_3": (2, 32, 32),
    }
    hand = ByHand(network)
    x4 = torch.einsum("ni,iohw->nohw", z, hand.of["start.0.weight"])
    x4 = hand.gate(hand.norm(x4, "start.1"))
    x8 = hand.noisy_up(x4, "ups.0", noise["stage_1"])
    x16 = hand.up(x8, "ups.1")
    x32 = hand.noisy_up(x16, "ups.2", noise["stage_3"])
    x64 = hand.excite(hand.up(x32, "ups.3"), x4, "excitations.0")
    expected = torch.tanh(hand.conv(x64, "to_image", padding=1))
    torch.testing.assert_close(network(z, noise=noise), expected)
    assert expected.std() > 1e-4


@pytest.mark.parametrize("corner", range(4))
def test_the_discriminator_is_the_forward_pass_written_out(corner: int) -> None:
    """Logits of both branches, and three reconstructions with their images."""
    torch.manual_seed(1)
    network = discriminator((3, 64, 64)).double().train()
    assert isinstance(network, Reconstructing)
    images = torch.rand(3, 3, 64, 64).double() * 2 - 1
    hand = ByHand(network)
    x64 = leaky(hand.conv(images, "stem.0", padding=1))
    x32 = hand.both_down(x64, "downs.0")
    x16 = hand.both_down(x32, "downs.1")
    x8 = hand.excite(hand.both_down(x16, "downs.2"), x64, "excitations.0")
    logits = leaky(hand.norm(hand.conv(x8, "head.0"), "head.1"))
    logits = hand.conv(logits, "head.3")
    small = mean_of_squares(images, 2)
    s16 = leaky(hand.conv(small, "small.0", 2, 1))
    s8 = hand.down(s16, "small", 2)
    expected = torch.cat([logits, hand.conv(s8, "small_head")], 1)
    assert expected.shape == (3, 2, 5, 5)
    torch.testing.assert_close(network(images), expected)

    below, right = divmod(corner, 2)
    where = torch.tensor([[0.25 + 0.5 * below, 0.25 + 0.5 * right]]).expand(3, -1).double()
    found, pairs = network.reconstructed(images, noise={"quadrant": where})
    torch.testing.assert_close(found, expected)
    rows, columns = slice(8 * below, 8 * below + 8), slice(8 * right, 8 * right + 8)
    part = images[:, :, 32 * below : 32 * below + 32, 32 * right : 32 * right + 32]

    def decoded(x: Tensor, name: str) -> Tensor:
        x = hand.up(hand.up(x, f"decoders.{name}.0"), f"decoders.{name}.1")
        return torch.tanh(hand.conv(x, f"decoders.{name}.2", padding=1))

    wanted = [
        (small, decoded(x8, "whole")),
        (small, decoded(s8, "small")),
        (part, decoded(x16[:, :, rows, columns], "quadrant")),
    ]
    assert len(pairs) == 3
    for ours, theirs in zip(pairs, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


def test_each_image_has_a_quadrant_of_its_own() -> None:
    network = discriminator((1, 16, 16)).double().train()
    images = torch.rand(4, 1, 16, 16).double()
    where = torch.tensor([[0.0, 0.0], [0.0, 0.9], [0.5, 0.49], [0.99, 0.5]]).double()
    _, pairs = network.reconstructed(images, noise={"quadrant": where})
    halves = ((0, 0), (0, 8), (8, 0), (8, 8))
    corners = [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(images, halves, strict=True)]
    assert torch.equal(pairs[1][0], torch.stack(corners))


@pytest.mark.parametrize(
    ("size", "pairs", "logits"),
    [
        ((8, 8), 1, (1, 5, 5)),
        ((16, 16), 2, (1, 5, 5)),
        ((28, 28), 2, (1, 11, 11)),
        ((32, 32), 3, (2, 5, 5)),
        ((96, 160), 3, (2, 9, 17)),
        ((256, 256), 3, (2, 5, 5)),
    ],
)
def test_any_size_and_number_of_channels(
    size: tuple[int, int], pairs: int, logits: tuple[int, ...]
) -> None:
    labels = {"label_count": 3, "label_numbers": 1}
    given = torch.tensor([[0.0, 0.3], [2.0, -1.0]]).double()
    made = generator((5, *size), labels=labels, width=1).double()
    judge = discriminator((5, *size), labels=labels, width=1).double()
    images = made(torch.randn(2, 4).double(), given, noise=noise_for(made, 2))
    assert images.shape == (2, 5, *size)
    found, again = judge.reconstructed(images, given, noise=noise_for(judge, 2))
    assert found.shape == (2, *logits) and len(again) == pairs
    assert all(image.shape == copy.shape for image, copy in again)
    assert torch.equal(found, judge(images, given))


@pytest.mark.parametrize("labels", [{"label_count": 3}, {"label_count": 0, "label_numbers": 1}])
def test_labels_change_images_and_logits(labels: dict[str, int]) -> None:
    made, judge = (of((1, 32, 32), labels=labels).double() for of in (generator, discriminator))
    one, other = torch.tensor([0, 1]), torch.tensor([2, 1])
    if "label_numbers" in labels:
        one, other = torch.tensor([[0.5], [1.0]]).double(), torch.tensor([[2.0], [1.0]]).double()
    made.eval(), judge.eval()
    z, noise = torch.randn(2, 4).double(), noise_for(made, 2)
    images = made(z, one, noise=noise)
    changed = (images != made(z, other, noise=noise)).flatten(1).any(1)
    assert changed.tolist() == [True, False]
    logits = (judge(images, one) - judge(images, other)).abs().amax((2, 3))
    assert (logits > 0).tolist() == [[True, True], [False, False]]


def test_one_logit_or_a_vector_is_the_mean_over_places() -> None:
    torch.manual_seed(2)
    several = discriminator((3, 32, 32)).double().eval()
    one = FastGanDiscriminator(Signature((3, 32, 32), (1,)), **SHARED, width=2).double().eval()
    kept = {name: of for name, of in several.state_dict().items() if "decoders" not in name}
    one.load_state_dict(kept)
    images = torch.rand(2, 3, 32, 32).double()
    torch.testing.assert_close(one(images), several(images).flatten(1).mean(1, keepdim=True))
    vector = FastGanDiscriminator(Signature((3, 32, 32), (7,)), **SHARED, width=2)
    assert vector(images.float()).shape == (2, 7)


def test_every_kernel_is_normalised_and_norms_can_be_left_out() -> None:
    for of in (generator, discriminator):
        normalised = of((3, 64, 64), spectral_norm=True, batch_norm=False)
        layers = [m for m in normalised.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
        norms = [m for m in normalised.modules() if isinstance(m, SpectralNorm)]
        assert len(layers) == len(norms)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in normalised.modules())
        for layer in layers:
            out = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            matrix = layer.weight.detach().movedim(out, 0).flatten(1)
            assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1.0, rel=0.1)
