"""StyleGAN2-ADA as a user's objective: what moves besides weights, and what networks draw."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from ray_gen.core import NoiseOf, declared, noise_of
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.noise import Tape
from ray_gen.sampling import latents_of, noise_for
from ray_gen.training.build import build_objective
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Step
from tests.helpers import batches, stepped, trained
from tests.proofs.style import experiment
from tests.proofs.style_modules import AdaptiveAugment

BATCH = 24
FP64 = "training.precision=fp64"
MICRO_BATCHES = "training.micro_batch_size=6"


def simulated(phases: Iterable[list[float]], images: float, every: int = 4) -> list[float]:
    """p after each phase, from the logits of its real images, in plain Python."""
    p, signs, trajectory = 0.0, [], []
    for number, logits in enumerate(phases, 1):
        signs += [1.0 if logit > 0 else -1.0 for logit in logits]
        if number % every == 0:
            overfits = sum(signs) / len(signs) > 0.6
            p += (1 if overfits else -1) * len(signs) / images
            p, signs = min(0.8, max(0.0, p)), []
        trajectory.append(p)
    return trajectory


# The adaptive probability


def test_p_goes_as_a_plain_simulation_goes() -> None:
    """To its upper end and back to 0. D's opinion of real images is given."""
    drawn = random.Random(0)
    shift = [1.5] * 50 + [0.0] * 70 + [1.0] * 40
    phases = [[drawn.gauss(mean, 1.0) for _ in range(BATCH)] for mean in shift]
    module = AdaptiveAugment(images=1000.0).double()
    trajectory = []
    for logits in phases:
        module.begin_phase()
        for part in torch.tensor(logits, dtype=torch.float64).split(10):
            module.see(part.sign())
        module.end_phase(module.phase_statistics())
        trajectory.append(float(module.p))
    expected = simulated(phases, 1000.0)
    assert trajectory == pytest.approx(expected, abs=1e-12)
    assert max(expected) == 0.8
    assert expected[:50][-1] > 0.5 > 0.0 == expected[119] < expected[-1]


@pytest.mark.parametrize("options", [(), (MICRO_BATCHES,)])
def test_p_follows_the_discriminator_in_training(store_8, options: tuple[str, ...]) -> None:
    this = experiment(FP64, *options)
    objective = build_objective(this)
    state = State.build(this, objective, World())
    logits: list[list[float]] = []
    seen = state.networks["discriminator"].register_forward_hook(
        lambda module, given, out: logits.append(out.detach().flatten().tolist())
    )
    trajectory = []
    step = Step(this, objective, state, World(), Meter(BATCH, World()))
    parts = BATCH // (this.training.micro_batch_size or BATCH)
    phases: list[list[float]] = []
    for images, labels in batches(this, objective, store_8, 0, 22):
        step(images, labels)
        of_d = logits[: 2 * parts]  # real and generated in turn; then those of G's phase
        phases.append([logit for part in of_d[::2] for logit in part])
        logits.clear()
        trajectory.append(float(state.networks["augment"].p))
    seen.remove()
    assert all(len(phase) == BATCH for phase in phases)
    assert trajectory == pytest.approx(simulated(phases, 960.0), abs=1e-12)
    assert len(set(trajectory)) > 3


def test_what_saw_no_image_keeps_still() -> None:
    modules = build_objective(experiment()).modules()
    assert modules.keys() == {"augment", "path"}
    for module in modules.values():
        before = copy.deepcopy(module.state_dict())
        for _ in range(9):
            module.begin_phase()
            module.end_phase(module.phase_statistics())
        assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())


def test_p_is_the_share_of_images_whose_brightness_changes() -> None:
    module = AdaptiveAugment(images=1.0)
    images = torch.rand(4000, 1, 2, 2)
    noise = {"mirror": torch.rand(4000), "lit": torch.rand(4000), "by": torch.randn(4000)}
    assert torch.equal(module(images, noise), images)
    module.p.fill_(0.4)
    out = module(images, noise)
    lit = (out.mean((1, 2, 3)) - images.mean((1, 2, 3))).abs() > 1e-6
    mirrored = (out - out.flip(3) + images - images.flip(3)).abs().amax((1, 2, 3)) < 1e-6
    assert float(lit.float().mean()) == pytest.approx(0.4, abs=0.03)
    assert float(mirrored.float().mean()) == pytest.approx(0.2, abs=0.03)


# Path lengths


