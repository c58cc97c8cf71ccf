"""Several samples of z: the bound of Burda et al. 2016 and its two gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from ray_gen import losses
from ray_gen.core import Batch
from ray_gen.distributed import World
from ray_gen.experiment import ExperimentError
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import batches, stepped, trained, vae

FP64 = "training.precision=fp64"


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_ratio_of_densities_is_that_of_the_distributions() -> None:
    deviation, mean, log_variance = randn(3, 5, 2), randn(5, 2, seed=1), randn(5, 2, seed=2)
    sigma = (0.5 * log_variance).exp()
    z = mean + sigma * deviation
    expected = (Normal(0.0, 1.0).log_prob(z) - Normal(mean, sigma).log_prob(z)).sum(2)
    torch.testing.assert_close(losses.log_density_ratio(z, deviation, log_variance), expected)


def test_the_bound_is_the_logarithm_of_the_mean_weight() -> None:
    log_weights = randn(7, 4)
    expected = -log_weights.exp().mean(0).log()
    torch.testing.assert_close(losses.importance_weighted_nll(log_weights), expected)
    far = losses.importance_weighted_nll(log_weights - 1e5)  # whose exponentials are 0
    torch.testing.assert_close(far, expected + 1e5)


class Linear:
    """p(z) = N(0, I), p(x|z) = N(w z, ¼) and q(z|x) = N(μ, σ²), each draw with parameters of its
    own, so that each has a gradient of its own."""

    def __init__(self, samples: int, draws: int) -> None:
        def each(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).repeat(draws, 1).requires_grad_()

        self.parameters = {
            "mean": each([0.4, -0.3]),
            "log_variance": each([-0.5, 0.3]),
            "decoder": each([0.9, -1.3]),
        }
        self.epsilon = randn(samples, draws, 2, seed=3)
        self.x = torch.tensor([1.5, 0.7], dtype=torch.float64)

    def log_weights(self, z: Tensor, deviation: Tensor, log_variance: Tensor) -> Tensor:
        likelihood = Normal(self.parameters["decoder"] * z, 0.5).log_prob(self.x).sum(2)
        return likelihood + losses.log_density_ratio(z, deviation, log_variance)

    def found(self, doubly: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses, (draws,), and the gradients of each draw, (draws, 2)."""
        mean, log_variance = self.parameters["mean"], self.parameters["log_variance"]
        z = mean + (0.5 * log_variance).exp() * self.epsilon
        given = z, self.epsilon, log_variance
        if doubly:
            loss = losses.doubly_reparametrised_nll(*given, self.log_weights)
        else:
            loss = losses.importance_weighted_nll(self.log_weights(*given))
        gradients = torch.autograd.grad(loss.sum(), list(self.parameters.values()))
        return loss.detach(), dict(zip(self.parameters, gradients, strict=True))


def test_both_gradients_have_one_mean_and_dreg_has_less_variance() -> None:
    """Over 100,000 draws, within two standard errors."""
    draws = 100_000
    model = Linear(5, draws)
    loss, gradients = model.found(doubly=False)
    same, others = model.found(doubly=True)
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(others["decoder"], gradients["decoder"])
    for name in ("mean", "log_variance"):
        difference = others[name] - gradients[name]
        error = difference.std(0) / math.sqrt(draws)
        assert bool((difference.mean(0).abs() < 2 * error).all()), name
        assert bool((others[name].var(0) < 0.6 * gradients[name].var(0)).all()), name


def test_where_q_is_the_posterior_dreg_has_no_variance_at_all() -> None:
    model = Linear(4, 50)
    w = model.parameters["decoder"].detach()
    precision = 1.0 + 4.0 * w.square()
    with torch.no_grad():
        model.parameters["mean"].copy_(4.0 * w * model.x / precision)
        model.parameters["log_variance"].copy_(-precision.log())
    _, gradients = model.found(doubly=False)
    _, others = model.found(doubly=True)
    assert float(others["mean"].abs().max()) < 1e-12 < float(gradients["mean"].std())


