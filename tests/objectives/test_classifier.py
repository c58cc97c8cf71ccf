"""The auxiliary classifier of a GAN against steps written out by hand, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from ray_gen import losses
from ray_gen.distributed import World
from ray_gen.experiment import ExperimentError
from ray_gen.noise import draw, key_of
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.state import State
from tests.helpers import batches, gan, stepped

RATE = 0.05
SGD = [
    f"optimizers.{name}={{kind: sgd, learning_rate: {RATE}}}"
    for name in ("generator", "discriminator")
]
CLASSIFIES = (
    "objective.conditional=true",
    "objective.classifier_weight=0.7",
    "objective.generator_classifier_weight=0.3",
    "networks.discriminator.labels=none",
)


def test_the_loss_is_minus_the_logarithm_of_the_classes_share() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 3, 1, 1, 2])
    shares = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = -torch.stack([shares[n, c] for n, c in enumerate(classes)]).log()
    torch.testing.assert_close(losses.classification_loss(logits, classes), expected)
    assert torch.autograd.gradcheck(lambda x: losses.classification_loss(x, classes), [logits])


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    found = losses.classification_loss(logits, torch.tensor([0, 0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 1e4]))


def class_error(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log softmax at the label."""
    shares = class_logits.exp() / class_logits.exp().sum(1, keepdim=True)
    return -(shares * torch.eye(10, dtype=shares.dtype)[labels]).sum(1).log().mean()


def softplus(x: Tensor) -> Tensor:
    return (1 + x.exp()).log().mean()


@pytest.mark.parametrize("generated", [False, True])
@pytest.mark.parametrize("micro", [[], ["training.micro_batch_size=6"]])
def test_steps_are_the_papers_in_float64(store_8, generated: bool, micro: list[str]) -> None:
    also = f"objective.classify_generated={generated}"
    experiment = gan("training.precision=fp64", *SGD, *CLASSIFIES, also, *micro)
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    expected = copy.deepcopy(state.networks)
    stepped(experiment, objective, store_8, 4, state)
    generator, discriminator = expected["generator"], expected["discriminator"]

    def descend(network, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= RATE * gradient

    def z_of(phase: str, step: int) -> Tensor:
        key, steps, images = key_of(0, phase, "z"), torch.tensor([step]), torch.arange(24)
        return draw(objective.latents["z"], key, steps, images)[0].double()

    for step, (images, labels) in enumerate(batches(experiment, objective, store_8, 0, 4)):
        assert labels is not None
        fakes = generator(z_of("discriminator", step), labels).detach()
        real, fake = discriminator(images, labels), discriminator(fakes, labels)
        loss = softplus(-real["logit"]) + softplus(fake["logit"])
        loss = loss + 0.7 * class_error(real["classes"], labels)
        if generated:
            loss = loss + 0.7 * class_error(fake["classes"], labels)
        descend(discriminator, loss)
        fake = discriminator(generator(z_of("generator", step), labels), labels)
        loss = softplus(-fake["logit"]) + 0.3 * class_error(fake["classes"], labels)
        descend(generator, loss)
    for name, parameter in state.networks.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "dcgan", "resnet"])
def test_accuracy_and_losses_are_reported(store_8, kind: str) -> None:
    network = "{kind: resnet, width: 2, labels: none}"
    change = [f"networks.discriminator={network}"] if kind == "resnet" else []
    experiment = gan(*CLASSIFIES, *change, kind="mlp" if kind == "mlp" else "dcgan")
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    ((images, labels),) = batches(experiment, objective, store_8, 0, 1)
    with torch.no_grad():
        discriminator = copy.deepcopy(state.networks["discriminator"])
        classes = discriminator(images, labels)["classes"]
    assert labels is not None
    _, meter = stepped(experiment, objective, store_8, 1, state)
    found = meter.report()
    right = sum(int(row.argmax()) == int(c) for row, c in zip(classes, labels, strict=True))
    assert found["classifier/real_accuracy"] == pytest.approx(right / 24)
    assert 0.0 <= found["classifier/fake_accuracy"] <= 1.0
    expected = float(class_error(classes.double(), labels))
    assert found["loss/classifier"] == pytest.approx(expected, rel=0.02)
    assert found["loss/generator_classifier"] > 0


def test_judging_needs_no_classes(store_8) -> None:
    """`discriminate` gives one logit of each image."""
    experiment = gan(*CLASSIFIES)
    objective = build_objective(experiment)
    networks = build_networks(experiment, objective)
    ((images, labels),) = batches(experiment, objective, store_8, 0, 1)
    found = objective.discriminate(networks, images, labels)
    torch.testing.assert_close(found, networks["discriminator"](images, labels)["logit"][:, 0])


def test_a_classifier_learns() -> None:
    """It tells two classes of images apart that differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    experiment = gan(*CLASSIFIES, kind="dcgan")
    objective = build_objective(experiment)
    network = build_networks(experiment, objective)["discriminator"]
    labels = torch.arange(64) % 2
    images = torch.randn(64, 1, 8, 8, generator=generator) * 0.1 + labels[:, None, None, None]
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    network.eval()
    for _ in range(60):
        optimizer.zero_grad()
        losses.classification_loss(network(images, labels)["classes"], labels).mean().backward()
        optimizer.step()
    right = network(images, labels)["classes"].argmax(1) == labels
    assert float(right.float().mean()) > 0.95


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["objective.classifier_weight=1"], "classifier_weight is 1.0, but without labels"),
        (
            ["objective.conditional=true", "objective.generator_classifier_weight=0.5"],
            "generator_classifier_weight is 0.5, but with classifier_weight 0",
        ),
        (["objective.classify_generated=true"], "classify_generated is true"),
        (
            [*CLASSIFIES, "networks.discriminator={kind: conv}"],
            r"networks\.discriminator\.kind: conv has no classifier",
        ),
        (
            [*CLASSIFIES, "networks.discriminator={kind: dcgan}"],
            "concatenated shows the discriminator the class .* none or projection",
        ),
        (
            [*CLASSIFIES, "networks.discriminator={kind: mlp}"],
            "concatenated shows the discriminator the class .* set it to none, or",
        ),
        (
            ["objective.conditional=true", "networks.generator={kind: dcgan, labels: projection}"],
            "networks.generator.labels: projection is not for a network that makes images",
        ),
        (
            [
                "objective.conditional=true",
                "networks.discriminator={kind: resnet, labels: conditional_batch_norm}",
            ],
            "networks.discriminator.labels: .* set it to concatenated or projection or none",
        ),
        (
            ["networks.generator={kind: dcgan, labels: conditional_batch_norm, batch_norm: false}"],
            "set batch_norm to true",
        ),
    ],
)
def test_what_cannot_classify_is_refused_with_what_would_do(changes: list[str], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        gan(*changes)


def test_numbers_are_no_classes(store_8) -> None:
    experiment = gan(*CLASSIFIES)
    without = experiment.with_fields(data__classes=())
    with pytest.raises(ExperimentError, match=r"^objective\.classifier_weight: the labels have no"):
        build_objective(without)
