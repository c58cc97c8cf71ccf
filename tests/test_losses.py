"""Losses against closed forms in float64, written here in another way than in the package."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from ray_gen import losses

N = 6
SHAPE = (N, 3, 4, 5)


def randn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def rand(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def log_sigmoid(logits: Tensor) -> Tensor:
    """log(1 / (1 + e^-l)), as written in the papers; accurate for |l| of some ten in float64."""
    return torch.log(1 / (1 + torch.exp(-logits)))


def test_bernoulli_nll_is_minus_the_log_likelihood() -> None:
    logits, images = randn(*SHAPE), (rand(*SHAPE) > 0.5).double()
    expected = -Independent(Bernoulli(logits=logits), 3).log_prob(images)
    torch.testing.assert_close(losses.bernoulli_nll(logits, images), expected)


def test_bernoulli_nll_of_grey_pixels_is_the_cross_entropy() -> None:
    logits, images = randn(*SHAPE), rand(*SHAPE)
    p = 1 / (1 + torch.exp(-logits))
    expected = -(images * p.log() + (1 - images) * (1 - p).log()).sum((1, 2, 3))
    torch.testing.assert_close(losses.bernoulli_nll(logits, images), expected)


def test_bernoulli_nll_is_least_where_the_probability_is_the_pixel() -> None:
    images = rand(*SHAPE)
    logits = torch.logit(images).requires_grad_()
    losses.bernoulli_nll(logits, images).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(images))


@pytest.mark.parametrize("each_pixel", [False, True])
def test_gaussian_nll_is_minus_the_log_density(each_pixel: bool) -> None:
    mean, images = randn(*SHAPE), rand(*SHAPE)
    log_sigma = randn(*SHAPE, seed=2, scale=1.0) if each_pixel else torch.tensor(-0.7).double()
    expected = -Independent(Normal(mean, log_sigma.exp()), 3).log_prob(images)
    torch.testing.assert_close(losses.gaussian_nll(mean, images, log_sigma), expected)


def test_squared_error_is_the_squared_distance() -> None:
    mean, images = randn(*SHAPE), rand(*SHAPE)
    expected = torch.linalg.vector_norm((mean - images).flatten(1), dim=1) ** 2
    torch.testing.assert_close(losses.squared_error(mean, images), expected)


def test_gaussian_kl_is_the_closed_form() -> None:
    mean, log_variance = randn(N, 7), randn(N, 7, seed=3)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(posterior, prior).sum(1)
    torch.testing.assert_close(losses.gaussian_kl(mean, log_variance), expected)
    assert float(losses.gaussian_kl(torch.zeros(1, 7), torch.zeros(1, 7))) == 0.0


def test_gaussian_kl_agrees_with_monte_carlo() -> None:
    mean, log_variance = randn(N, 3, scale=1.0), randn(N, 3, seed=3, scale=0.7)
    count = 40_000
    epsilon = randn(count, N, 3, seed=4, scale=1.0)
    z = mean + (0.5 * log_variance).exp() * epsilon
    log_q = (-0.5 * epsilon**2 - 0.5 * log_variance).sum(2)
    log_p = (-0.5 * z**2).sum(2)
    estimates = log_q - log_p
    standard_error = estimates.std(0) / math.sqrt(count)
    difference = (losses.gaussian_kl(mean, log_variance) - estimates.mean(0)).abs()
    assert bool((difference < 4 * standard_error).all())
    assert float(standard_error.max()) < 0.05


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_discriminator_loss_is_minus_the_log_likelihoods(smoothing: float) -> None:
    real, fake = randn(N, 1), randn(N, 1, seed=5)
    t = 1 - smoothing
    expected = -t * log_sigmoid(real) - (1 - t) * log_sigmoid(-real) - log_sigmoid(-fake)
    torch.testing.assert_close(losses.discriminator_loss(real, fake, smoothing), expected[:, 0])


def test_generator_losses_are_the_papers() -> None:
    fake = randn(N, 1)
    non_saturating, minimax = -log_sigmoid(fake), torch.log(1 - 1 / (1 + torch.exp(-fake)))
    torch.testing.assert_close(losses.generator_loss_non_saturating(fake), non_saturating[:, 0])
    torch.testing.assert_close(losses.generator_loss_minimax(fake), minimax[:, 0])
    assert bool((losses.generator_loss_minimax(fake) <= 0).all())


def test_minimax_is_a_zero_sum_game() -> None:
    """What the generator minimises is what the discriminator maximises, but for a constant."""
    real, fake = randn(N, 1), randn(N, 1, seed=5)
    total = losses.discriminator_loss(real, fake) + losses.generator_loss_minimax(fake)
    torch.testing.assert_close(total, -log_sigmoid(real)[:, 0])


def test_both_generator_losses_push_logits_up() -> None:
    for loss in (
        losses.generator_loss_non_saturating,
        losses.generator_loss_minimax,
        losses.generator_loss_hinge,
    ):
        fake = randn(N, 1).requires_grad_()
        loss(fake).sum().backward()
        assert bool((fake.grad < 0).all())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_optimum_at_equal_distributions_is_half_the_target(smoothing: float) -> None:
    """Salimans et al. 2016, 3.4: α p_data / (p_data + p_G)."""
    logits = torch.linspace(-4, 4, 800_001, dtype=torch.float64)[:, None]
    values = losses.discriminator_loss(logits, logits, smoothing)
    best = float(logits[values.argmin()].sigmoid())
    assert best == pytest.approx((1 - smoothing) / 2, abs=1e-5)


def test_at_equilibrium_the_loss_is_two_log_two() -> None:
    zero = torch.zeros(1, 1)
    assert float(losses.discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))


def test_hinge_losses_are_piecewise_linear() -> None:
    real = torch.tensor([[2.0], [1.0], [0.0], [-3.0]])
    fake = torch.tensor([[-2.0], [-1.0], [0.0], [3.0]])
    found = losses.discriminator_loss_hinge(real, fake)
    assert found.tolist() == [0.0, 0.0, 2.0, 8.0]
    assert losses.generator_loss_hinge(fake).tolist() == [2.0, 1.0, 0.0, -3.0]


def quadratic(images: Tensor, matrix: Tensor, vector: Tensor) -> Tensor:
    """D(x) = ½ xᵀ A x + b x, whose gradient is A x + b for a symmetric A."""
    flat = images.flatten(1)
    return (0.5 * flat @ matrix * flat).sum(1, keepdim=True) + (flat @ vector)[:, None]


def test_squared_gradient_norm_of_a_quadratic() -> None:
    matrix, vector = randn(12, 12), randn(12, seed=6)
    matrix = matrix + matrix.T
    images = rand(N, 3, 2, 2).requires_grad_()
    found = losses.squared_gradient_norm(quadratic(images, matrix, vector), images)
    expected = (images.flatten(1) @ matrix + vector).square().sum(1)
    torch.testing.assert_close(found, expected)


def test_gradient_norm_penalty_of_a_quadratic_and_where_the_gradient_is_zero() -> None:
    matrix, vector = randn(12, 12), torch.zeros(12, dtype=torch.float64)
    matrix = (matrix + matrix.T).requires_grad_()
    images = rand(N, 3, 2, 2)
    images[0] = 0.0
    images.requires_grad_()
    found = losses.gradient_norm_penalty(quadratic(images, matrix, vector), images)
    slopes = (images.flatten(1) @ matrix).detach()
    assert not slopes[0].any()
    torch.testing.assert_close(found, (slopes.square().sum(1).sqrt() - 1).square())
    (of_weights,) = torch.autograd.grad(found.sum(), matrix)
    assert of_weights.isfinite().all()


def test_losses_on_logits_are_their_equations() -> None:
    real, fake = randn(N, 1, scale=2.0), randn(N, 1, scale=2.0, seed=9)
    x, g = real[:, 0].numpy(), fake[:, 0].numpy()
    for found, expected in [
        (losses.discriminator_loss_least_squares(real, fake), ((x - 1) ** 2 + g**2) / 2),
        (losses.generator_loss_least_squares(fake), (g - 1) ** 2 / 2),
        (losses.discriminator_loss_wasserstein(real, fake), g - x),
        (losses.generator_loss_wasserstein(fake), -g),
        (
            losses.lecam_penalty(real, fake, torch.tensor(0.5), torch.tensor(-0.75)),
            np.maximum(x + 0.75, 0) ** 2 + np.maximum(0.5 - g, 0) ** 2,
        ),
        (losses.relativistic_loss(real, fake), -np.log(1 / (1 + np.exp(-(x - g))))),
    ]:
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


SEVERAL = {"of-places": (N, 2, 5, 5), "in-a-row": (N, 50)}


@pytest.mark.parametrize("shape", SEVERAL.values(), ids=SEVERAL)
def test_a_loss_is_the_mean_over_the_logits_of_an_image(shape: tuple[int, ...]) -> None:
    real, fake = randn(*shape), randn(*shape, seed=5)
    anchors = torch.tensor(0.5), torch.tensor(-0.75)
    for loss, logits in [
        (lambda x, g: losses.discriminator_loss(x, g, 0.1), (real, fake)),
        (losses.generator_loss_non_saturating, (fake,)),
        (losses.generator_loss_minimax, (fake,)),
        (losses.discriminator_loss_hinge, (real, fake)),
        (losses.generator_loss_hinge, (fake,)),
        (losses.discriminator_loss_least_squares, (real, fake)),
        (losses.generator_loss_least_squares, (fake,)),
        (losses.discriminator_loss_wasserstein, (real, fake)),
        (losses.generator_loss_wasserstein, (fake,)),
        (losses.relativistic_loss, (real, fake)),
        (lambda x, g: losses.lecam_penalty(x, g, *anchors), (real, fake)),
    ]:
        each = [loss(*(x.flatten(1)[:, k : k + 1] for x in logits)) for k in range(50)]
        torch.testing.assert_close(loss(*logits), torch.stack(each).mean(0))


def test_penalties_on_gradients_are_of_the_mean_logit() -> None:
    """D's k-th logit is v_k x, so the gradient of the mean is the mean of all v_k."""
    vectors, images = randn(50, 12, scale=0.5), rand(N, 3, 2, 2).requires_grad_()
    logits = (images.flatten(1) @ vectors.T).view(N, 2, 5, 5)
    norm = vectors.mean(0).square().sum().sqrt()
    squared = losses.squared_gradient_norm(logits, images)
    torch.testing.assert_close(squared, norm.square().expand(N))
    penalty = losses.gradient_norm_penalty(logits, images)
    torch.testing.assert_close(penalty, (norm - 1).square().expand(N))