def linear_vae(samples: int, gradient: str = "iwae"):
    """A linear Gaussian VAE of 64 pixels and 2 latents, whose q is not the posterior."""
    return vae(
        "networks.encoder.hidden_sizes=[]",
        "networks.decoder.hidden_sizes=[]",
        "objective.latent_size=2",
        "objective.likelihood=gaussian",
        "objective.sigma=0.3",
        f"objective.samples={samples}",
        f"objective.gradient={gradient if samples > 1 else 'iwae'}",
        FP64,
    )


def batch_of(images: Tensor, samples: int, repeats: int = 1) -> Batch:
    images = torch.cat([images] * repeats)
    epsilon = randn(len(images), samples, 2) if samples > 1 else randn(len(images), 2)
    return Batch(images, None, {"epsilon": epsilon}, images.new_zeros(()))


def test_the_bound_grows_with_the_samples_up_to_the_likelihood(store_8) -> None:
    """With q twice as wide as the posterior."""
    this = linear_vae(1)
    networks = State.build(this, build_objective(this), World()).networks
    encoder, decoder = (networks[name].layers[0] for name in ("encoder", "decoder"))
    ((images, _),) = batches(this, build_objective(this), store_8, 0, 1)
    bounds = []
    with torch.no_grad():
        W, b = decoder.weight, decoder.bias
        posterior = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + W.T @ W / 0.09)
        project = posterior @ W.T / 0.09
        encoder.weight.copy_(torch.cat([project, torch.zeros_like(project)]))
        encoder.bias.copy_(torch.cat([-project @ b, (4 * posterior.diagonal()).log()]))
        for samples in (2, 5, 50):
            objective = build_objective(linear_vae(samples))
            scores = objective.evaluate(networks, batch_of(images[:6], samples, 200))
            bounds.append(float(scores["iwae"].mean()))
        covariance = W @ W.T + 0.09 * torch.eye(64, dtype=torch.float64)
        exact = float(MultivariateNormal(b, covariance).log_prob(images[:6].flatten(1)).mean())
    assert float(scores["elbo"].mean()) < bounds[0] - 0.1 < bounds[1] - 0.2 < bounds[2] - 0.2
    assert bounds[2] < exact < bounds[2] + 0.1


@pytest.mark.parametrize("gradient", ["iwae", "dreg"])
def test_a_step_trains_the_bound_of_its_weights(store_8, gradient: str) -> None:
    """The loss, against `log_weights`; and the gradients of both networks."""
    this = linear_vae(3, gradient)
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    ((images, _),) = batches(this, objective, store_8, 0, 1)
    batch = batch_of(images, 3)
    (term,) = objective.phases()[0].terms
    loss = term.loss(networks, batch).minimised["importance_weighted"]
    found = torch.autograd.grad(loss.sum(), list(networks.parameters()))
    parts = objective.log_weights(networks, images, None, batch.noise["epsilon"].movedim(1, 0))
    expected = -(sum(parts).logsumexp(0) - math.log(3))
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(expected.sum(), list(networks.parameters()))
    names = [name for name, _ in networks.named_parameters()]
    for name, ours, theirs in zip(names, found, gradients, strict=True):
        assert torch.allclose(ours, theirs) == (gradient == "iwae" or "decoder" in name), name


def test_a_run_reports_the_elbo_and_the_bound(store_8) -> None:
    this = vae("objective.samples=4", "checkpoints.best={metric: iwae, mode: max}")
    _, reports = trained(this, store_8)
    metrics = reports[-1].metrics
    assert metrics["held_out/elbo"] < metrics["held_out/iwae"]
    metrics = stepped(this, build_objective(this), store_8, 1)[1].report()
    assert metrics.keys() == {"loss/importance_weighted", "latent/kl"}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["objective.samples=5", "objective.beta=2"], "no KL term: set beta to 1"),
        (["objective.samples=5", "objective.beta_warmup_images=9"], "beta_warmup_images to 0"),
        (["objective.gradient=dreg"], "set samples, for example to 5"),
        (["checkpoints.best={metric: iwae, mode: max}"], "no held-out score 'iwae'"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        vae(*overrides)
