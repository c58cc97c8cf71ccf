"""Autoencoders against models whose likelihood is known in closed form."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from ray_gen.core import Batch, Evaluates, Noise, Reconstructs
from ray_gen.distributed import World
from ray_gen.noise import draw, key_of
from ray_gen.pixels import to_range
from ray_gen.training.build import build_objective
from ray_gen.training.loop import held_out_scores
from ray_gen.training.state import State
from tests.helpers import batches, stepped, trained, vae

FP64 = "training.precision=fp64"
LINEAR = [
    "networks.encoder.hidden_sizes=[]",
    "networks.decoder.hidden_sizes=[]",
    "objective.latent_size=2",
    "objective.likelihood=gaussian",
]


def first_batch(experiment, objective, store, epsilon: Tensor | None = None) -> Batch:
    """What the first step of a run sees."""
    ((images, labels),) = batches(experiment, objective, store, 0, 1)
    if epsilon is None:
        key = key_of(0, "autoencoder", "epsilon")
        epsilon = draw(objective.latents["z"], key, torch.tensor([0]), torch.arange(24))[0]
    noise = {"epsilon": epsilon.to(images.dtype)}
    return Batch(images, labels, noise, images.new_zeros(()))


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_elbo_of_a_linear_gaussian_model_is_its_likelihood(store_8, sigma: float) -> None:
    """x = W z + b + σ n with orthogonal columns has a diagonal posterior, so the bound is tight.

    log p(x|z) is quadratic in ε, so its mean over ε is its mean over the corners of {±1}^2.
    """
    experiment = vae(*LINEAR, f"objective.sigma={sigma}", FP64)
    objective = build_objective(experiment)
    networks = State.build(experiment, objective, World()).networks
    encoder, decoder = (networks[name].layers[0] for name in ("encoder", "decoder"))
    columns, _ = torch.linalg.qr(torch.randn(64, 2, dtype=torch.float64))
    W, b = columns * torch.tensor([0.8, 2.5]), torch.rand(64, dtype=torch.float64)
    M = W.T @ W + sigma**2 * torch.eye(2, dtype=torch.float64)
    project = torch.linalg.solve(M, W.T)
    with torch.no_grad():
        decoder.weight.copy_(W)
        decoder.bias.copy_(b)
        encoder.weight.copy_(torch.cat([project, torch.zeros_like(project)]))
        encoder.bias.copy_(torch.cat([-project @ b, (sigma**2 / M.diagonal()).log()]))
        bounds = []
        for corner in itertools.product((-1.0, 1.0), repeat=2):
            epsilon = torch.tensor(corner, dtype=torch.float64).expand(24, 2)
            batch = first_batch(experiment, objective, store_8, epsilon)
            bounds.append(objective.evaluate(networks, batch)["elbo"])
    covariance = W @ W.T + sigma**2 * torch.eye(64, dtype=torch.float64)
    expected = MultivariateNormal(b, covariance).log_prob(batch.images.flatten(1))
    torch.testing.assert_close(torch.stack(bounds).mean(0), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_the_bound_is_likelihood_minus_divergence(store_8, likelihood: str, kind: str) -> None:
    experiment = vae(FP64, f"objective.likelihood={likelihood}", "objective.sigma=0.2", kind=kind)
    objective = build_objective(experiment)
    networks = State.build(experiment, objective, World()).networks
    batch = first_batch(experiment, objective, store_8)
    with torch.no_grad():
        mean, log_variance = networks["encoder"](batch.images, None).chunk(2, dim=1)
        posterior = Normal(mean, (0.5 * log_variance).exp())
        output = networks["decoder"](mean + posterior.scale * batch.noise["epsilon"], None)
        prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
        kl = kl_divergence(posterior, prior).sum(1)
        if likelihood == "bernoulli":
            pixels = Bernoulli(logits=output, validate_args=False)  # grey values
        else:
            pixels = Normal(output, torch.full_like(output, 0.2))
        log_likelihood = Independent(pixels, 3, validate_args=False).log_prob(batch.images)
        scores = objective.evaluate(networks, batch)
    torch.testing.assert_close(scores["kl"], kl)
    torch.testing.assert_close(scores["reconstruction"], -log_likelihood)
    torch.testing.assert_close(scores["elbo"], log_likelihood - kl)
    _, meter = stepped(experiment, objective, store_8, 1)
    metrics = meter.report()
    assert metrics["loss/kl"] == pytest.approx(float(kl.mean()))
    assert metrics["loss/reconstruction"] == pytest.approx(-float(log_likelihood.mean()))


@pytest.mark.parametrize(
    ("seen", "weight"), [(0, 0.0), (250, 1.0), (500, 2.0), (1000, 4.0), (10**7, 4.0)]
)
def test_beta_grows_with_the_images_seen(store_8, seen: int, weight: float) -> None:
    experiment = vae("objective.beta=4", "objective.beta_warmup_images=1000")
    objective = build_objective(experiment)
    networks = State.build(experiment, objective, World()).networks
    batch = first_batch(experiment, objective, store_8)
    (term,) = objective.phases()[0].terms
    kl = objective.evaluate(networks, batch)["kl"]
    numbers = {"beta": torch.tensor(4.0)}
    batch = Batch(batch.images, None, batch.noise, torch.tensor(float(seen)), numbers)
    losses = term.loss(networks, batch)
    torch.testing.assert_close(losses.minimised["kl"], weight * kl)
    torch.testing.assert_close(losses.reported["latent/kl"], kl)


def test_the_warm_up_of_beta_is_in_images_of_the_whole_run(store_8) -> None:
    """Step s has seen 24 s images: its weight is β 24 s / 240, whoever asks."""
    experiment = vae("objective.beta_warmup_images=240")
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    ratios = []
    for _ in range(12):
        _, meter = stepped(experiment, objective, store_8, 1, state)
        metrics = meter.report()
        ratios.append(metrics["loss/kl"] / metrics["latent/kl"])
    assert ratios == pytest.approx([min(1.0, 0.1 * step) for step in range(12)], rel=1e-5)


def test_without_divergence_beta_zero_trains_the_reconstruction_alone(store_8) -> None:
    experiment = vae("objective.beta=0")
    losses = stepped(experiment, build_objective(experiment), store_8, 1)[1].report()
    assert losses["loss/kl"] == 0.0 < losses["latent/kl"]


def test_the_learned_sigma_converges_to_the_root_of_the_mean_squared_error(store_8) -> None:
    """Rybkin et al. 2021, eq. 4, for networks that stand still."""
    experiment = vae("objective.likelihood=gaussian", FP64)
    objective = build_objective(experiment)
    networks = State.build(experiment, objective, World()).networks
    batch = first_batch(experiment, objective, store_8)
    (term,) = objective.phases()[0].terms
    log_sigma = networks["likelihood"].log_sigma
    optimizer = torch.optim.LBFGS([log_sigma], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = term.loss(networks, batch).minimised["reconstruction"].mean()
        loss.backward(inputs=[log_sigma])
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        mean, log_variance = networks["encoder"](batch.images, None).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * batch.noise["epsilon"]
        error = (networks["decoder"](z, None) - batch.images).square().mean().sqrt()
    assert math.exp(float(log_sigma.detach())) == pytest.approx(float(error), rel=1e-5)


def test_the_learned_sigma_is_trained_averaged_and_used_in_evaluation(store_8) -> None:
    state, reports = trained(vae("objective.likelihood=gaussian"), store_8)
    trained_value, average = (
        float(networks["likelihood"].log_sigma.detach()) for networks in (state.networks, state.ema)
    )
    assert trained_value < -0.005
    assert trained_value < average < 0
    assert "held_out/elbo" in reports[-1].metrics


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("conditional", [False, True])
def test_held_out_scores_are_means_over_all_images_of_all_ranks(
    store_8, monkeypatch, size: int, conditional: bool
) -> None:
    """Not over batch means, and each image with its own noise wherever it is evaluated."""
    experiment = vae(FP64, f"objective.conditional={conditional}")
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    split = store_8.held_out
    key, count = key_of(0, "held out", "epsilon"), len(split.images_NHWC)
    epsilon = draw(objective.latents["z"], key, torch.tensor([0]), torch.arange(count))[0].double()
    images = to_range(split.images_NHWC, (0.0, 1.0), torch.float64)
    labels = split.labels if conditional else None
    with torch.no_grad():
        expected = objective.evaluate(
            state.ema, Batch(images, labels, {"epsilon": epsilon}, torch.tensor(math.inf))
        )
    shares: list[Tensor] = []

    class Rank(World):
        def sum_(self, tensor: Tensor) -> None:
            shares.append(tensor.clone())

    for rank in range(size):
        held_out_scores(experiment, objective, state, split, Rank(rank, size))
    means = torch.stack(shares).sum(0) / count
    for name, mean in zip(sorted(expected), means.tolist(), strict=True):
        assert mean == pytest.approx(float(expected[name].mean()), rel=1e-12)
    if size == 1:
        whole = held_out_scores(experiment, objective, state, split, World())
        assert whole == pytest.approx(
            {f"held_out/{name}": float(value.mean()) for name, value in expected.items()}
        )


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_plain_autoencoder_minimises_its_reconstruction_error(store_8, likelihood: str) -> None:
    objective_ = f"objective={{kind: autoencoder, latent_size: 5, likelihood: {likelihood}}}"
    experiment = vae(objective_, FP64)
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    ((images, _),) = batches(experiment, objective, store_8, 0, 1)
    with torch.no_grad():
        output = state.networks["decoder"](state.networks["encoder"](images, None), None)
        if likelihood == "bernoulli":
            p = output.sigmoid()
            error = -(images * p.log() + (1 - images) * (1 - p).log()).sum((1, 2, 3))
        else:
            error = (images - output).square().sum((1, 2, 3))
    metrics = stepped(experiment, objective, store_8, 1, state)[1].report()
    assert metrics == {"loss/reconstruction": pytest.approx(float(error.mean()))}
    assert not objective.has_prior


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["objective.likelihood=gaussian"],
        ["objective.conditional=true"],
        ["objective={kind: autoencoder, latent_size: 5, likelihood: gaussian}"],
    ],
)
def test_reconstructions_are_images_in_the_unit_interval(store_8, overrides: list[str]) -> None:
    experiment = vae(*overrides)
    objective = build_objective(experiment)
    assert isinstance(objective, Evaluates)
    assert isinstance(objective, Reconstructs)
    state = State.build(experiment, objective, World())
    ((images, labels),) = batches(experiment, objective, store_8, 0, 1)
    found = objective.reconstruct(state.ema, images, labels, {})
    assert found.shape == images.shape
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0
    assert torch.equal(found, objective.reconstruct(state.ema, images, labels, {}))


def test_training_raises_the_bound(store_8) -> None:
    """On random pixels there is little to learn but their mean and spread: enough to see."""
    experiment = vae("objective.likelihood=gaussian", "training.images=2400")
    _, reports = trained(experiment, store_8)
    bounds = [report.metrics["held_out/elbo"] for report in reports if report.save]
    assert len(bounds) == 10
    assert bounds[-1] > bounds[0] + 10


BINARIZE = "objective.binarize=true"


def binarised(images: Tensor, *, step: int, seed: int = 0, phase: str = "autoencoder") -> Tensor:
    """Pixels redrawn with the noise of one step."""
    noise, key = Noise(tuple(images.shape[1:]), "uniform"), key_of(seed, phase, "pixels")
    uniform = draw(noise, key, torch.tensor([step]), torch.arange(len(images)))[0]
    return (uniform.double() < images.double()).to(images.dtype)


def test_a_step_trains_on_pixels_that_are_redrawn_for_it(store_8) -> None:
    """Its loss is that of an objective that does not binarise, on binary images."""
    plain, redrawing = (build_objective(vae(FP64, *more)) for more in ([], [BINARIZE]))
    state = State.build(vae(FP64), plain, World())
    experiment = vae(FP64, BINARIZE, "optimizers.autoencoder.learning_rate=1e-12")
    for step, (images, _) in enumerate(batches(experiment, redrawing, store_8, 0, 3)):
        expected = binarised(images, step=step)
        assert set(expected.unique().tolist()) == {0.0, 1.0}
        assert not torch.equal(expected, binarised(images, step=step + 1))
        key = key_of(0, "autoencoder", "epsilon")
        epsilon = draw(plain.latents["z"], key, torch.tensor([step]), torch.arange(24))[0].double()
        batch = Batch(expected, None, {"epsilon": epsilon}, images.new_zeros(()))
        with torch.no_grad():
            losses = plain.phases()[0].terms[0].loss(state.networks, batch).minimised
        state.step = step
        metrics = stepped(experiment, redrawing, store_8, 1, state)[1].report()
        for name, values in losses.items():
            assert metrics[f"loss/{name}"] == pytest.approx(float(values.mean()), rel=1e-6)


def test_pixels_are_one_as_often_as_they_are_bright(store_8) -> None:
    objective = build_objective(vae(BINARIZE))
    images = to_range(store_8.train.images_NHWC[:4], (0.0, 1.0), torch.float64)
    images[0], images[1] = 0.0, 1.0
    steps, key = torch.arange(4000), key_of(0, "autoencoder", "pixels")
    noise = draw(objective.evaluation_noise["pixels"], key, steps, torch.arange(4))
    means = objective.observed(images, noise).mean(0)
    assert torch.equal(means[:2], images[:2])
    scaled = (means - images)[2:] / (images * (1 - images) / 4000)[2:].sqrt().clamp(min=1e-9)
    assert float(scaled.abs().max()) < 4.5
    assert float(scaled.std()) == pytest.approx(1.0, abs=0.2)


def test_held_out_images_are_binarised_once(store_8) -> None:
    experiment = vae(FP64, BINARIZE)
    redrawing = build_objective(experiment)
    plain = build_objective(vae(FP64))
    state = State.build(experiment, redrawing, World())
    split = store_8.held_out
    images = to_range(split.images_NHWC, (0.0, 1.0), torch.float64)
    levels = (255 * binarised(images, step=0, phase="held out")).permute(0, 2, 3, 1)
    once = dataclasses.replace(split, images_NHWC=levels.to(torch.uint8))
    found = [held_out_scores(experiment, redrawing, state, split, World()) for _ in range(2)]
    assert found[0] == found[1]
    expected = held_out_scores(vae(FP64), plain, state, once, World())
    assert found[0] == pytest.approx(expected, rel=1e-12)


def test_reconstructions_and_latents_of_grey_images_draw_nothing(store_8) -> None:
    redrawing, plain = build_objective(vae(BINARIZE)), build_objective(vae())
    state = State.build(vae(BINARIZE), redrawing, World())
    ((images, _),) = batches(vae(BINARIZE), redrawing, store_8, 0, 1)
    ours, theirs = (of.reconstruct(state.ema, images, None, {}) for of in (redrawing, plain))
    assert torch.equal(ours, theirs)
    means, expected = (of.encode(state.ema, images, None)["z"].mean for of in (redrawing, plain))
    assert torch.equal(means, expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("conditional", [False, True])
def test_importance_weights_are_the_three_densities(
    store_8, likelihood: str, conditional: bool
) -> None:
    """Each sample of each image, against torch.distributions."""
    overrides = [FP64, f"objective.likelihood={likelihood}", f"objective.conditional={conditional}"]
    objective = build_objective(vae(*overrides))
    networks = State.build(vae(*overrides), objective, World()).networks
    ((images, labels),) = batches(vae(*overrides), objective, store_8, 0, 1)
    images, labels = images[:4].round(), None if labels is None else labels[:4]
    epsilon = torch.randn(3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        found = objective.log_weights(networks, images, labels, epsilon)
        mean, log_variance = objective.encode(networks, images, labels)["z"]
        posterior = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
        prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
        for sample in range(3):
            z = posterior.base_dist.loc + posterior.base_dist.scale * epsilon[sample]
            output = networks["decoder"](z, labels)
            pixels = Bernoulli(logits=output) if likelihood == "bernoulli" else Normal(output, 1.0)
            expected = Independent(pixels, 3).log_prob(images)
            torch.testing.assert_close(found[0][sample], expected)
            ratio = prior.log_prob(z) - posterior.log_prob(z)
            torch.testing.assert_close(found[1][sample], ratio)