def test_squared_gradient_norm_is_differentiable_in_the_weights() -> None:
    matrix, vector = randn(12, 12, scale=0.3), randn(12, seed=6)
    matrix = (matrix + matrix.T).requires_grad_()
    images = rand(N, 3, 2, 2)

    def penalty(weight: Tensor) -> Tensor:
        leaf = images.clone().requires_grad_()
        logits = quadratic(leaf, 0.5 * (weight + weight.T), vector)
        return losses.squared_gradient_norm(logits, leaf)

    assert torch.autograd.gradcheck(penalty, (matrix,))


def test_squared_gradient_norm_of_a_network_agrees_with_differences() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Softplus(), nn.Linear(6, 1)).double()
    images = rand(2, 2, 2, 2).requires_grad_()
    found = losses.squared_gradient_norm(network(images), images)
    with torch.no_grad():
        slopes = torch.zeros(2, 8, dtype=torch.float64)
        for pixel in range(8):
            nudge = torch.zeros(8, dtype=torch.float64)
            nudge[pixel] = 1e-5
            nudge = nudge.view(1, 2, 2, 2)
            slopes[:, pixel] = (network(images + nudge) - network(images - nudge))[:, 0] / 2e-5
    torch.testing.assert_close(found, slopes.square().sum(1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_logits_give_finite_losses_and_gradients(size: float) -> None:
    logits = torch.tensor([[size], [-size]], requires_grad=True)
    images = torch.tensor([[1.0], [0.0]])
    values = [
        losses.bernoulli_nll(logits, images),
        losses.bernoulli_nll(logits, 1 - images),
        losses.discriminator_loss(logits, logits, 0.1),
        losses.discriminator_loss_hinge(logits, logits),
        losses.generator_loss_non_saturating(logits),
        losses.generator_loss_minimax(logits),
        losses.generator_loss_hinge(logits),
        losses.relativistic_loss(logits, -logits),
    ]
    for value in values:
        assert value.shape == (2,)
        assert bool(value.isfinite().all())
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), logits)
    assert bool(gradient.isfinite().all())
    assert float(losses.bernoulli_nll(logits, images).detach().max()) < 1e-40