def _path_lengths(this: Experiment, state: State, step: int) -> Tensor:
    """ℓ of G's phase at a step: (N,), from the whole Jacobian of each image."""
    phase = build_objective(this).phases()[1]
    networks = copy.deepcopy(state.networks)
    drawn = Tape(declared(phase.noise, networks), this.seed, phase.name, 1, torch.arange(BATCH))[
        step
    ]
    noise = {name: values.double() for name, values in drawn.items()}
    styles = networks["mapping"](noise["z"], **noise_of(noise, "mapping")).detach()
    of_layers = noise_of(noise, "synthesis")["noise"]
    lengths = []
    for i in range(BATCH):
        own = {name: values[i : i + 1] for name, values in of_layers.items()}
        jacobian = torch.autograd.functional.jacobian(
            lambda w, own=own: networks["synthesis"](w, noise=own), styles[i : i + 1]
        )[0, :, :, :, 0]  # (C, H, W, L, style)
        y = noise["direction"][i] / (8 * 8) ** 0.5  # (C, H, W)
        along = torch.tensordot(y, jacobian, 3)  # (L, style)
        lengths.append((along * along).sum(1).mean().sqrt())
    return torch.stack(lengths)


@pytest.mark.parametrize("options", [(), (MICRO_BATCHES,)])
def test_the_mean_path_length_is_that_of_a_hand_computation(store_8, options) -> None:
    """At the eighth update, the second that is due; the loss takes the mean before it."""
    this = experiment(FP64, *options)
    state, _ = stepped(this, build_objective(this), store_8, 7)
    lengths, before = _path_lengths(this, state, 7), float(state.networks["path"].mean)
    _, meter = stepped(this, build_objective(this), store_8, 1, state)
    assert before > 0
    after = before + 0.01 * (float(lengths.mean()) - before)
    assert float(state.networks["path"].mean) == pytest.approx(after, rel=1e-10)
    loss = float((lengths - before).square().mean())
    assert meter.report()["loss/path"] == pytest.approx(loss, rel=1e-10)


def test_between_two_path_lengths_their_mean_keeps_still(store_8) -> None:
    this = experiment(FP64)
    state = State.build(this, build_objective(this), World())
    means = []
    for _ in range(9):
        _, meter = stepped(this, build_objective(this), store_8, 1, state)
        means.append(float(state.networks["path"].mean))
        tags = meter.report().keys() & {"loss/path", "loss/r1"}
        assert tags == ({"loss/path", "loss/r1"} if state.step % 4 == 0 else set())
    assert len(set(means)) == 3
    assert means[:3] == [0.0] * 3
    assert means[3] == means[6] < means[7] == means[8]


# Noise


@pytest.fixture(scope="module")
def state(store_8) -> State:
    """After 20 steps: layers begin without noise."""
    return trained(experiment(), store_8)[0]


def test_the_same_noise_gives_the_same_image_and_other_noise_another(state: State) -> None:
    objective, numbers = build_objective(experiment()), torch.arange(3)
    z = latents_of(objective.latents, 0, "sample", numbers, torch.float32)
    noise, other = (
        noise_for(objective.sampling_noise, state.ema, seed, "sample", numbers, torch.float32)
        for seed in (0, 1)
    )
    assert noise.keys() == {"synthesis.layer_0", "synthesis.layer_1", "synthesis.layer_2"}
    with torch.no_grad():
        images = objective.sample(state.ema, z, None, noise)
        assert torch.equal(objective.sample(state.ema, z, None, noise), images)
        for name in noise:
            changed = noise[name].clone()
            changed[1] = other[name][1]
            differs = objective.sample(state.ema, z, None, {**noise, name: changed}) != images
            assert differs.flatten(1).any(1).tolist() == [False, True, False]


def test_styles_are_mixed_in_training_alone(state: State) -> None:
    mapping = copy.deepcopy(state.networks["mapping"])
    z, other = torch.randn(2, 4, 5)
    where = torch.tensor([[0.5, 0.0], [0.95, 0.0], [0.0, 0.99], [0.89, 0.49]])
    first_of_other = [1, 3, 2, 1]  # 3: no layer
    mapping.train()
    specs = {f"mapping.{name}": spec for name, spec in mapping.noise.items()}
    assert declared({"mapping": NoiseOf("mapping")}, state.networks) == specs
    mixed = mapping(z, noise={"other": other, "where": where})
    mapping.eval()
    assert not mapping.noise
    plain, of_other = mapping(z), mapping(other)
    assert mixed.shape == plain.shape == (4, 3, 6)
    assert torch.equal(plain, plain[:, :1].expand_as(plain))
    for image, first in enumerate(first_of_other):
        assert torch.equal(mixed[image, :first], plain[image, :first])
        assert torch.equal(mixed[image, first:], of_other[image, first:])
