"""Bounds on log p(x) against models with a known likelihood, and against pythae's bound."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ray_gen.core import Networks, Objective
from ray_gen.data import Split
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.likelihood.importance import (
    bernoulli_bits,
    gaussian_bits,
    importance_weighted,
)
from ray_gen.evaluation.likelihood.measure import likelihood_scores
from ray_gen.evaluation.likelihood.reconstruction import mean_squared_error
from ray_gen.evaluation.scores import Score
from ray_gen.noise import Noise, draw, key_of
from ray_gen.perceptual.ssim import structural_similarity
from ray_gen.training.build import build_objective
from ray_gen.training.loop import held_out_scores
from ray_gen.training.state import State
from tests.evaluation.helpers import by_name, by_workers
from tests.helpers import random_store, vae

FP64 = "training.precision=fp64"
BINARIZE = "objective.binarize=true"
SIGMA = 0.5
LINEAR = [
    FP64,
    "networks.encoder.hidden_sizes=[]",
    "networks.decoder.hidden_sizes=[]",
    "objective.latent_size=2",
    "objective.likelihood=gaussian",
    f"objective.sigma={SIGMA}",
]


def scores_of(
    objective: Any, networks: Networks, split: Split, samples: int = 1, **more: Any
) -> dict[str, Score]:
    settings: dict[str, Any] = {
        "batch_size": 512,
        "seed": 0,
        "world": World(),
        "conditional": False,
        "dtype": torch.float64,
        **more,
    }
    return by_name(likelihood_scores(objective, networks, split, samples=samples, **settings))


def built(*overrides: str, scale: float = 2.5) -> tuple[Objective, State]:
    """A small untrained VAE. Its weights are multiplied by `scale`, so that z matters."""
    this = vae(*overrides)
    objective = build_objective(this)
    state = State.build(this, objective, World())
    with torch.no_grad():
        for parameter in state.ema.parameters():
            parameter.mul_(scale)
    return objective, state


class Linear:
    """x = W z + b + σ n, with any Gaussian as q(z|x). Its log p(x) and its posterior are known."""

    def __init__(self, shift: float = 0.0, stretch: float = 1.0) -> None:
        """q(z|x) is the posterior with its means moved by `shift` standard deviations and its
        standard deviations multiplied by `stretch`."""
        generator = torch.Generator().manual_seed(5)
        self.objective = build_objective(vae(*LINEAR))
        self.networks = State.build(vae(*LINEAR), self.objective, World()).ema
        columns, _ = torch.linalg.qr(torch.randn(64, 2, dtype=torch.float64, generator=generator))
        W = columns * torch.tensor([0.8, 2.5])  # orthogonal: the posterior has no covariances
        b = torch.rand(64, dtype=torch.float64, generator=generator)
        M = W.T @ W + SIGMA**2 * torch.eye(2, dtype=torch.float64)
        project, self.deviation = torch.linalg.solve(M, W.T), SIGMA / M.diagonal().sqrt()
        encoder, decoder = (self.networks[name].layers[0] for name in ("encoder", "decoder"))
        decoder.weight.copy_(W)
        decoder.bias.copy_(b)
        encoder.weight.copy_(torch.cat([project, torch.zeros_like(project)]))
        mean = shift * self.deviation - project @ b
        encoder.bias.copy_(torch.cat([mean, 2 * (stretch * self.deviation).log()]))
        covariance = W @ W.T + SIGMA**2 * torch.eye(64, dtype=torch.float64)
        self.marginal = MultivariateNormal(b, covariance)
        exact = Normal(torch.zeros(2, dtype=torch.float64), self.deviation)
        q = Normal(shift * self.deviation, stretch * self.deviation)
        self.gap = float(
            kl_divergence(q, exact).sum()
        )  # from log p(x) to the ELBO, the same for every image

    def log_likelihood(self, images: Tensor) -> Tensor:
        return self.marginal.log_prob(images.flatten(1))

    def scores(self, split: Split, samples: int, **more: Any) -> dict[str, Score]:
        return scores_of(self.objective, self.networks, split, samples, **more)


def unit(split: Split) -> Tensor:
    return split.images_NHWC.permute(0, 3, 1, 2).double() / 255


def observed(objective: Any, split: Split) -> Tensor:
    """The pixels that the likelihood describes: grey, or binarised like held-out images."""
    noise = objective.pixel_noise
    if noise is None:
        return unit(split)
    step, key = torch.zeros(1).long(), key_of(0, "held out", "pixels")
    return objective.observed(unit(split), draw(noise, key, step, torch.arange(len(split)))[0])


@pytest.mark.parametrize("samples", [1, 7])
def test_with_the_exact_posterior_every_bound_equals_the_likelihood(store_8, samples: int) -> None:
    """All weights of an image are the same: p(x, z) / p(z|x) = p(x)."""
    linear = Linear()
    found = linear.scores(store_8.held_out, samples)
    expected = linear.log_likelihood(unit(store_8.held_out))
    for name in ("elbo", "log_likelihood_bound"):
        assert found[name].value == pytest.approx(float(expected.mean()), abs=1e-9)
        deviation = float(expected.std()) / len(expected) ** 0.5
        assert found[name].spread == pytest.approx(deviation, rel=1e-6)
    kl, reconstruction = found["kl"].value, found["reconstruction"].value
    assert found["elbo"].value == pytest.approx(-reconstruction - kl, abs=1e-9)


@pytest.mark.parametrize(("shift", "stretch"), [(0.5, 1.3), (0.8, 1.0), (0.0, 1.5), (0.2, 0.8)])
def test_with_5000_samples_a_wrong_posterior_gives_the_likelihood(
    store_8, shift: float, stretch: float
) -> None:
    """The bound is within 0.01 nats of log p(x). The ELBO is up to 0.6 nats below."""
    linear = Linear(shift, stretch)
    expected = float(linear.log_likelihood(unit(store_8.held_out)).mean())
    found = linear.scores(store_8.held_out, 5000)
    assert found["log_likelihood_bound"].value == pytest.approx(expected, abs=0.01)
    assert linear.gap > 0.05
    assert found["elbo"].value == pytest.approx(expected - linear.gap, abs=0.02)


def test_the_bound_rises_with_the_samples_to_the_likelihood() -> None:
    """It starts at the ELBO, and its error falls like 1 / K: Var(w) / 2K (Burda et al. 2016,
    theorem 1; Nowozin 2018)."""
    split = random_store(8, held_out=2000).held_out
    linear = Linear(0.4, 1.2)
    expected = float(linear.log_likelihood(unit(split)).mean())
    errors = [
        expected - linear.scores(split, samples)["log_likelihood_bound"].value
        for samples in (1, 4, 16, 64)
    ]
    assert errors[0] == pytest.approx(linear.gap, rel=0.1)
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert abs(errors[3]) < errors[2] / 2


def test_one_sample_is_the_elbo_and_more_are_never_below_the_mean_of_fewer(store_8) -> None:
    """Jensen, sample by sample: log 1/60 Σ w >= the mean over 60 / k groups of log 1/k Σ w."""
    objective, state = built(FP64)
    split = store_8.held_out
    found = scores_of(objective, state.ema, split, 1)
    assert found["log_likelihood_bound"].value == found["elbo"].value
    images, numbers = unit(split).round(), torch.arange(len(split))
    steps, key = torch.arange(60), key_of(0, "held out", "epsilon")
    epsilon = draw(objective.latents["z"], key, steps, numbers).double()
    with torch.no_grad():
        weights = sum(objective.log_weights(state.ema, images, None, epsilon))
    means = [
        (weights.unflatten(0, (60 // k, k)).logsumexp(1) - math.log(k)).mean(0)
        for k in (1, 5, 20, 60)
    ]
    for fewer, more in itertools.pairwise(means):
        assert bool((more > fewer + 1e-6).all())
    with torch.no_grad():
        _, _, bound = importance_weighted(
            objective, state.ema, images, None, numbers, samples=60, at_once=7, seed=0
        )
    torch.testing.assert_close(bound, means[-1], rtol=1e-12, atol=0)


def test_weights_of_any_size_are_summed(store_8) -> None:
    """e^-20000 is 0 in float64, but its logarithm is finite."""
    objective, state = built(FP64, "objective.likelihood=gaussian", "objective.sigma=0.01")
    found = scores_of(objective, state.ema, store_8.held_out, 20)
    assert -1e8 < found["log_likelihood_bound"].value < -1e4


@pytest.mark.parametrize("overrides", [[], [BINARIZE], ["objective.likelihood=gaussian"]])
def test_with_one_sample_the_scores_are_those_that_training_reports(
    store_8, overrides: list[str]
) -> None:
    """The same images, binarised alike, and the same z. Only the divergence comes from samples."""
    objective, state = built(FP64, *overrides)
    reported = held_out_scores(vae(FP64, *overrides), objective, state, store_8.held_out, World())
    found = scores_of(objective, state.ema, store_8.held_out)
    expected = reported["held_out/reconstruction"]
    assert found["reconstruction"].value == pytest.approx(expected, rel=1e-12)
    many = scores_of(objective, state.ema, store_8.held_out, 3000)
    assert many["kl"].value == pytest.approx(reported["held_out/kl"], rel=0.01)


def test_float32_is_as_good_as_float64(store_8) -> None:
    objective, state = built(BINARIZE)
    found = scores_of(objective, state.ema, store_8.held_out, 300, dtype=torch.float32)
    double = copy.deepcopy(state.ema).double()
    expected = scores_of(objective, double, store_8.held_out, 300)
    for name, score in found.items():
        assert score.value == pytest.approx(expected[name].value, rel=1e-5), name


@pytest.mark.parametrize("overrides", [[BINARIZE], ["objective.likelihood=gaussian"]])
@pytest.mark.parametrize("samples", [1, 40])
def test_the_size_of_a_batch_changes_nothing(store_8, overrides: list[str], samples: int) -> None:
    objective, state = built(FP64, *overrides)
    settings = {"conditional": False, "count": 17}
    expected = scores_of(objective, state.ema, store_8.held_out, samples, **settings)
    for size in (1, 3, 64, 10_000):
        seen: list[int] = []
        hooks = [
            network.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(len(x[0])))
            for network in (state.ema["encoder"], state.ema["decoder"])
        ]
        found = scores_of(
            objective, state.ema, store_8.held_out, samples, batch_size=size, **settings
        )
        for hook in hooks:
            hook.remove()
        assert max(seen) <= size
        for name, score in expected.items():
            assert found[name].value == pytest.approx(score.value, rel=1e-12), name
            assert found[name].protocol == score.protocol


def measured(world: World, overrides: tuple[str, ...], count: int) -> dict[str, list[float]]:
    """The scores that one of several processes finds. All have the same weights and images."""
    torch.manual_seed(0)
    objective, state = built(*overrides)
    before = copy.deepcopy(state.ema.state_dict())
    found = scores_of(
        objective,
        state.ema,
        random_store(8).held_out,
        30,
        world=world,
        dtype=torch.float32,
        conditional="objective.conditional=true" in overrides,
        count=count,
    )
    after = state.ema.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    return {name: [score.value, score.spread or 0.0] for name, score in found.items()}


@pytest.mark.parametrize(("workers", "count"), [(2, 23), (3, 2)])
def test_the_number_of_workers_changes_no_score(tmp_path: Path, workers: int, count: int) -> None:
    """Also if one worker has no image."""
    overrides = (BINARIZE, "objective.conditional=true")
    work = functools.partial(measured, overrides=overrides, count=count)
    alone = work(World())
    for found in by_workers(workers, work, tmp_path):
        assert found.keys() == alone.keys()
        for name, (value, spread) in found.items():
            expected = alone[name]
            tolerance = 1e-6 * abs(expected[0])  # also for the spread, a difference of values
            assert [value, spread] == pytest.approx(expected, abs=tolerance, rel=0), name


def test_memory_does_not_grow_with_the_samples() -> None:
    """5000 images of 64 x 64 are 80 MB, and every operation on them needs 80 MB more."""
    code = """
