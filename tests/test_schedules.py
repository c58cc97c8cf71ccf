"""Training by schedules, against torch's optimisers with settings that change from step to step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import batches, gan, largest_difference, stepped, trained, vae, weights
from tests.test_lineage import lineage
from tests.test_step import elbo_by_hand

FP64 = "training.precision=fp64"
LINEAR = "{kind: linear, start: %s, end: %s, until_images: 192}"
STEPS = 12


def linear(start: float, end: float, step: int) -> float:
    return start + (end - start) * min(1.0, 24 * step / 192)


def by_torch(
    this: Experiment, store, optimizer: torch.optim.Optimizer, networks: nn.Module, now
) -> None:
    """A plain loop whose optimiser is given other settings before each step."""
    objective = build_objective(this)
    for step, (images, _) in enumerate(batches(this, objective, store, 0, STEPS)):
        optimizer.param_groups[0].update(now(step))
        optimizer.zero_grad()
        elbo_by_hand(networks, images, step).backward()
        optimizer.step()


Optimizers = Callable[[list[Tensor]], torch.optim.Optimizer]
PLAIN = {"foreach": False, "fused": False}
CASES: dict[str, tuple[str, Optimizers, Callable[[int], dict]]] = {
    "beta2": (
        f"{{kind: adam, learning_rate: 3e-3, betas: [0.5, {LINEAR % (0.9, 0.99)}], eps: 1e-7}}",
        lambda p: torch.optim.Adam(p, lr=3e-3, eps=1e-7, **PLAIN),
        lambda step: {"betas": (0.5, linear(0.9, 0.99, step))},
    ),
    "rate": (
        f"{{kind: adam, learning_rate: {LINEAR % (1e-3, 5e-3)}, betas: [0.5, 0.99]}}",
        lambda p: torch.optim.Adam(p, betas=(0.5, 0.99), **PLAIN),
        lambda step: {"lr": linear(1e-3, 5e-3, step)},
    ),
    "rate and beta2 of adamw": (
        f"{{kind: adamw, learning_rate: {LINEAR % (1e-3, 5e-3)}, weight_decay: 0.1, "
        f"betas: [0.5, {LINEAR % (0.9, 0.99)}]}}",
        lambda p: torch.optim.AdamW(p, weight_decay=0.1, **PLAIN),
        lambda step: {
            "lr": linear(1e-3, 5e-3, step),
            "betas": (0.5, linear(0.9, 0.99, step)),
        },
    ),
    "decay of adamw": (
        f"{{kind: adamw, learning_rate: 3e-3, weight_decay: {LINEAR % (0.5, 0.0)}}}",
        lambda p: torch.optim.AdamW(p, lr=3e-3, **PLAIN),
        lambda step: {"weight_decay": linear(0.5, 0.0, step)},
    ),
    "decay and rate of sgd": (
        f"{{kind: sgd, learning_rate: {LINEAR % (1e-3, 2e-3)}, momentum: 0.9, "
        f"weight_decay: {LINEAR % (0.5, 0.0)}}}",
        lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, **PLAIN),
        lambda step: {
            "lr": linear(1e-3, 2e-3, step),
            "weight_decay": linear(0.5, 0.0, step),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_optimiser_is_given_may_change(store_8, case: str) -> None:
    settings, make, now = CASES[case]
    this = vae(FP64, f"optimizers.autoencoder={settings}")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    networks = copy.deepcopy(state.networks)
    stepped(this, objective, store_8, STEPS, state)
    by_torch(this, store_8, make(list(networks.parameters())), networks, now)
    for name, parameter in state.networks.named_parameters():
        torch.testing.assert_close(parameter, networks.get_parameter(name), rtol=1e-9, atol=1e-11)


CONSTANT = "{kind: constant, value: %s}"
SAME_BITS = {
    "optimizers.autoencoder.learning_rate": "0.003",
    "optimizers.autoencoder.clip_norm": "5.0",
    "objective.beta": "0.7",
    "training.ema_half_life_images": "77.0",
    "training.ema_ramp": "0.2",
}


@pytest.mark.parametrize("path", SAME_BITS)
def test_a_schedule_that_never_changes_is_the_number(store_8, path: str) -> None:
    """As a tensor, and as a constant of the program: the same bits."""
    value = SAME_BITS[path]
    plain, _ = trained(vae(f"{path}={value}"), store_8)
    scheduled, _ = trained(vae(f"{path}={CONSTANT % value}"), store_8)
    assert largest_difference(weights(plain), weights(scheduled)) == 0


@pytest.mark.parametrize(
    ("path", "first", "later"),
    [
        ("objective.discriminator_steps", 1, 3),
        ("objective.r1_every", 4, 1),
        ("objective.r1_weight", 0.5, 2.0),
        ("objective.label_smoothing", 0.2, 0.0),
    ],
)
def test_steps_are_a_lineage(store_8, path: str, first: float, later: float) -> None:
    """A number that changes at an image count, by a schedule and by a change of settings there."""
    more = [] if "r1_weight" in path else ["objective.r1_weight=1.0"]
    values = f"{path}={{kind: steps, values: [[0, {first}], [168, {later}]]}}"
    scheduled, _ = trained(gan(*more, values), store_8)
    changed, _ = trained(gan(*more, f"{path}={first}", lineage((168, {path: later}))), store_8)
    assert largest_difference(weights(scheduled), weights(changed)) == 0
    still, _ = trained(gan(*more, f"{path}={first}"), store_8)
    assert largest_difference(weights(scheduled), weights(still)) > 0


def test_a_lineage_replaces_a_schedule(store_8) -> None:
    way = f"objective.beta={LINEAR % (0.0, 4.0)}"
    changed, _ = trained(vae(way, lineage((120, {"objective.beta": 1.0}))), store_8)
    steps = "objective.beta={kind: steps, values: [%s]}"
    values = [(24 * step, linear(0.0, 4.0, step)) for step in range(5)] + [(120, 1.0)]
    by_steps = vae(steps % ", ".join(f"[{images}, {value}]" for images, value in values))
    assert largest_difference(weights(changed), weights(trained(by_steps, store_8)[0])) == 0


def test_the_half_life_of_the_average_may_change(store_8) -> None:
    this = vae(
        FP64,
        "training.ema_every_steps=2",
        "training.ema_ramp=0",
        f"training.ema_half_life_images={LINEAR % (20, 200)}",
    )
    objective = build_objective(this)
    state = State.build(this, objective, World())
    expected = {k: v.clone() for k, v in state.networks["decoder"].state_dict().items()}
    for step in range(1, STEPS + 1):
        stepped(this, objective, store_8, 1, state)
        if step % 2 == 0:
            decay = 0.5 ** (48 / linear(20, 200, step))
            for key, value in state.networks["decoder"].state_dict().items():
                expected[key] = decay * expected[key] + (1 - decay) * value
    for key, value in state.ema["decoder"].state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)


def test_the_ramp_of_the_average_may_change(store_8) -> None:
    this = vae(
        FP64,
        "training.ema_every_steps=2",
        "training.ema_half_life_images=1000",
        f"training.ema_ramp={LINEAR % (1.0, 0.1)}",
    )
    objective = build_objective(this)
    state = State.build(this, objective, World())
    expected = {k: v.clone() for k, v in state.networks["decoder"].state_dict().items()}
    for step in range(1, STEPS + 1):
        stepped(this, objective, store_8, 1, state)
        if step % 2 == 0:
            decay = 0.5 ** (48 / (linear(1.0, 0.1, step) * 24 * step))
            for key, value in state.networks["decoder"].state_dict().items():
                expected[key] = decay * expected[key] + (1 - decay) * value
    for key, value in state.ema["decoder"].state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)


def test_a_lineage_may_change_the_steps_of_a_count(store_8) -> None:
    """A schedule and a lineage together have the stages of the resulting schedule."""
    path = "objective.discriminator_steps"
    values = {f"{path}.values": [[0, 3], [240, 1]]}
    both = gan(f"{path}={{kind: steps, values: [[0, 3], [360, 2]]}}", lineage((120, values)))
    assert [(s, of.value_at(path)) for s, of in both.stages()] == [(0, 3), (5, 3), (10, 1)]
    plain = gan(f"{path}={{kind: steps, values: [[0, 3], [240, 1]]}}")
    ours, theirs = (weights(trained(of, store_8)[0]) for of in (both, plain))
    assert largest_difference(ours, theirs) == 0