@pytest.mark.parametrize("count", [1, 5])
def test_losses_are_values_of_each_image(count: int) -> None:
    """No image's loss depends on another's, so nothing is averaged over a batch."""
    logits, images = randn(count, 1, 2, 2), rand(count, 1, 2, 2)
    scores, others = randn(count, 1), randn(count, 1, seed=7)

    def values(n: int) -> list[Tensor]:
        return [
            losses.bernoulli_nll(logits[:n], images[:n]),
            losses.gaussian_nll(logits[:n], images[:n], torch.tensor(0.3)),
            losses.squared_error(logits[:n], images[:n]),
            losses.gaussian_kl(logits[:n].flatten(1), images[:n].flatten(1)),
            losses.discriminator_loss(scores[:n], others[:n], 0.1),
            losses.discriminator_loss_hinge(scores[:n], others[:n]),
            losses.generator_loss_non_saturating(scores[:n]),
            losses.generator_loss_minimax(scores[:n]),
            losses.generator_loss_hinge(scores[:n]),
        ]

    for whole, first in zip(values(count), values(1), strict=True):
        assert whole.shape == (count,)
        torch.testing.assert_close(whole[:1], first)


def levels(count: int) -> Tensor:
    """All levels of a channel in [-1, 1], (count, 1, 1, 1)."""
    return torch.linspace(-1, 1, count, dtype=torch.float64).view(-1, 1, 1, 1)


