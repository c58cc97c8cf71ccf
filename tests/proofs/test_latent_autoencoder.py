"""The latent autoencoder: the adaptive weight by hand, when its losses start, and map latents."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ray_gen
from ray_gen.core import Batch, Networks
from ray_gen.distributed import World
from ray_gen.noise import draw, key_of
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import Only, batches, largest_difference, stepped, weights
from tests.proofs.latent_autoencoder import experiment
from tests.proofs.latent_networks import LastLayer
from tests.runs import saved

FP64 = "training.precision=fp64"
FIXED = "objective.options.adaptive=false"
NEVER = "objective.options.late.gan=[1000000, 1]"


def fakes_by_hand(networks: Networks, images: Tensor, epsilon: Tensor) -> Tensor:
    encoded = networks["encoder"](images)
    mean, log_variance = encoded[:, :2], encoded[:, 2:]
    return networks["decoder"](mean + torch.exp(log_variance / 2) * epsilon)


def ratio_by_hand(networks: Networks, images: Tensor, step: int) -> Tensor:
    """‖∇ L_rec‖ / (‖∇ L_GAN‖ + 1e-4) at the last convolution's weight."""
    spec = build_objective(experiment()).latents["z"]
    numbers = torch.arange(len(images))
    epsilon = draw(spec, key_of(0, "autoencoder", "epsilon"), torch.tensor([step]), numbers)[0]
    fakes = fakes_by_hand(networks, images, epsilon.double())
    weight = networks["decoder"][-1].weight
    norms = []
    for loss in ((images - fakes).abs().mean(), -networks["discriminator"](fakes).mean()):
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        norms.append(gradient.square().sum().sqrt())
    return norms[0] / (norms[1] + 1e-4)


@pytest.mark.parametrize("micro_batch", [24, 6])
def test_the_adaptive_weight_is_that_of_the_update_before(store_8, micro_batch: int) -> None:
    this = experiment(FP64, f"training.micro_batch_size={micro_batch}")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    expected = torch.zeros(())
    for step, (images, _) in enumerate(batches(this, objective, store_8, 0, 3)):
        before = copy.deepcopy(state.networks).requires_grad_()
        _, meter = stepped(this, objective, store_8, 1, state)
        assert meter.report()["gan/factor"] == pytest.approx(float(expected), rel=1e-12)
        expected = ratio_by_hand(before, images, step)
        found = state.networks["decoder"][-1].ratio
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        assert 1e-3 < float(found) < 1e3


def test_the_adaptive_weight_of_two_workers_is_that_of_all_images(store_8) -> None:
    """Each sees a half, and both add up what they saw."""
    this = experiment(FP64)
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    (term,) = objective.phases()[0].terms
    epsilon = draw(
        objective.latents["z"],
        key_of(0, "autoencoder", "epsilon"),
        torch.zeros(1).long(),
        torch.arange(24),
    )
    workers = [copy.deepcopy(networks) for _ in range(2)]
    for worker, half in zip(workers, (slice(0, 12), slice(12, 24)), strict=True):
        worker["decoder"][-1].begin_phase()
        term.loss(
            worker,
            Batch(images[half], None, {"epsilon": epsilon[0][half].double()}, torch.zeros(())),
        )
    lasts = [worker["decoder"][-1] for worker in workers]
    total = sum(last.phase_statistics() for last in lasts)
    for last in lasts:
        last.end_phase(total)
        torch.testing.assert_close(
            last.ratio, ratio_by_hand(networks, images, 0), rtol=1e-12, atol=0
        )


def test_the_adaptive_weight_is_bounded_and_stays_where_there_was_no_image() -> None:
    last = LastLayer(2, 1, 3)
    size = last.weight.numel()
    rec, none = torch.full((size,), 6.0), torch.zeros(size)
    for gan, expected in ((none, 1e4), (1e-3 * rec, None), (1e9 * rec, 1e-9)):
        last.end_phase(torch.cat([torch.tensor([2.0]), rec, gan]))
        bare = 3.0 * size**0.5
        expected = bare / (1e-3 * bare + 1e-4) if expected is None else expected
        assert float(last.ratio) == pytest.approx(expected, rel=1e-5)
    before = last.ratio.clone()
    last.begin_phase()
    last.end_phase(last.phase_statistics())
    assert torch.equal(last.ratio, before)