import resource, torch
from tests.evaluation.test_likelihood import BINARIZE, scores_of
from tests.helpers import random_store, vae
from ray_gen.training.build import build_objective
from ray_gen.distributed import World
from ray_gen.training.state import State
this = vae(BINARIZE, "data.image_size=64").resolved((1, 64, 64), tuple("0123456789"))
objective = build_objective(this)
state = State.build(this, objective, World())
split = random_store(64, 2, 2).held_out
for samples in (50, 5000):
    scores_of(objective, state.ema, split, samples, batch_size=50, dtype=torch.float32)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)
    few, many = map(int, run.stdout.split())
    assert many - few < 20


def test_bits_of_binary_pixels(store_8) -> None:
    """-log2 of the probability, divided by the number of pixels."""
    objective, state = built(FP64, BINARIZE)
    found = scores_of(objective, state.ema, store_8.held_out, 10)
    bits, nats = found["bits_per_dimension"], found["log_likelihood_bound"]
    assert bits.value == pytest.approx(-nats.value / math.log(2) / 64)
    assert bits.spread == pytest.approx(nats.spread / math.log(2) / 64)
    coin = torch.distributions.Bernoulli(torch.tensor(0.5)).log_prob(torch.ones(12)).sum()
    assert bernoulli_bits(float(coin), 12) == pytest.approx(1.0)


