"""R3GAN as a user's objective: what its step costs, and what it computes, by hand in float64."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, softplus

from ray_gen.core import Networks, declared
from ray_gen.distributed import World
from ray_gen.noise import Tape
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import Only, batches, stepped
from tests.proofs.relativistic import experiment

BATCH = 24
FP64 = "training.precision=fp64"
PLAIN = "optimizers.discriminator={kind: sgd, learning_rate: 1.0}"  # moves by the gradient
LAZY = "objective.options.every=3"


def _logits(networks: Networks, images: Tensor) -> Tensor:
    """D's logits: (N,)."""
    features = leaky_relu(networks["discriminator"](images), 0.2)
    return features @ networks["head"].weight[0]


def _z(this, step: int) -> Tensor:
    """What D's phase draws at a step: (N, 5), float64."""
    phase = build_objective(this).phases()[0]
    noise = declared(phase.noise, torch.nn.ModuleDict())
    return Tape(noise, this.seed, phase.name, 1, torch.arange(BATCH))[step]["z"].double()


def _half_gamma(images: int) -> float:
    """γ/2 after so many images, from 1 to 0.1 along half a cosine."""
    way = 0.5 - 0.5 * math.cos(math.pi * min(1.0, images / (BATCH * 16)))
    return 1.0 + (0.1 - 1.0) * way


def _by_hand(networks: Networks, images: Tensor, z: Tensor) -> dict[str, Tensor]:
    """The three losses of each image, (N,), from a forward pass of its own each."""
    fakes = networks["generator"](z).detach()
    found = {"discriminator": softplus(_logits(networks, fakes) - _logits(networks, images))}
    for name, of in (("r1", images), ("r2", fakes)):
        norms = []
        for image in of:
            x = image[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(_logits(networks, x)[0], x, create_graph=True)
            norms.append((gradient * gradient).sum())
        found[name] = torch.stack(norms)
    return found


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_a_phase_takes_two_passes_of_d_and_one_of_g(store_8, phase: str) -> None:
    this = experiment()
    objective = Only(build_objective(this), phase)
    state = State.build(this, objective, World())
    passes: list[str] = []
    for name, network in state.networks.items():
        network.register_forward_hook(lambda *_, name=name: passes.append(name))
    stepped(this, objective, store_8, 1, state)
    assert Counter(passes) == {"generator": 1, "discriminator": 2, "head": 2}


def test_the_losses_of_a_step_are_those_of_separate_passes(store_8) -> None:
    this = experiment(FP64)
    objective = build_objective(this)
    state, _ = stepped(this, objective, store_8, 5)
    networks = copy.deepcopy(state.networks)
    ((images, _),) = batches(this, objective, store_8, 5, 6)
    expected = _by_hand(networks, images, _z(this, 5))
    _, meter = stepped(this, objective, store_8, 1, state)
    reported = meter.report()
    for name, values in expected.items():
        assert reported[f"loss/{name}"] == pytest.approx(float(values.detach().mean()), rel=1e-12)
        assert bool((values > 0).all())


@pytest.mark.parametrize("lazy", [False, True])
def test_d_moves_by_the_gradient_of_the_weighted_sum(store_8, lazy: bool) -> None:
    """At the third update γ/2 is on its way down, and a lazy penalty weighs three times as much."""
    this = experiment(FP64, PLAIN, *([LAZY] if lazy else []))
    objective = Only(build_objective(this), "discriminator")
    state, _ = stepped(this, objective, store_8, 2)
    networks = copy.deepcopy(state.networks)
    ((images, _),) = batches(this, objective, store_8, 2, 3)
    losses = _by_hand(networks, images, _z(this, 2))
    weight = _half_gamma(2 * BATCH) * (3 if lazy else 1)
    total = losses["discriminator"] + weight * (losses["r1"] + losses["r2"])
    d = [*networks["discriminator"].parameters(), *networks["head"].parameters()]
    gradients = torch.autograd.grad(total.mean(), d)
    stepped(this, objective, store_8, 1, state)
    now = [*state.networks["discriminator"].parameters(), *state.networks["head"].parameters()]
    for before, after, gradient in zip(d, now, gradients, strict=True):
        torch.testing.assert_close(before - after, gradient, rtol=1e-10, atol=1e-13)


def test_lazy_penalties_are_there_only_when_they_are_due(store_8) -> None:
    this = experiment(FP64, LAZY)
    objective = build_objective(this)
    state = State.build(this, objective, World())
    for step in range(1, 8):
        _, meter = stepped(this, objective, store_8, 1, state)
        penalties = {"loss/r1", "loss/r2"} & meter.report().keys()
        assert penalties == ({"loss/r1", "loss/r2"} if step % 3 == 0 else set())


def test_between_penalties_d_moves_by_its_main_loss_alone(store_8) -> None:
    this = experiment(FP64, PLAIN, LAZY)
    objective = Only(build_objective(this), "discriminator")
    state = State.build(this, objective, World())
    networks = copy.deepcopy(state.networks)
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    loss = _by_hand(networks, images, _z(this, 0))["discriminator"].mean()
    (gradient,) = torch.autograd.grad(loss, [networks["head"].weight])
    stepped(this, objective, store_8, 1, state)
    moved = networks["head"].weight - state.networks["head"].weight
    torch.testing.assert_close(moved, gradient, rtol=1e-10, atol=1e-13)