@pytest.mark.parametrize("options", [(), (FIXED,)])
def test_each_phase_passes_through_the_discriminator_as_often_as_it_has_to(
    store_8, options
) -> None:
    """Once for the reconstructions, and in its own phase for the images too."""
    this = experiment(*options)
    passes = {}
    for phase in ("autoencoder", "discriminator"):
        objective = Only(build_objective(this), phase)
        state = State.build(this, objective, World())
        seen: Counter[str] = Counter()
        for name, network in state.networks.items():
            network.register_forward_hook(lambda *_, name=name, seen=seen: seen.update([name]))
        stepped(this, objective, store_8, 1, state)
        passes[phase] = dict(seen)
    assert passes == {
        "autoencoder": {"encoder": 1, "decoder": 1, "discriminator": 1},
        "discriminator": {"encoder": 1, "decoder": 1, "discriminator": 2},
    }


def after(store_8, steps: int, *overrides: str) -> dict[str, dict[str, Tensor]]:
    this = experiment(*overrides)
    return weights(stepped(this, build_objective(this), store_8, steps)[0])


@pytest.mark.parametrize("options", [(), (FIXED,)])
def test_the_gan_loss_has_no_weight_before_its_start(store_8, options) -> None:
    """192 images are 8 steps."""
    for steps, is_on in ((8, False), (9, True)):
        ours, without = (after(store_8, steps, *options, *more) for more in ((), (NEVER,)))
        parts = ("encoder", "decoder")
        difference = largest_difference(ours, {part: without[part] for part in parts})
        assert (difference > 0) == is_on


def test_the_discriminator_stands_still_before_its_start(store_8) -> None:
    """96 images are 4 steps."""
    start, before, later = (after(store_8, steps)["discriminator"] for steps in (0, 4, 5))
    parameters = [name for name in start if "running" not in name and "num" not in name]
    assert all(torch.equal(start[name], before[name]) for name in parameters)
    assert not any(torch.equal(start[name], later[name]) for name in parameters)


def test_a_fixed_weight_is_one(store_8) -> None:
    this = experiment(FIXED)
    state, meter = stepped(this, build_objective(this), store_8, 3)
    assert meter.report()["gan/factor"] == 1.0
    assert float(state.networks["decoder"][-1].ratio) == 0.0


@pytest.mark.parametrize("options", [(), (FIXED,)])
def test_the_losses_are_their_equations(store_8, options) -> None:
    """Means over the pixels, the numbers of z and the patches of each image."""
    this = experiment(FP64, *options)
    objective = build_objective(this)
    networks = stepped(this, objective, store_8, 6)[0].networks.requires_grad_()
    factor = 1.0 if options else float(networks["decoder"][-1].ratio)
    images, epsilon = torch.rand(6, 1, 8, 8).double() * 2 - 1, torch.randn(6, 2, 4, 4).double()
    found = {}
    for phase in objective.phases():
        batch = Batch(images, None, {"epsilon": epsilon}, torch.zeros(()))
        found |= phase.terms[0].loss(networks, batch).minimised
    fakes = fakes_by_hand(networks, images, epsilon)
    real, fake = (networks["discriminator"](x) for x in (images, fakes))
    assert real.shape == (6, 1, 2, 2)
    mean, log_variance = networks["encoder"](images).split(2, dim=1)
    expected = {
        "l1": (images - fakes).abs(),
        "kl": 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance),
        "gan": -factor * fake,
        "discriminator": 0.5 * ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.stack([value.mean() for value in values]))


def test_the_variance_of_a_posterior_has_bounds() -> None:
    this = experiment()
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    for shift, bound in ((200.0, 20.0), (-400.0, -30.0)):
        with torch.no_grad():
            networks["encoder"][-1][-1].bias.add_(shift)
        (posterior,) = objective.encode(networks, torch.rand(3, 1, 8, 8), None).values()
        assert bool((posterior.log_variance == bound).all())


def test_map_latents_are_encoded_and_walked_through(store_8, tmp_path: Path) -> None:
    pipeline = ray_gen.load(saved(experiment(), store_8, tmp_path / "run"))
    images = store_8.held_out.images_NHWC[:4].permute(0, 3, 1, 2) / 255
    z = pipeline.encode(images)
    posterior = pipeline.posterior(images)
    assert z.shape == posterior.log_variance.shape == (4, 2, 4, 4)
    assert not torch.equal(pipeline.encode(images, seed=0), z)
    decoded = pipeline.decode(z)
    way = pipeline.interpolate(images[:2], z[2:], steps=5)
    assert way.shape == (2, 5, 1, 8, 8)
    torch.testing.assert_close(way[:, 0], decoded[:2])
    torch.testing.assert_close(way[:, -1], decoded[2:])
    rows = pipeline.traverse([0, 31], base=z[:1], steps=3)
    assert rows.shape == (2, 3, 1, 8, 8)
    torch.testing.assert_close(rows[:, 1], decoded[[0, 0]])
    moved = z[:1].clone()
    moved[0, 1, 3, 3] += 3.0
    torch.testing.assert_close(rows[1, 2], pipeline.decode(moved)[0])