def finite_gradients(loss: Tensor, *inputs: Tensor) -> bool:
    gradients = torch.autograd.grad(loss.sum(), inputs)
    return all(bool(x.isfinite().all()) for x in (loss, *gradients))


EXTREME = [0.0, 1e-8, -1e-3, 0.0999, 0.1, -0.1001, 1.0, -30.0, 90.0, -90.0, 1e4, -1e4]


def test_a_continuous_bernoulli_is_that_of_torch() -> None:
    images = rand(len(EXTREME), 1, 1, 1)
    images[:2, 0, 0, 0] = torch.tensor([0.0, 1.0])
    logits = torch.tensor(EXTREME, dtype=torch.float64).view(-1, 1, 1, 1)
    # torch's own is exact where its series does not reach.
    theirs = torch.distributions.ContinuousBernoulli(logits=logits, lims=(0.499999, 0.500001))
    nll, mean = -theirs.log_prob(images).flatten(), theirs.mean.flatten()
    ours = losses.continuous_bernoulli_nll(logits, images)
    usual = logits.flatten().abs() < 30  # its probabilities are clamped
    torch.testing.assert_close(ours[usual], nll[usual], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        losses.continuous_bernoulli_mean(logits).flatten()[usual], mean[usual], rtol=1e-7, atol=1e-8
    )