def test_grey_values_have_no_bits_under_a_bernoulli(store_8) -> None:
    """Black and white pixels have bits. Binarisation does not change them."""
    grey = scores_of(*built_networks(FP64), store_8.held_out)
    assert "bits_per_dimension" not in grey
    assert "no probability" in grey["log_likelihood_bound"].protocol["pixels"]
    levels = store_8.held_out.images_NHWC.ge(128) * 255
    binary = dataclasses.replace(store_8.held_out, images_NHWC=levels.to(torch.uint8))
    plain, redrawn = (
        scores_of(*built_networks(FP64, *more), binary)["bits_per_dimension"].value
        for more in ([], [BINARIZE])
    )
    assert plain == redrawn


def built_networks(*overrides: str) -> tuple[Objective, Networks]:
    objective, state = built(*overrides)
    return objective, state.ema


def test_bits_under_a_gaussian_come_from_images_with_uniform_noise(store_8) -> None:
    linear = Linear()
    split = store_8.held_out
    key = key_of(0, "held out", "dequantisation")
    noise = draw(Noise((1, 8, 8), "uniform"), key, torch.zeros(1).long(), torch.arange(len(split)))
    images = (split.images_NHWC.permute(0, 3, 1, 2) + noise[0].double()) / 256
    expected = -linear.log_likelihood(images).mean() / (64 * math.log(2)) + 8
    found = linear.scores(split, 3)["bits_per_dimension"]
    assert found.value == pytest.approx(float(expected), abs=1e-9)
    assert "noise" in found.protocol["pixels"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("sigma", [0.3, 0.01, 0.002])
def test_gaussian_bits_are_never_too_few(low: float, high: float, sigma: float) -> None:
    """For one pixel, against the probability of its level: ∫ p over 1/256 of the range."""
    pixel = Normal(torch.tensor(0.3, dtype=torch.float64), sigma)
    edges = torch.linspace(low, high, 257, dtype=torch.float64)
    probability = pixel.cdf(edges).diff()
    for level in (int(probability.argmax()), int(probability.argmax()) + 2):
        if probability[level] < 1e-9:
            continue
        u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        x = (level + u) / 256 * (high - low) + low
        bits = gaussian_bits(float(pixel.log_prob(x).mean()), 1, high - low)
        exact = -math.log2(float(probability[level]))
        assert bits >= exact - 1e-6
        if sigma == 0.3:
            assert bits == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("overrides", [[], [BINARIZE]])
def test_active_units_are_those_whose_means_vary_over_images(store_8, overrides: list[str]) -> None:
    """Four units: the standard deviations of their posterior means are 0, just below 0.1, just
    above 0.1 and 2. The last also has a large mean."""
    linear = ["networks.encoder.hidden_sizes=[]", "objective.latent_size=4"]
    objective, state = built(FP64, *linear, *overrides)
    layer = state.ema["encoder"].layers[0]
    flat = observed(objective, store_8.held_out).flatten(1)
    with torch.no_grad():
        layer.weight[:4].normal_(generator=torch.Generator().manual_seed(2))
        deviations = (flat @ layer.weight[:4].T).std(0, unbiased=False)
        wanted = torch.tensor([0.0, 0.099, 0.101, 2.0], dtype=torch.float64)
        layer.weight[:4] *= (wanted / deviations)[:, None]
        layer.bias[:4] = torch.tensor([3.0, 0.0, 0.0, 1e3], dtype=torch.float64)
    found = scores_of(objective, state.ema, store_8.held_out)["active_units"]
    assert found.value == 2
    assert (found.protocol["units"], found.protocol["threshold"]) == (4, 0.01)


@pytest.mark.parametrize("side", [8, 16])
def test_reconstructions_are_compared_with_the_grey_images(side: int) -> None:
    overrides = [BINARIZE, FP64, f"data.image_size={side}"]
    this = vae(*overrides).resolved((1, side, side), tuple("0123456789"))
    objective = build_objective(this)
    networks = State.build(this, objective, World()).ema
    split = random_store(side).held_out
    found = scores_of(objective, networks, split, batch_size=5)
    images = unit(split)
    with torch.no_grad():
        made = objective.reconstruct(networks, images, None, {})
    error = float(mean_squared_error(made, images).mean())
    assert found["reconstruction_mse"].value == pytest.approx(error, rel=1e-6)
    assert ("reconstruction_ssim" in found) == (side == 16)
    if side == 16:
        similarity = float(structural_similarity(made.double(), images.double()).mean())
        assert found["reconstruction_ssim"].value == pytest.approx(similarity, rel=1e-6)


def test_every_score_has_its_protocol(store_8) -> None:
    objective, networks = built_networks(FP64, BINARIZE)
    description = {"split": "held_out", "weights": "EMA"}
    done: list[tuple[int, int, str]] = []
    found = scores_of(
        objective,
        networks,
        store_8.held_out,
        6,
        seed=3,
        count=5,
        batch_size=12,
        description=description,
        progress=lambda *said: done.append(said),
    )
    for score in found.values():
        protocol = score.protocol
        assert description.items() <= protocol.items()
        assert (protocol["likelihood"], protocol["seed"]) == ("bernoulli", 3)
        assert (protocol["images"], protocol["of"]) == (5, 24)
        sampled = not score.name.startswith(("active", "reconstruction_"))
        assert protocol.get("samples") == (6 if sampled else None)
    assert "binarised" in found["elbo"].protocol["pixels"]
    assert done == [(2, 5, "likelihood"), (4, 5, "likelihood"), (5, 5, "likelihood")]
    other = scores_of(objective, networks, store_8.held_out, 6, seed=4)
    assert other["elbo"].value != found["elbo"].value


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"samples": 0}, r"evaluation\.importance_samples: 0 is not positive; set"),
        ({"batch_size": 0}, r"evaluation\.batch_size: 0 is not positive; set"),
        ({"count": 25}, r"evaluation\.count: 25 images .* 24 are held out; set 1 to 24"),
        ({"split": random_store(8, held_out=0).held_out}, r"data\.held_out_fraction: no images"),
    ],
)
def test_what_cannot_be_measured_is_refused(store_8, more: dict[str, Any], message: str) -> None:
    objective, networks = built_networks()
    settings = {"split": store_8.held_out, **more}
    with pytest.raises(Refused, match=message):
        scores_of(objective, networks, **settings)


