"""Each label changes only its own images, and only in conditional networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_gen.core import ImageToVector, Signature, VectorToImage
from ray_gen.networks.conv import ConvDecoder, ConvEncoder
from ray_gen.networks.dcgan import DcganDiscriminator, DcganGenerator
from ray_gen.networks.labels import ConditionalBatchNorm, Projection, label_code
from ray_gen.networks.mlp import Mlp
from ray_gen.networks.resnet import ResnetDiscriminator, ResnetGenerator
from tests.networks import test_resnet

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


# Conditional BatchNorm, projection

RESNET = {**test_resnet.OPTIONS, "width": 2}
IN_NORMS = {"labels": "conditional_batch_norm"}
PROJECTED = {"labels": "projection"}
NUMBERS = 2


def labels_with_numbers(count: int, classes: bool) -> torch.Tensor:
    """float32 (N, 1 + NUMBERS), or (N, NUMBERS) without classes."""
    numbers = torch.randn(count, NUMBERS)
    if not classes:
        return numbers
    return torch.cat([torch.arange(count)[:, None] % 3, numbers], dim=1)


@pytest.mark.parametrize("classes", [3, 0])
def test_the_code_of_labels_is_the_class_and_the_numbers(classes: int) -> None:
    signature = Signature((5,), (1,), classes, label_numbers=NUMBERS)
    labels = labels_with_numbers(4, bool(classes))
    found = label_code(labels, signature, torch.zeros(1, dtype=torch.float64))
    assert found.dtype == torch.float64
    for row, label in zip(found.tolist(), labels.tolist(), strict=True):
        one_hot = [float(label[0] == n) for n in range(classes)]
        assert row == pytest.approx([*one_hot, *label[-NUMBERS:]])


def test_the_code_of_classes_alone_is_one_hot() -> None:
    signature = Signature((5,), (1,), 3)
    found = label_code(torch.tensor([2, 0]), signature, torch.zeros(1))
    assert found.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_conditional_batch_norm_is_the_gain_and_bias_of_the_class() -> None:
    layer = ConditionalBatchNorm(5, 3).double()
    x, labels = torch.randn(4, 5, 2, 3, dtype=torch.float64), torch.tensor([2, 0, 2, 1])
    code = torch.eye(3, dtype=torch.float64)[labels]
    plain = nn.BatchNorm2d(5).double()
    torch.testing.assert_close(layer(x, code), plain(x))
    nn.init.normal_(layer.gain.weight)
    nn.init.normal_(layer.bias.weight)
    found = layer(x, code)
    centred = x - x.mean((0, 2, 3), keepdim=True)
    normalised = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    for n, label in enumerate(labels):
        gain, bias = 1 + layer.gain.weight[:, label], layer.bias.weight[:, label]
        expected = gain[:, None, None] * normalised[n] + bias[:, None, None]
        torch.testing.assert_close(found[n], expected)


def test_a_projection_is_the_inner_product_with_the_vector_of_the_class() -> None:
    layer = Projection(Signature((1, 8, 8), {"logit": (1,), "classes": (3,)}, 3), 7)
    features, labels = torch.randn(4, 7), torch.tensor([2, 0, 2, 1])
    found = layer(features, labels)
    assert found.shape == (4, 1)
    for n, label in enumerate(labels):
        expected = float(layer.vectors.weight[:, label].detach() @ features[n])
        assert float(found[n]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_projected_dcgan_adds_to_its_logit(batch_norm: bool) -> None:
    """It adds the projection of the last map, summed over positions."""
    options = {**DCGAN, "batch_norm": batch_norm, "width": 4}
    network = DcganDiscriminator(ImageToVector((1, 16, 16), 1, 3), **options, **PROJECTED).eval()
    bare = DcganDiscriminator(ImageToVector((1, 16, 16), 1), **options).eval()
    bare.load_state_dict({k: v for k, v in network.state_dict().items() if "projection" not in k})
    images, labels = torch.randn(3, 1, 16, 16), torch.tensor([2, 0, 1])
    maps = bare.layers[:-1](images)
    vectors = network.projection.vectors.weight.t()[labels]
    expected = bare(images) + (maps.sum((2, 3)) * vectors).sum(1, keepdim=True)
    torch.testing.assert_close(network(images, labels), expected)


def test_a_dcgan_with_conditional_batch_norm_begins_as_one_without_labels() -> None:
    """Then each class has gains and biases of its own, in every BatchNorm."""
    network = DcganGenerator(VectorToImage(5, (1, 16, 16), 3), **DCGAN, **IN_NORMS)
    z, labels = torch.randn(6, 5), torch.arange(6) % 3
    first = network(z, labels)
    torch.testing.assert_close(first, network(z, labels.flip(0)))
    norms = [m for m in network.layers if isinstance(m, ConditionalBatchNorm)]
    assert len(norms) == 2
    for norm in norms:
        nn.init.constant_(norm.bias.weight[:, :1].detach(), 0.5)
        assert not torch.allclose(network(z, labels), network(z, labels.flip(0)))
        norm.begin_as_plain()


WITH_NUMBERS = [
    (DcganGenerator, {**DCGAN, **IN_NORMS}, True),
    (ResnetGenerator, RESNET, True),
    (ResnetGenerator, {**RESNET, **IN_NORMS}, True),
    (ResnetGenerator, {**RESNET, **IN_NORMS, "shared_embedding": 4}, True),
    (DcganDiscriminator, {**DCGAN, **PROJECTED}, False),
    (ResnetDiscriminator, RESNET, False),
    (ResnetDiscriminator, {**RESNET, **PROJECTED}, False),
]


@pytest.mark.parametrize("classes", [3, 0])
@pytest.mark.parametrize(("kind", "options", "to_image"), WITH_NUMBERS)
def test_classes_and_numbers_enter_and_learn(kind, options, to_image: bool, classes: int) -> None:
    given, outputs = ((5,), SHAPE) if to_image else (SHAPE, (1,))
    network = kind(Signature(given, outputs, classes, label_numbers=NUMBERS), **options)
    with torch.no_grad():
        for parameter in network.parameters():  # tables of classes begin at 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.eval()
    x = torch.randn(1, *given).expand(4, *given)
    labels = labels_with_numbers(4, bool(classes)).requires_grad_()
    found = network(x, labels)
    found.square().sum().backward()
    assert bool((labels.grad[:, -NUMBERS:] != 0).all())
    if classes:
        other = labels.detach().clone()
        other[:, 0] = (other[:, 0] + 1) % 3
        assert bool(((network(x, other) - found).abs().flatten(1).amax(1) > 1e-6).all())


@pytest.mark.parametrize(
    ("kind", "options"), [(Mlp, MLP), (DcganDiscriminator, DCGAN), (ResnetDiscriminator, RESNET)]
)
def test_a_discriminator_that_gets_no_labels_does_not_see_them(kind, options) -> None:
    network = kind(ImageToVector(SHAPE, 1, 3), **{**options, "labels": "none"}).eval()
    images = torch.randn(3, *SHAPE)
    found = network(images, torch.tensor([0, 1, 2]))
    assert torch.equal(found, network(images, torch.tensor([2, 2, 0])))