def test_a_continuous_bernoulli_integrates_to_one_and_has_its_mean() -> None:
    logits = torch.tensor(EXTREME[:9], dtype=torch.float64).view(-1, 1, 1, 1)
    edges = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    x = ((edges[1:] + edges[:-1]) / 2).view(1, 1, 1, -1)
    density = torch.stack(
        [
            (
                -losses.continuous_bernoulli_nll(logit.expand(20_000, 1, 1, 1), x.view(-1, 1, 1, 1))
            ).exp()
            for logit in logits
        ]
    )
    ones, means = density.mean(1), (density * x.flatten()).mean(1)
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=1e-5, atol=0)
    found = losses.continuous_bernoulli_mean(logits).flatten()
    torch.testing.assert_close(found, means, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixel", [0.0, 0.5, 1.0])
def test_a_continuous_bernoulli_is_finite_everywhere(dtype: torch.dtype, pixel: float) -> None:
    logits = torch.tensor(EXTREME, dtype=dtype).view(-1, 1, 1, 1).requires_grad_()
    images = torch.full_like(logits, pixel)
    assert finite_gradients(losses.continuous_bernoulli_nll(logits, images), logits)
    assert finite_gradients(losses.continuous_bernoulli_mean(logits), logits)
    mean = losses.continuous_bernoulli_mean(logits)
    assert bool(((mean >= 0) & (mean <= 1)).all())
    nll = losses.continuous_bernoulli_nll(logits, images)
    (slope,) = torch.autograd.grad(nll.sum(), logits)
    torch.testing.assert_close(slope, (mean - images).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [256, 65_536])
@pytest.mark.parametrize("mean", [0.0, -1.2, 0.3, 4.0])
@pytest.mark.parametrize("log_scale", [-20.0, -5.0, -1.0, 3.0])
def test_a_discretised_logistic_gives_the_levels_probabilities(
    count: int, mean: float, log_scale: float
) -> None:
    x, h = levels(count), 1 / (count - 1)
    given = torch.tensor(mean).double(), torch.tensor(log_scale).double()
    found = losses.discretised_logistic_log_probability(*given, x, count)
    assert float(found.logsumexp(0)) == pytest.approx(0.0, abs=1e-9)
    if log_scale > -20:  # above the floor
        scale = math.exp(log_scale)
        below, above = (torch.sigmoid((x + d - mean) / scale) for d in (-h, h))
        below[0], above[-1] = 0.0, 1.0
        expected = above - below
        torch.testing.assert_close(found.exp(), expected, rtol=1e-5, atol=1e-12)
        clipped = losses.clipped_logistic_mean(*given, count)
        assert float(clipped) == pytest.approx(float((expected * x).sum()), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_discretised_logistic_is_finite_everywhere(dtype: torch.dtype) -> None:
    numbers = torch.tensor([-1e6, -90.0, -7.0, -1.0, 0.0, 0.5, 1.0, 9.0, 1e6], dtype=dtype)
    x = torch.tensor([-1.0, 1.0, 1 / 255, -253 / 255], dtype=dtype)
    mean, log_scale, images = (
        part.reshape(-1, 1, 1, 1) for part in torch.meshgrid(numbers, numbers, x, indexing="ij")
    )
    mean, log_scale = (part.clone().requires_grad_() for part in (mean, log_scale))
    nll = losses.discretised_logistic_nll(mean, log_scale, images, 256)
    assert finite_gradients(nll, mean, log_scale)
    assert float(nll.detach().min()) >= 0.0
    found = losses.clipped_logistic_mean(mean, log_scale, 256)
    assert finite_gradients(found, mean, log_scale)
    assert float(found.detach().abs().max()) <= 1.0


def mixture(channels: int, count: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    shape = (count, 10, channels, 1, 1)
    coefficients = randn(count, 10, 3, 1, 1, seed=4) if channels == 3 else None
    return randn(count, 10, 1, 1), randn(*shape, seed=2), randn(*shape, seed=3), coefficients


def test_a_mixture_gives_all_colours_probabilities_that_sum_to_one() -> None:
    """Of 16 levels: all 4,096 colours; of 256 grey levels."""
    x = levels(16).flatten()
    colours = torch.cartesian_prod(x, x, x).view(-1, 3, 1, 1)
    parts = [part.expand(4096, *part.shape[1:]) for part in mixture(3)]
    nll = losses.logistic_mixture_nll(*parts, colours, 16)
    assert float((-nll).logsumexp(0)) == pytest.approx(0.0, abs=1e-9)
    logits, means, log_scales, _ = mixture(1)
    grey = [part.expand(256, *part.shape[1:]) for part in (logits, means, log_scales)]
    nll = losses.logistic_mixture_nll(*grey, None, levels(256), 256)
    assert float((-nll).logsumexp(0)) == pytest.approx(0.0, abs=1e-9)


def test_blue_of_a_mixture_is_a_distribution_of_256_levels() -> None:
    """Σ over blue is the probability of red and green."""
    logits, means, log_scales, coefficients = mixture(3)
    assert coefficients is not None
    x, red, green = levels(256).flatten(), 0.2, levels(256).flatten()[40]
    colours = torch.stack([torch.full_like(x, red), torch.full_like(x, float(green)), x], dim=1)
    parts = [
        part.expand(256, *part.shape[1:]) for part in (logits, means, log_scales, coefficients)
    ]
    of_blue = (-losses.logistic_mixture_nll(*parts, colours[:, :, None, None], 256)).logsumexp(0)
    shift = coefficients.tanh()[:, :, 0] * red
    pair = torch.tensor([red, float(green)], dtype=torch.float64).view(1, 2, 1, 1)
    two = torch.stack([means[:, :, 0], means[:, :, 1] + shift], dim=2)
    direct = losses.logistic_mixture_nll(logits, two, log_scales[:, :, :2], None, pair, 256)
    assert float(of_blue) == pytest.approx(-float(direct), abs=1e-9)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_mixture_is_the_sum_over_its_components(channels: int) -> None:
    """In the words of the paper, one pixel and one component after the other."""
    logits, means, log_scales, coefficients = mixture(channels, count=5)
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (5, channels, 1, 1), generator=generator).double() / 127.5 - 1
    found = losses.logistic_mixture_nll(logits, means, log_scales, coefficients, images, 256)
    for n in range(5):
        weights = torch.softmax(logits[n, :, 0, 0], 0)
        x = images[n, :, 0, 0]
        total = 0.0
        for k in range(10):
            mean = means[n, k, :, 0, 0].clone()
            if coefficients is not None:
                c = torch.tanh(coefficients[n, k, :, 0, 0])
                mean[1] += c[0] * x[0]
                mean[2] += c[1] * x[0] + c[2] * x[1]
            scale = log_scales[n, k, :, 0, 0].clamp(min=-7).exp()
            below, above = (torch.sigmoid((x + d - mean) / scale) for d in (-1 / 255, 1 / 255))
            below, above = below.where(x > -0.999, 0.0), above.where(x < 0.999, 1.0)
            total += float(weights[k] * (above - below).prod())
        assert float(found[n]) == pytest.approx(-math.log(total), rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_mean_of_a_mixture_is_that_of_its_levels(channels: int) -> None:
    logits, means, log_scales, _ = mixture(channels)
    found = losses.logistic_mixture_mean(logits, means, log_scales, None, 256).flatten()
    x = levels(256)
    for c in range(channels):
        parts = logits, means[:, :, c : c + 1], log_scales[:, :, c : c + 1]
        parts = [part.expand(256, *part.shape[1:]) for part in parts]
        p = (-losses.logistic_mixture_nll(*parts, None, x, 256)).exp()
        assert float(found[c]) == pytest.approx(float((p * x.flatten()).sum()), abs=1e-4)
    if channels == 3:
        nothing = torch.zeros(1, 10, 3, 1, 1, dtype=torch.float64)
        coupled = losses.logistic_mixture_mean(logits, means, log_scales, nothing, 256)
        torch.testing.assert_close(coupled.flatten(), found)
