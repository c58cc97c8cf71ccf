"""What holds for the phases of every objective: whom they train, and whom they leave alone."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from ray_gen.core import Batch, declared
from ray_gen.distributed import World
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests import custom_objectives
from tests.helpers import Only, batches, gan, larsen, relativistic, stepped, vae, vae_gan

EXPERIMENTS = {
    "autoencoder": lambda *o: vae("objective={kind: autoencoder, latent_size: 5}", *o),
    "vae": lambda *o: vae("objective.likelihood=gaussian", *o),
    "gan": lambda *o: gan(
        "objective.conditional=true",
        "objective.r1_weight=1",
        "networks.generator.spectral_norm=true",
        "networks.discriminator.spectral_norm=true",
        *o,
        kind="dcgan",
    ),
    "larsen": lambda *o: larsen(*o, kind="dcgan"),
    "vae-gan": vae_gan,
    "relativistic": relativistic,
}
PHASES = [
    (name, phase.name)
    for name, make in EXPERIMENTS.items()
    for phase in build_objective(make()).phases()
]


def copied(networks: nn.ModuleDict) -> dict[str, dict[str, torch.Tensor]]:
    return {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_a_phase_changes_its_own_networks_and_no_others(store_8, name: str, phase: str) -> None:
    """Weights and buffers, bit for bit, although every network is called in training mode."""
    experiment = EXPERIMENTS[name]()
    objective = Only(build_objective(experiment), phase)
    state = State.build(experiment, objective, World())
    before = copied(state.networks)
    stepped(experiment, objective, store_8, 2, state)
    (updated,) = [p.updates for p in objective.phases()]
    for network, tensors in state.networks.items():
        changed = {
            key
            for key, value in tensors.state_dict().items()
            if not torch.equal(value, before[network][key])
        }
        if network not in updated:
            assert not changed, network
            continue
        # A single number may have no gradient: a relativistic logit's bias, a one-row matrix's
        # singular vector.
        several = {key for key, value in before[network].items() if value.numel() > 1}
        assert not several - changed


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_no_gradient_is_computed_for_the_weights_of_others(store_8, name: str, phase: str) -> None:
    """Nothing is left behind for the next phase, either."""
    experiment = EXPERIMENTS[name]()
    objective = Only(build_objective(experiment), phase)
    state, _ = stepped(experiment, objective, store_8, 1)
    (updated,) = [p.updates for p in objective.phases()]
    for network, module in state.networks.items():
        for parameter in module.parameters():
            assert parameter.grad is None
            assert parameter.requires_grad == (network in updated)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_term_gives_one_value_for_each_image(store_8, name: str) -> None:
    experiment = EXPERIMENTS[name]()
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    ((images, labels),) = batches(experiment, objective, store_8, 0, 1)
    assert float(images.min()) >= objective.image_range[0]
    assert float(images.max()) <= objective.image_range[1]
    for phase in objective.phases():
        specs = declared(phase.noise, state.networks)
        noise = {key: torch.rand(len(images), *spec.shape) for key, spec in specs.items()}
        numbers = {name: torch.full((), value) for name, value in phase.numbers.items()}
        batch = Batch(images, labels, noise, torch.zeros(()), numbers)
        for term in phase.terms:
            losses = term.loss(state.networks, batch)
            for value in (*losses.minimised.values(), *losses.reported.values()):
                assert value.shape == (len(images),)
                assert value.dtype == torch.float32


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_samples_are_images_in_the_unit_interval_and_change_no_state(name: str) -> None:
    experiment = EXPERIMENTS[name]()
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    state.ema.load_state_dict({k: 3 * v for k, v in state.ema.state_dict().items()})
    before = copied(state.ema)
    labels = torch.arange(6) if experiment.needs_labels else None
    images = objective.sample(state.ema, {"z": 5 * torch.randn(6, 5)}, labels, {})
    assert images.shape == (6, 1, 8, 8)
    assert float(images.min()) >= 0.0
    assert float(images.max()) <= 1.0
    for network, tensors in copied(state.ema).items():
        assert all(torch.equal(value, before[network][key]) for key, value in tensors.items())


def test_the_decoder_of_a_vae_gan_does_not_help_the_discriminator(store_8) -> None:
    """Its phase raises D of what it makes; a sample that is not detached would lower it."""
    experiment = vae_gan(
        "training.precision=fp64",
        "objective.options.gamma=1e-9",
        "optimizers.decoder={kind: sgd, learning_rate: 1e-3}",
    )
    objective = Only(build_objective(experiment), "decoder")
    state = State.build(experiment, objective, World())
    _, meter = stepped(experiment, objective, store_8, 1, state)
    before = meter.report()["loss/decoder"]
    state.step = 0  # the same images and noise once more
    _, meter = stepped(experiment, objective, store_8, 1, state)
    assert meter.report()["loss/decoder"] < before


def test_both_penalties_are_taken_in_full_precision_under_bf16(store_8) -> None:
    """R2's images too, which the generator would otherwise make in 16 bits."""
    found = {}
    for precision in ("fp32", "bf16"):
        experiment = relativistic(f"training.precision={precision}")
        objective = Only(build_objective(experiment), "discriminator")
        found[precision] = stepped(experiment, objective, store_8, 1)[1].report()
    for penalty in ("loss/r1", "loss/r2"):
        assert found["bf16"][penalty] == found["fp32"][penalty] > 0
    assert found["bf16"]["loss/discriminator"] != found["fp32"]["loss/discriminator"]


def test_objectives_outside_the_package_are_short() -> None:
    for objective in (custom_objectives.VaeGan, custom_objectives.RelativisticGan):
        assert len(inspect.getsource(objective).splitlines()) <= 60