def test_the_bound_is_that_of_pythae(store_8) -> None:
    """The same weights, binary images and draws. pythae's get_nll returns +log p."""
    pytest.importorskip("pythae")
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    objective, state = built(BINARIZE)
    layers: dict[str, nn.Module] = {name: net.layers for name, net in state.ema.items()}

    class Encoder(BaseEncoder):
        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_variance = layers["encoder"](x.flatten(1)).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> ModelOutput:
            images = layers["decoder"](z).sigmoid().view(-1, 1, 8, 8)
            return ModelOutput(reconstruction=images)

    config = VAEConfig(input_dim=(1, 8, 8), latent_dim=5, reconstruction_loss="bce")
    theirs = VAE(config, encoder=Encoder(), decoder=Decoder()).eval()
    split, numbers = store_8.held_out, torch.arange(24)
    images = observed(objective, split).float()
    key = key_of(0, "held out", "epsilon")
    draws = draw(
        objective.latents["z"], key, torch.arange(1000), numbers
    )  # (samples, images, numbers)
    chunks = iter(draws.transpose(0, 1).reshape(48, 500, 5))
    theirs._sample_gauss = lambda mean, deviation: (mean + next(chunks) * deviation, None)
    with torch.no_grad():
        expected = theirs.get_nll(images, n_samples=1000, batch_size=500)
    found = scores_of(objective, state.ema, split, 1000, dtype=torch.float32)
    assert found["log_likelihood_bound"].value == pytest.approx(float(expected), rel=1e-6)
    assert next(chunks, None) is None
