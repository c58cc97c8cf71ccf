"""A step against loops written by hand, and what it must never do."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ray_gen.core import Losses, Networks, Phase
from ray_gen.distributed import World
from ray_gen.noise import draw, key_of
from ray_gen.training.build import build_objective
from ray_gen.training.loop import Report, held_out_scores, train
from ray_gen.training.meter import Meter, NonFiniteError
from ray_gen.training.state import State
from ray_gen.training.step import Step
from tests.helpers import (
    batches,
    gan,
    largest_difference,
    relativistic,
    stepped,
    trained,
    vae,
    vae_gan,
    weights,
)

FP64 = "training.precision=fp64"


class Altered:
    """An objective whose terms' losses go through a function."""

    def __init__(self, objective, change: Callable[[str, Networks, Losses], Losses]) -> None:
        self._objective = objective
        self._change = change

    def __getattr__(self, name: str):
        return getattr(self._objective, name)

    def phases(self) -> list[Phase]:
        return [
            dataclasses.replace(phase, terms=tuple(map(self._altered, phase.terms)))
            for phase in self._objective.phases()
        ]

    def _altered(self, term):
        return dataclasses.replace(
            term,
            loss=lambda networks, batch: self._change(
                term.name, networks, term.loss(networks, batch)
            ),
        )


def elbo_by_hand(networks: nn.ModuleDict, images: Tensor, step: int) -> Tensor:
    """The mean negative ELBO of a Bernoulli VAE on the images of one step."""
    mean, log_variance = networks["encoder"](images, None).chunk(2, dim=1)
    key = key_of(0, "autoencoder", "epsilon")
    drawn = draw_epsilon(key, step, images)
    logits = networks["decoder"](mean + (0.5 * log_variance).exp() * drawn, None)
    p = logits.sigmoid()
    nll = -(images * p.log() + (1 - images) * (1 - p).log()).sum((1, 2, 3))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    return (nll + kl).mean()


def draw_epsilon(key, step: int, images: Tensor) -> Tensor:
    from ray_gen.core import Noise

    drawn = draw(Noise((5,)), key, torch.tensor([step]), torch.arange(len(images)))
    return drawn[0].double()


ADAM = {"lr": 3e-3, "betas": (0.5, 0.99), "eps": 1e-7}
OPTIMIZERS = {
    "{kind: adam, learning_rate: 3e-3, betas: [0.5, 0.99], eps: 1e-7}": lambda p: torch.optim.Adam(
        p, **ADAM, foreach=False, fused=False
    ),
    "{kind: adamw, learning_rate: 3e-3, betas: [0.5, 0.99], eps: 1e-7, weight_decay: 0.1}": (
        lambda p: torch.optim.AdamW(p, **ADAM, weight_decay=0.1, foreach=False, fused=False)
    ),
    "{kind: sgd, learning_rate: 1e-3}": lambda p: torch.optim.SGD(p, lr=1e-3, foreach=False),
    "{kind: sgd, learning_rate: 1e-3, momentum: 0.9, nesterov: true, weight_decay: 0.01}": (
        lambda p: torch.optim.SGD(
            p, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.01, foreach=False
        )
    ),
}


