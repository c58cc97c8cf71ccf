"""Latent autoencoders: their losses, when a discriminator begins, and what a run is used for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ray_gen
from ray_gen.core import Batch
from ray_gen.distributed import World
from ray_gen.experiment import ExperimentError
from ray_gen.noise import draw, key_of
from ray_gen.perceptual import SsimDistance
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import batches, largest_difference, latent_autoencoder, stepped, weights
from tests.runs import saved

FP64 = "training.precision=fp64"
NO_SSIM = "objective.perceptual_weight=0"


def encoded(networks: nn.ModuleDict, images: Tensor) -> tuple[Tensor, Tensor]:
    """μ and log σ²."""
    mean, log_variance = networks["encoder"](images).chunk(2, dim=1)
    return mean, log_variance


def noise_of_step(this, phase: str, shape: tuple[int, ...], step: int) -> Tensor:
    """ε of each image of a global batch of 24."""
    spec = build_objective(this).latents["z"]
    assert spec.shape == shape
    steps, images = torch.full((1,), step), torch.arange(24)
    return draw(spec, key_of(this.seed, phase, "epsilon"), steps, images)[0].double()


@pytest.mark.parametrize("error", ["l1", "l2"])
def test_the_loss_in_means_is_the_published_one_in_sums(store_8, error: str) -> None:
    """Σ |x - x̂| + w Σ KL over one image, divided by its count of pixels."""
    this = latent_autoencoder(
        FP64, NO_SSIM, f"objective.reconstruction={error}", "objective.adversarial_weight=0"
    )
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    _, meter = stepped(this, objective, store_8, 1)
    report = meter.report()

    mean, log_variance = encoded(networks, images)
    epsilon = noise_of_step(this, "autoencoder", (2, 4, 4), 0)
    again = networks["decoder"](mean + (log_variance / 2).exp() * epsilon)
    apart = (again - images).abs() if error == "l1" else (again - images) ** 2
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
    w = this.objective.bottleneck.summed_weight((2, 4, 4), (1, 8, 8))
    summed = (apart.flatten(1).sum(1) + w * kl.flatten(1).sum(1)).mean()
    found = report["loss/reconstruction"] + report["loss/kl"]
    assert found == pytest.approx(summed.item() / 64, rel=1e-10)
    assert report["latent/kl"] == pytest.approx(kl.mean().item(), rel=1e-10)


def test_the_perceptual_loss_weighs_beside_the_error(store_8) -> None:
    this = latent_autoencoder(FP64, "objective.perceptual_weight=0.5")
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    _, meter = stepped(this, objective, store_8, 1)
    report = meter.report()
    mean, log_variance = encoded(networks, images)
    z = mean + (log_variance / 2).exp() * noise_of_step(this, "autoencoder", (2, 4, 4), 0)
    apart = SsimDistance()(images, networks["decoder"](z)).mean().item()
    assert report["reconstruction/perceptual"] == pytest.approx(apart, rel=1e-10)
    assert report["loss/perceptual"] == pytest.approx(0.5 * apart, rel=1e-10)


def test_a_learned_scale_divides_the_errors(store_8) -> None:
    """(d + P) / e^s + s with s = 0.3, and its gradient 1 - (d + P) / e^s."""
    this = latent_autoencoder(FP64, "objective.learned_scale=true")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    scale = state.networks["log_scale"].value
    with torch.no_grad():
        scale.fill_(0.3)
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    phase = objective.phases()[0]
    noise = {"epsilon": torch.zeros(24, 2, 4, 4).double()}
    numbers = {name: torch.tensor(1.0).double() for name in phase.numbers}
    batch = Batch(images, None, noise, torch.tensor(0.0), numbers)
    found = phase.terms[0].loss(state.networks, batch)
    errors = sum(found.reported[f"reconstruction/{name}"] for name in ("error", "perceptual"))
    both = sum(found.minimised[name] for name in ("reconstruction", "perceptual"))
    torch.testing.assert_close(both, errors * math.exp(-0.3) + 0.3)
    (slope,) = torch.autograd.grad(both.mean(), scale)
    assert slope.item() == pytest.approx(1 - float(errors.mean()) * math.exp(-0.3))


def test_the_autoencoder_hears_the_discriminator_late(store_8) -> None:
    """Before `start_images` it trains as if there were none; the discriminator already trains."""
    late = ("objective.discriminator_start_images=48", "objective.start_images=96")
    with_it = latent_autoencoder(FP64, *late)
    without = latent_autoencoder(FP64, "objective.adversarial_weight=0")
    states = {}
    for steps in (2, 3, 4, 5):
        states[steps] = weights(stepped(with_it, build_objective(with_it), store_8, steps)[0])
    alone = weights(stepped(without, build_objective(without), store_8, 4)[0])
    for name in ("encoder", "decoder"):
        assert largest_difference({name: states[4][name]}, {name: alone[name]}) < 1e-12
    begun = weights(State.build(with_it, build_objective(with_it), World()))
    name = "discriminator"
    assert largest_difference({name: states[2][name]}, {name: begun[name]}) == 0
    assert largest_difference({name: states[3][name]}, {name: begun[name]}) > 0
    alone = weights(stepped(without, build_objective(without), store_8, 5)[0])
    assert largest_difference({"decoder": states[5]["decoder"]}, {"decoder": alone["decoder"]}) > 0


def test_the_adaptive_weight_is_the_ratio_of_gradients_of_the_step_before(store_8) -> None:
    this = latent_autoencoder(FP64, NO_SSIM, "objective.adaptive=true", "training.images=240")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    networks = state.networks
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    mean, log_variance = encoded(networks, images)
    z = mean + (log_variance / 2).exp() * noise_of_step(this, "autoencoder", (2, 4, 4), 0)
    again = networks["decoder"](z)
    last = networks["decoder"].last.weight
    losses = (again - images).abs().mean(), -networks["discriminator"](again).mean()
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in losses]
    state, meter = stepped(this, objective, store_8, 1)
    assert meter.report()["adversarial/factor"] == 0
    _, meter = stepped(this, objective, store_8, 1, state)
    want = float(norms[0] / (norms[1] + 1e-4))
    assert meter.report()["adversarial/factor"] == pytest.approx(want, rel=1e-9)


def test_the_discriminators_loss_is_half_the_hinge_loss(store_8) -> None:
    this = latent_autoencoder(FP64, "networks.discriminator.norm=none", NO_SSIM)
    objective = build_objective(this)
    state = State.build(this, objective, World())
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    term = objective.phases()[1].terms[0]
    noise = {"epsilon": torch.zeros(24, 2, 4, 4).double()}
    numbers = {name: torch.tensor(0.5).double() for name in objective.phases()[1].numbers}
    batch = Batch(images, None, noise, torch.tensor(0.0), numbers)
    found = term.loss(state.networks, batch).minimised["discriminator"]
    again = state.networks["decoder"](encoded(state.networks, images)[0])
    real, fake = (state.networks["discriminator"](x) for x in (images, again))
    want = 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(1)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(
    "bottleneck", ["{kind: kl}", "{kind: vq, codes: 16}", "{kind: fsq, levels: [5, 5]}"]
)
def test_a_run_encodes_decodes_and_reconstructs(store_8, tmp_path: Path, bottleneck: str) -> None:
    this = latent_autoencoder(f"objective.bottleneck={bottleneck}")
    pipeline = ray_gen.load(saved(this, store_8, tmp_path / "run"))
    images = store_8.held_out.images_NHWC[:4].permute(0, 3, 1, 2).float() / 255
    again, z = pipeline.reconstruct(images), pipeline.encode(images)
    assert again.shape == images.shape
    assert z.shape == (4, 2, 4, 4)
    torch.testing.assert_close(pipeline.decode(z), again)
    with pytest.raises(Exception, match="prior"):
        pipeline.sample(4)


def test_a_frozen_encoder_stays(store_8) -> None:
    this = latent_autoencoder("training.freeze={encoder: all}")
    before = weights(State.build(this, build_objective(this), World()))
    after = weights(stepped(this, build_objective(this), store_8, 5)[0])
    assert largest_difference({"e": after["encoder"]}, {"e": before["encoder"]}) == 0
    assert largest_difference({"d": after["decoder"]}, {"d": before["decoder"]}) > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("objective.downsampling=3", "set it to 2 or 4"),
        ("objective.start_images=5", "set start_images to at least 24"),
        ("objective.adversarial_weight=0", "leave lecam_weight out"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(given: str, told: str) -> None:
    late = ("objective.discriminator_start_images=24", "objective.lecam_weight=0.1")
    with pytest.raises(ExperimentError, match=told):
        latent_autoencoder(*late, "objective.start_images=48", given)


def test_only_what_is_measured_can_choose_the_best_checkpoint() -> None:
    best = "checkpoints.best={metric: %s, mode: min}"
    for given, metric in (
        ("objective.perceptual_weight=0", "perceptual"),
        ("objective.bottleneck={kind: vq, codes: 16}", "kl"),
    ):
        with pytest.raises(ExperimentError, match=rf"checkpoints\.best.*{metric}"):
            latent_autoencoder(given, best % metric)
        latent_autoencoder(given, best % "reconstruction")


def test_hearing_a_discriminator_that_knows_nothing_is_told() -> None:
    told = latent_autoencoder().objective.told((1, 8, 8), 480)["adversarial"]
    assert told.endswith("set objective.start_images some thousand images later")
    late = latent_autoencoder("objective.start_images=5").objective.told((1, 8, 8), 480)[
        "adversarial"
    ]
    assert late.endswith("hears it from 5 on")
    never = latent_autoencoder("objective.start_images=480").objective.told((1, 8, 8), 480)
    assert never["adversarial"].endswith("from 480 on: never, for training ends after 480")


def test_what_does_not_fit_together_is_told_before_anything_is_built() -> None:
    with pytest.raises(
        ExperimentError, match=r"give 2 multipliers, or set objective\.downsampling=4"
    ):
        latent_autoencoder("networks.encoder={kind: autoencoder_kl, multipliers: [1, 2, 2]}")
    with pytest.raises(ExperimentError, match=r"training\.freeze\.decoder: .*adaptive=false"):
        latent_autoencoder("objective.adaptive=true", "training.freeze={decoder: 1}")


def test_sides_are_multiples_of_the_downsampling() -> None:
    this = latent_autoencoder("objective.downsampling=16")
    with pytest.raises(ExperimentError, match="16 does not divide images of 8 x 8"):
        build_objective(this)


def test_without_weight_the_experiment_may_still_name_a_discriminator() -> None:
    this = latent_autoencoder("objective.adversarial_weight=0")
    assert "discriminator" in this.networks
    assert "discriminator" not in build_objective(this).networks()


def test_codes_name_what_is_decoded(store_8) -> None:
    this = latent_autoencoder("objective.bottleneck={kind: vq, codes: 16}")
    objective = build_objective(this)
    networks = stepped(this, objective, store_8, 10)[0].networks.eval()
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    codes = objective.codes(networks, images, None)["z"]
    assert objective.code_count == 16
    assert codes.shape == (24, 4, 4) and 0 <= int(codes.min()) < int(codes.max()) < 16
    again = networks["decoder"](networks["quantiser"].lookup(codes)).float() / 2 + 0.5
    torch.testing.assert_close(again.clamp(0, 1), objective.reconstruct(networks, images, None, {}))
    assert build_objective(latent_autoencoder()).code_count is None


@pytest.mark.parametrize(
    "bottleneck",
    [
        "{kind: vq, codes: 16}",
        "{kind: fsq, levels: [5, 3]}",
        "{kind: fsq, codes: 256}",
        "{kind: lfq, bits: 3}",
    ],
)
def test_the_count_of_codes_is_the_quantisers(bottleneck: str) -> None:
    objective = build_objective(latent_autoencoder(f"objective.bottleneck={bottleneck}"))
    assert objective.code_count == objective.modules()["quantiser"].code_count
