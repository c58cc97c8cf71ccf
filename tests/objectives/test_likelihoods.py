"""What a decoder's output says about pixels: likelihoods in training, samples and scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_gen import losses
from ray_gen.core import Batch, Networks, Objective, Signature
from ray_gen.data import Split, Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.likelihood.measure import likelihood_scores
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.objectives.likelihoods import likelihood_of
from ray_gen.objectives.vae import Vae
from ray_gen.training.build import build_objective, import_target
from ray_gen.training.state import State
from tests.helpers import CLASSES, batches, stepped, trained, vae

FP64 = "training.precision=fp64"
KINDS = ["continuous_bernoulli", "logistic", "logistic_mixture"]
OPTIMAL = ("objective.likelihood=gaussian", "objective.sigma=optimal")


def of_channels(channels: int, *overrides: str, kind: str = "mlp") -> Experiment:
    this = vae(f"data.channels={channels}", *overrides, kind=kind)
    return this.resolved((channels, 8, 8), CLASSES)


def smooth_store(channels: int) -> Store:
    """Images of one brightness each, and a little noise: easy to learn."""
    generator = torch.Generator().manual_seed(2)

    def split(size: int) -> Split:
        base = torch.rand(size, 1, 1, 1, generator=generator) * 200 + 20
        noise = torch.randn(size, 8, 8, channels, generator=generator) * 8
        return Split((base + noise).clamp(0, 255).to(torch.uint8), torch.zeros(size).long())

    return Store(split(96), split(24), CLASSES, skipped=0, path=Path(), label_count=10)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("likelihood", KINDS)
def test_training_raises_the_bound(likelihood: str, channels: int) -> None:
    this = of_channels(channels, f"objective.likelihood={likelihood}", "training.images=1920")
    store = smooth_store(channels)
    state, reports = trained(this, store)
    bounds = [r.metrics["held_out/elbo"] for r in reports if "held_out/elbo" in r.metrics]
    assert bounds[-1] > bounds[0] + 0.5
    objective = build_objective(this)
    assert isinstance(objective, Vae)
    ((images, _),) = batches(this, objective, store, 0, 1)
    again = objective.reconstruct(state.ema, images, None, {})
    assert again.shape == images.shape
    assert float((again - images).abs().mean()) < 0.25
    latents = {"z": torch.randn(3, 5)}
    whole = objective.unclamped(state.ema, latents, None, {})
    assert torch.equal(whole, objective.sample(state.ema, latents, None, {}))


@pytest.mark.parametrize("likelihood", KINDS)
def test_a_plain_autoencoder_minimises_the_same(store_8, likelihood: str) -> None:
    name = f"{{kind: autoencoder, latent_size: 5, likelihood: {likelihood}}}"
    this = vae(f"objective={name}", FP64)
    objective = build_objective(this)
    state = State.build(this, objective, World())
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    with torch.no_grad():
        output = state.networks["decoder"](state.networks["encoder"](images, None), None)
        expected = likelihood_of(likelihood, None, 1, 256).nll(state.networks, output, images)
    found = stepped(this, objective, store_8, 1, state)[1].report()["loss/reconstruction"]
    assert found == pytest.approx(float(expected.mean()))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("likelihood", ["logistic", "logistic_mixture"])
def test_the_decoder_s_output_is_taken_apart_as_it_was_put_together(
    likelihood: str, channels: int
) -> None:
    """A narrow distribution whose mean is the image: the image is the mean, and likely."""
    this = likelihood_of(likelihood, None, channels, 256)
    images = torch.rand(2, channels, 3, 3, dtype=torch.float64).mul(255).round() / 255
    centred = 2 * images - 1
    parts = {"means": centred, "log_scales": torch.full_like(centred, -6.0)}
    if likelihood == "logistic_mixture":
        logit = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
        parts = {"logits": logit, **parts}
        if channels == 3:
            parts["coefficients"] = torch.zeros(2, 3, 3, 3, dtype=torch.float64)
        one = torch.cat(list(parts.values()), dim=1)
        output = torch.cat([one] * 10, dim=1)
    else:
        output = torch.cat(list(parts.values()), dim=1)
    assert output.shape[1] == this.channels
    torch.testing.assert_close(this.mean(output), images, rtol=0, atol=4e-3)
    nothing: Any = None
    per_value = this.nll(nothing, output, images) / images[0].numel()
    assert float(per_value.max()) < 0.5 < math.log(256)


@pytest.mark.parametrize(
    "kind", ["mlp", "conv", "dcgan", "resnet", "stylegan2", "r3gan", "fastgan"]
)
def test_every_network_can_give_the_numbers_of_a_mixture(kind: str) -> None:
    """100 for each pixel of RGB."""
    side = 64 if kind == "fastgan" else 32
    small = {
        "mlp": "hidden_sizes: [4]",
        "stylegan2": "channel_base: 32, channel_max: 4, style_size: 5, mapping_layers: 1",
    }
    given = f"{{kind: {kind}, {small.get(kind, 'width: 2')}}}"
    settings = vae(f"networks.decoder={given}").networks["decoder"]
    signature = Signature((5,), (100, side, side))
    target = import_target(settings.target_for(signature.form), "networks.decoder")
    network = target(signature, **settings.arguments())
    noise = {name: torch.randn(2, *n.shape) for name, n in getattr(network, "noise", {}).items()}
    out = network(torch.randn(2, 5), **({"noise": noise} if noise else {}))
    assert out.shape == (2, 100, side, side)


def loss_of(networks: Networks, objective: Objective, images: Tensor, epsilon: Tensor) -> Tensor:
    (term,) = objective.phases()[0].terms
    batch = Batch(images, None, {"epsilon": epsilon}, images.new_zeros(()))
    return term.loss(networks, batch).minimised["reconstruction"]


def test_the_optimal_sigma_is_the_error_of_the_update_before(store_8) -> None:
    """And with it the loss is ½ D (1 + log 2π MSE), the least over all σ."""
    this = vae(*OPTIMAL, FP64, "optimizers.autoencoder.learning_rate=1e-12")
    objective = build_objective(this)
    state = State.build(this, objective, World())
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    epsilon = torch.randn(24, 5, dtype=torch.float64)
    errors: list[float] = []
    real = losses.gaussian_nll

    def keeping(mean: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
        errors.append(float((mean - images).detach().square().mean()))
        return real(mean, images, log_sigma)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "gaussian_nll", keeping)
        stepped(this, objective, store_8, 1, state)
    variance = state.networks["likelihood"].variance
    assert float(variance) == pytest.approx(errors[0], rel=1e-9)

    def loss(value: float) -> float:
        variance.fill_(value)
        return float(loss_of(state.networks, objective, images, epsilon).detach().mean())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "gaussian_nll", keeping)
        loss(1.0)
    best = errors[-1]
    assert loss(best) == pytest.approx(32 * (1 + math.log(2 * math.pi * best)), rel=1e-9)
    assert loss(best) < min(loss(0.9 * best), loss(1.1 * best))
    ours = torch.autograd.grad(
        loss_of(state.networks, objective, images, epsilon).sum(),
        [*state.networks["decoder"].parameters()],
    )
    assert all(bool(gradient.isfinite().all()) for gradient in ours)


def test_an_error_of_nothing_has_a_likelihood(store_8) -> None:
    this = vae(*OPTIMAL)
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    networks["likelihood"].variance.zero_()
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    loss = loss_of(networks, objective, images, torch.randn(24, 5))
    assert bool(loss.isfinite().all())


def test_the_optimal_sigma_is_averaged_saved_and_evaluated_with(store_8, tmp_path: Path) -> None:
    this = vae(*OPTIMAL)
    state, reports = trained(this, store_8)
    ours, average = (n["likelihood"].variance for n in (state.networks, state.ema))
    assert float(ours) < 0.3  # 1 before the first update
    assert float(average) < 1.0
    assert math.isfinite(reports[-1].metrics["held_out/elbo"])
    state.save(tmp_path, this)
    again = State.build(this, build_objective(this), World())
    again.load(tmp_path)
    assert torch.equal(again.networks["likelihood"].variance, ours)


@pytest.mark.parametrize(
    ("likelihood", "noisy"),
    [("continuous_bernoulli", True), ("logistic", False), ("logistic_mixture", False)],
)
def test_bits_are_of_levels_or_of_values_with_noise(store_8, likelihood: str, noisy: bool) -> None:
    this = vae(f"objective.likelihood={likelihood}", FP64)
    objective: Any = build_objective(this)
    state = State.build(this, objective, World())
    found = {
        score.name: score
        for score in likelihood_scores(
            objective,
            state.ema,
            store_8.held_out,
            samples=3,
            batch_size=512,
            seed=0,
            world=World(),
            conditional=False,
            dtype=torch.float64,
        )
    }
    bits, nats = found["bits_per_dimension"], found["log_likelihood_bound"]
    assert ("noise" in bits.protocol["pixels"]) == noisy
    assert bits.value == pytest.approx(-nats.value / (64 * math.log(2)) + 8 * noisy, rel=0.02)
    assert noisy or bits.value == pytest.approx(-nats.value / (64 * math.log(2)), rel=1e-12)
    assert 7.0 < bits.value < 12.0  # random levels have 8


@pytest.mark.parametrize(
    ("objective", "channels", "grey", "told"),
    [
        ("vae", 3, 0.52, "set objective.likelihood to gaussian, or to logistic_mixture"),
        ("vae", 1, 0.9, "90% of these values lie between"),
        ("vae", 1, 0.1, None),
        ("autoencoder", 3, 0.5, "set objective.likelihood to gaussian"),
    ],
)
def test_a_bernoulli_of_grey_values_is_told(
    objective: str, channels: int, grey: float, told: str | None
) -> None:
    settings = vae(f"objective={{kind: {objective}}}").objective
    found = list(settings.advice_on_pixels(channels, grey))
    assert [told in sentence for sentence in found] == ([True] if told else [])
    other = vae(f"objective={{kind: {objective}, likelihood: gaussian}}").objective
    assert not list(other.advice_on_pixels(channels, grey))


def test_the_share_of_grey_values_is_that_of_the_images() -> None:
    images = torch.tensor([0, 5, 20, 128, 235, 255], dtype=torch.uint8).view(1, 1, 6, 1)
    split = Split(images.repeat(3, 1, 1, 1), None)
    store = Store(split, split, None, skipped=0, path=Path(), label_count=None)
    assert store.grey_share() == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["objective.binarize=true", "objective.likelihood=logistic"], "but a logistic likelihood"),
        ([*OPTIMAL, "objective.samples=5"], "set sigma to learned, or samples to 1"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        vae(*overrides)


def test_values_without_levels_have_no_probabilities() -> None:
    with pytest.raises((Refused, ValueError), match=r"set objective\.likelihood to gaussian"):
        likelihood_of("logistic", None, 4, None)