@pytest.mark.parametrize("settings", OPTIMIZERS)
@pytest.mark.parametrize("options", [[], ["training.micro_batch_size=6"]])
def test_steps_equal_a_plain_loop(store_8, settings: str, options: list[str]) -> None:
    experiment = vae(FP64, f"optimizers.autoencoder={settings}", *options)
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    networks = copy.deepcopy(state.networks)
    stepped(experiment, objective, store_8, 8, state)
    optimizer = OPTIMIZERS[settings](list(networks.parameters()))
    for step, (images, _) in enumerate(batches(experiment, objective, store_8, 0, 8)):
        optimizer.zero_grad()
        elbo_by_hand(networks, images, step).backward()
        optimizer.step()
    for name, parameter in state.networks.named_parameters():
        torch.testing.assert_close(parameter, networks.get_parameter(name), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_clipping_is_by_the_norm_of_the_whole_gradient(store_8, clip_norm: float) -> None:
    """Over all networks of the phase and all micro-batches together."""
    experiment = vae(
        FP64,
        f"optimizers.autoencoder={{kind: sgd, learning_rate: 1.0, clip_norm: {clip_norm}}}",
        "training.micro_batch_size=6",
    )
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    before = copy.deepcopy(state.networks)
    ((images, _),) = batches(experiment, objective, store_8, 0, 1)
    elbo_by_hand(before, images, 0).backward()
    gradient = torch.cat([p.grad.flatten() for p in before.parameters()])
    norm = float(gradient.norm())
    stepped(experiment, objective, store_8, 1, state)
    after = torch.cat([p.detach().flatten() for p in state.networks.parameters()])
    moved = torch.cat([p.detach().flatten() for p in before.parameters()]) - after
    torch.testing.assert_close(moved, gradient * min(1.0, clip_norm / norm), rtol=1e-5, atol=1e-9)
    assert (norm > clip_norm) == (clip_norm == 0.5)


def test_the_learning_rate_follows_its_schedule_in_images(store_8) -> None:
    """With a gradient of one everywhere, SGD moves by the learning rate."""
    experiment = vae(
        FP64,
        "optimizers.autoencoder={kind: sgd, learning_rate: 0.5, "
        "schedule: {kind: linear, warmup_images: 48, horizon_images: 144, final_fraction: 0.2}}",
    )

    def unit_gradient(name: str, networks: Networks, losses: Losses) -> Losses:
        total = torch.stack([parameter.sum() for parameter in networks.parameters()]).sum()
        return Losses({"loss": total.expand(24)})

    objective = Altered(build_objective(experiment), unit_gradient)
    state = State.build(experiment, objective, World())
    moves = []
    for _ in range(8):
        before = state.networks["encoder"].layers[0].bias.detach().clone()
        stepped(experiment, objective, store_8, 1, state)
        moved = before - state.networks["encoder"].layers[0].bias.detach()
        torch.testing.assert_close(moved, moved[:1].expand_as(moved))
        moves.append(float(moved[0]))
    factors = [0.0, 0.5, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    assert moves == pytest.approx([0.5 * factor for factor in factors], abs=1e-12)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("ramp", [0.0, 0.05])
def test_the_average_equals_its_recursion(store_8, every: int, ramp: float) -> None:
    """Weights and running statistics alike, in float64."""
    experiment = gan(
        FP64,
        f"training.ema_every_steps={every}",
        f"training.ema_ramp={ramp}",
        "networks.generator.spectral_norm=true",
        kind="dcgan",
    )
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    expected = {k: v.clone() for k, v in state.networks["generator"].state_dict().items()}
    for step in range(1, 10):
        stepped(experiment, objective, store_8, 1, state)
        if step % every:
            continue
        half_life = min(100.0, ramp * 24 * step) if ramp else 100.0
        decay = math.pow(0.5, 24 * every / half_life)
        for key, value in state.networks["generator"].state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value
    found = state.ema["generator"].state_dict()
    assert any("running_mean" in key for key in found)
    assert any(key.endswith("left") for key in found)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)
    assert set(state.ema) == {"generator"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("term", ["generator", "discriminator", "r1"])
def test_a_loss_that_is_not_a_number_stops_the_run(store_8, term: str, bad: float) -> None:
    """Within one report, naming the first step and the term, and nothing of it is yielded."""
    experiment = gan(
        "objective.r1_weight=1", "training.report_every_images=48", "training.images=480"
    )
    calls = {"n": 0}

    def spoil(name: str, networks: Networks, losses: Losses) -> Losses:
        if name != term:
            return losses
        calls["n"] += 1
        if calls["n"] != 8:  # step 7, counted from 0
            return losses
        one = torch.arange(24) == 5
        spoilt = {k: torch.where(one, v * bad, v) for k, v in losses.minimised.items()}
        return Losses(spoilt, losses.reported)

    objective = Altered(build_objective(experiment), spoil)
    state = State.build(experiment, objective, World())
    reports: list[Report] = []
    with pytest.raises(NonFiniteError, match=rf"^loss/{term} is not .* since step 7$"):
        reports.extend(train(experiment, objective, state, store_8, World()))
    assert state.step == 8


def test_what_was_yielded_before_stays_finite(store_8) -> None:
    experiment = vae("training.report_every_images=24", "training.checkpoint_every_images=24")
    calls = {"n": 0}

    def spoil(name: str, networks: Networks, losses: Losses) -> Losses:
        calls["n"] += 1
        return Losses({k: v / (calls["n"] < 4) for k, v in losses.minimised.items()})

    objective = Altered(build_objective(experiment), spoil)
    state = State.build(experiment, objective, World())
    reports: list[Report] = []
    with pytest.raises(NonFiniteError):
        for report in train(experiment, objective, state, store_8, World()):
            assert state.non_finite() is None
            reports.append(report)
    assert [report.step for report in reports] == [1, 2, 3]
    assert all(math.isfinite(value) for r in reports for value in r.metrics.values())


@pytest.mark.parametrize("where", ["parameter", "buffer"])
def test_a_weight_that_is_not_a_number_is_never_saved(store_8, where: str) -> None:
    """Even where every loss was finite: the last step may have spoilt it."""
    experiment = gan("training.images=24", kind="dcgan")
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    name = "layers.0.weight" if where == "parameter" else "layers.1.running_mean"
    average = state.average()

    def spoil(weight: Tensor) -> None:
        average(weight)
        tensor = state.networks["generator"].state_dict()[name]
        tensor[(0,) * tensor.dim()] = math.nan

    state.average = lambda: spoil
    experiment = experiment.with_fields(training__ema_every_steps=1)
    with pytest.raises(NonFiniteError, match=rf"generator.{name} .* step 1"):
        list(train(experiment, objective, state, store_8, World()))


@pytest.mark.parametrize("shape", [(), (24, 1), (1, 24)])
@pytest.mark.parametrize("part", ["minimised", "reported"])
def test_a_term_must_return_one_value_for_each_image(store_8, shape, part: str) -> None:
    experiment = vae()

    def wrong(name: str, networks: Networks, losses: Losses) -> Losses:
        value = losses.minimised["kl"]
        value = value.mean() if shape == () else value.view(shape)
        return Losses(
            {"wrong": value} if part == "minimised" else losses.minimised, {"wrong": value}
        )

    objective = Altered(build_objective(experiment), wrong)
    with pytest.raises(ValueError, match=r"term elbo: .*wrong has shape .*\(N,\)"):
        stepped(experiment, objective, store_8, 1)


def test_a_mean_over_the_batch_in_place_of_images_is_refused(store_8) -> None:
    """(1,) has one axis, too; averaged over 24 images it would be 24 times too small."""
    experiment = vae()

    def wrong(name: str, networks: Networks, losses: Losses) -> Losses:
        return Losses({"wrong": losses.minimised["kl"].mean()[None]})

    objective = Altered(build_objective(experiment), wrong)
    with pytest.raises(ValueError, match=r"term elbo: .*wrong has shape \(1,\)"):
        stepped(experiment, objective, store_8, 1)


def test_phases_may_give_their_terms_the_same_name(store_8) -> None:
    """They are not added up as if they were micro-batches of one term."""
    experiment = gan()
    expected = stepped(experiment, build_objective(experiment), store_8, 1)[1].report()

    class Renamed(Altered):
        def _altered(self, term):
            return dataclasses.replace(term, name="same")

    objective = Renamed(build_objective(experiment), lambda name, networks, losses: losses)
    assert stepped(experiment, objective, store_8, 1)[1].report() == expected


@pytest.mark.parametrize("make", [lambda: gan(kind="dcgan"), vae, vae_gan])
def test_sampling_and_evaluating_change_no_state(store_8, make) -> None:
    """A run that is sampled from and evaluated after every step, and one that is left alone."""
    experiment = make()
    objective = build_objective(experiment)
    undisturbed, _ = trained(experiment, store_8)
    state = State.build(experiment, objective, World())
    step = Step(experiment, objective, state, World(), Meter(24, World()))
    for images, labels in batches(experiment, objective, store_8, 0, 20):
        step(images, labels)
        objective.sample(state.ema, {"z": torch.randn(3, 5)}, None, {})
        objective.sample(state.networks, {"z": torch.randn(3, 5)}, None, {})
        held_out_scores(experiment, objective, state, store_8.held_out, World())
    assert largest_difference(weights(state), weights(undisturbed)) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: gan("objective.augment=[color, cutout]", "data.flip=true", kind="dcgan"),
        lambda: gan("networks.discriminator.spectral_norm=true", "objective.r1_weight=1"),
        lambda: vae("objective.likelihood=gaussian"),
        vae_gan,
        relativistic,
    ],
)
def test_torchs_own_generator_does_not_matter(store_8, make) -> None:
    """Neither its seed before the weights are made, nor draws between two steps."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        experiment = make()
        objective = build_objective(experiment)
        state = State.build(experiment, objective, World())
        for _ in range(5):
            torch.rand(seed)
            stepped(experiment, objective, store_8, 1, state)
        found.append(weights(state))
    assert largest_difference(*found) == 0


@pytest.mark.parametrize("make", [vae, lambda: gan(kind="dcgan")])
def test_built_in_models_draw_nothing_from_torchs_generator(store_8, make) -> None:
    experiment = make()
    before = torch.random.get_rng_state()
    trained(experiment, store_8)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_weights_of_a_network_do_not_depend_on_another() -> None:
    ours = State.build(gan(), build_objective(gan()), World())
    experiment = gan("networks.discriminator.hidden_sizes=[7, 9]")
    theirs = State.build(experiment, build_objective(experiment), World())
    for name, tensor in ours.networks["generator"].state_dict().items():
        assert torch.equal(tensor, theirs.networks["generator"].state_dict()[name])
    first, second = ours.networks["generator"], ours.networks["discriminator"]
    assert not torch.equal(first.layers[0].weight[:, 0], second.layers[0].weight[:, 0])


def test_flips_are_each_image_anew_with_probability_one_half(store_8) -> None:
    plain, flipping = (vae(f"data.flip={flip}") for flip in (False, True))
    count, flipped = 0, 0
    for (straight, _), (images, _) in zip(
        batches(plain, build_objective(plain), store_8, 0, 60),
        batches(flipping, build_objective(flipping), store_8, 0, 60),
        strict=True,
    ):
        for before, after in zip(straight, images, strict=True):
            mirrored = torch.equal(after, before.flip(2))
            assert mirrored or torch.equal(after, before)
            count, flipped = count + 1, flipped + mirrored
    assert abs(flipped / count - 0.5) < 5 * 0.5 / count**0.5


def test_a_phase_that_reaches_no_parameter_moves_nothing_by_sgd(store_8) -> None:
    """A parameter without a gradient counts as one with a gradient of zero."""
    experiment = vae("optimizers.autoencoder={kind: sgd, learning_rate: 1.0}")

    def decoder_only(name: str, networks: Networks, losses: Losses) -> Losses:
        value = networks["decoder"](torch.ones(24, 5), None).square().flatten(1).sum(1)
        return Losses({"loss": value})

    objective = Altered(build_objective(experiment), decoder_only)
    state = State.build(experiment, objective, World())
    before = weights(state)
    stepped(experiment, objective, store_8, 1, state)
    after = weights(state)
    assert all(
        torch.equal(after["encoder"][key], before["encoder"][key]) for key in after["encoder"]
    )
    assert any(
        not torch.equal(after["decoder"][key], before["decoder"][key]) for key in after["decoder"]
    )
