"""Losses as pure functions: one equation each, one value per image, (N,), never averaged.

Every loss is minimised. Logits are pre-sigmoid scores of the discriminator, (N, 1), or several of
an image: (N, K) or (N, K, H, W). A loss is then the mean over the logits of an image, and the
gradient at the image is that of their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def bernoulli_nll(logits: Tensor, images: Tensor) -> Tensor:
    """-log p(x|z) of independent Bernoulli pixels: Σ softplus(l) - x l.

    Kingma and Welling 2014, appendix C.1. logits l: (N, C, H, W), real; images x: the same shape,
    in [0, 1]. Returns the sum over pixels, in nats: (N,).
    """
    terms = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return terms.flatten(1).sum(1)


def continuous_bernoulli_nll(logits: Tensor, images: Tensor) -> Tensor:
    """-log p(x|z) of independent values in [0, 1] with the density C(λ) λ^x (1 - λ)^(1 - x), where
    λ = sigmoid(l) and C(λ) = 2 atanh(1 - 2λ) / (1 - 2λ) = l / tanh(l / 2).

    Loaiza-Ganem and Cunningham 2019, "The continuous Bernoulli". logits l: (N, C, H, W), real;
    images x: the same shape, in [0, 1]. Returns the sum over pixels, in nats: (N,).
    """
    near = logits.abs() < _NEAR
    far = torch.where(near, 1.0, logits)  # a value without an infinite gradient
    square = (0.5 * logits).square()
    # log(x coth x) with x = l / 2. The next term is below 1e-12.
    series = square * (1 / 3 - square * (7 / 90 - square * 62 / 2835))
    constant = torch.where(
        near, math.log(2) + series, far.abs().log() - (0.5 * far).tanh().abs().log()
    )
    terms = F.binary_cross_entropy_with_logits(logits, images, reduction="none") - constant
    return terms.flatten(1).sum(1)


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """E[x] = λ / (2λ - 1) + 1 / (2 atanh(1 - 2λ)) = 1 / (1 - e^-l) - 1 / l with λ = sigmoid(l), in
    [0, 1].

    Loaiza-Ganem and Cunningham 2019. logits l: any shape. Returns the same shape.
    """
    near = logits.abs() < _NEAR
    far = torch.where(near, 1.0, logits)
    square = logits.square()
    series = logits * (1 / 12 - square * (1 / 720 - square / 30240))
    return 0.5 + torch.where(near, series, 0.5 / (0.5 * far).tanh() - 1.0 / far)


_NEAR = 0.1
"""Logits nearer to 0 take the series of a continuous Bernoulli."""


def _scaled(log_scale: Tensor, levels: int) -> tuple[Tensor, float]:
    """The log-scale, not below its floor, and half of the distance of two levels in [-1, 1].

    The floor is -7 for 256 levels (Child 2021, VDVAE, in the author's code): s is a quarter of half
    a level. For more levels s may be as many times smaller.
    """
    half = 1.0 / (levels - 1)
    return log_scale.clamp(min=-7.0 - math.log((levels - 1) / 255)), half


def discretised_logistic_log_probability(
    mean: Tensor, log_scale: Tensor, images: Tensor, levels: int
) -> Tensor:
    """log P(x) = log(σ(a) - σ(b)), a = (x + h - μ) / s, b = (x - h - μ) / s, with the logistic
    sigmoid σ and half the distance of two levels h = 1 / (L - 1). At x = -1 b is -∞, at x = 1 a is
    ∞, so the probabilities of all levels sum to 1.

    Salimans et al. 2017, PixelCNN++, eq. 2. As σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b - a)), and
    a - b = 2h / s does not depend on x, it has no cancellation: value and gradient are finite
    everywhere.

    mean μ, log_scale log s, not below a floor: any shape. images x: levels in [-1, 1], of a shape
    that broadcasts. levels L. Returns that shape, in nats.
    """
    log_scale, half = _scaled(log_scale, levels)
    inverse = (-log_scale).exp()
    above = F.logsigmoid((images + half - mean) * inverse)
    below = F.logsigmoid((mean - images + half) * inverse)
    width = 2 * half * inverse
    # log(1 - e^-w). The next term of the series is below 1e-11.
    narrow = width < 1e-2
    series = math.log(2 * half) - log_scale - width / 2 + width.square() / 24
    between = torch.where(narrow, series, (-torch.expm1(-width.clamp(min=1e-2))).log())
    inside = above + below + between
    return torch.where(images < half - 1.0, above, torch.where(images > 1.0 - half, below, inside))


def discretised_logistic_nll(
    mean: Tensor, log_scale: Tensor, images: Tensor, levels: int
) -> Tensor:
    """-log P(x|z) of independent values, see `discretised_logistic_log_probability`.

    mean, log_scale, images: (N, C, H, W). Returns the sum over values, in nats: (N,).
    """
    found = discretised_logistic_log_probability(mean, log_scale, images, levels)
    return -found.flatten(1).sum(1)


def _coupled(means: Tensor, coefficients: Tensor, values: Tensor) -> Tensor:
    """The means of red, green and blue, given the values of red and green.

    means: (N, K, 3, H, W); coefficients: (N, K, 3, H, W), before the tanh; values: (N, K or 1, 3,
    H, W).
    """
    red, green, _ = values.unbind(2)
    green_by_red, blue_by_red, blue_by_green = coefficients.tanh().unbind(2)
    first, second, third = means.unbind(2)
    third = third + blue_by_red * red + blue_by_green * green
    return torch.stack([first, second + green_by_red * red, third], dim=2)


def logistic_mixture_nll(
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor | None,
    images: Tensor,
    levels: int,
) -> Tensor:
    """-log Σ_k π_k Π_c P_k(x_c) of independent pixels: a mixture of K discretised logistic
    distributions, see `discretised_logistic_log_probability`. In RGB the mean of green is
    μ_G + c₀ R, that of blue μ_B + c₁ R + c₂ G, with c = tanh(coefficients).

    Salimans et al. 2017, PixelCNN++, eq. 1 to 3. logits of π: (N, K, H, W); means and log_scales:
    (N, K, C, H, W); coefficients: (N, K, 3, H, W), or None: channels are independent given k;
    images: levels in [-1, 1], (N, C, H, W). Returns the sum over pixels, in nats: (N,).
    """
    values = images[:, None]  # (N, 1, C, H, W)
    if coefficients is not None:
        means = _coupled(means, coefficients, values)
    each = discretised_logistic_log_probability(means, log_scales, values, levels).sum(2)
    return -(each + logits.log_softmax(1)).logsumexp(1).flatten(1).sum(1)


def clipped_logistic_mean(mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """E[min(max(x, -1), 1)] = -1 + s (softplus((μ + 1) / s) - softplus((μ - 1) / s)) of a logistic
    x: the mean of the discretised distribution, but for the rounding to levels.

    mean μ, log_scale log s, not below its floor: any shape. Returns the same shape, in [-1, 1].
    """
    log_scale, _ = _scaled(log_scale, levels)
    scale = log_scale.clamp(max=7.0).exp()  # wider ones have the mean 0, and digits would be lost
    upper, lower = F.softplus((mean + 1.0) / scale), F.softplus((mean - 1.0) / scale)
    return (scale * (upper - lower) - 1.0).clamp(-1.0, 1.0)  # large μ are rounded


def logistic_mixture_mean(
    logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor | None, levels: int
) -> Tensor:
    """Σ_k π_k E_k[x], see `clipped_logistic_mean`. In RGB the means of green and blue are those
    given the means before them: not exact.

    Shapes as of `logistic_mixture_nll`. Returns (N, C, H, W), in [-1, 1].
    """
    found = clipped_logistic_mean(means, log_scales, levels)
    if coefficients is not None:
        for _ in range(2):  # green, then blue
            found = clipped_logistic_mean(_coupled(means, coefficients, found), log_scales, levels)
    return (logits.softmax(1)[:, :, None] * found).sum(1)


def gaussian_nll(mean: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
    """-log N(x; μ, σ²) of independent pixels: Σ (x - μ)² / 2σ² + log σ + ½ log 2π.

    Kingma and Welling 2014, appendix C.2, with one σ (Rybkin et al. 2021, eq. 3). mean μ, images x:
    (N, C, H, W); log_sigma broadcasts to them. Returns the sum over pixels, in nats: (N,).
    """
    scaled = (images - mean) * torch.exp(-log_sigma)
    return (0.5 * scaled.square() + log_sigma + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def squared_error(mean: Tensor, images: Tensor) -> Tensor:
    """Σ (x - μ)² over pixels. mean μ, images x: (N, C, H, W). Returns (N,)."""
    return (images - mean).square().flatten(1).sum(1)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ μ² + σ² - 1 - log σ².

    Kingma and Welling 2014, appendix B. mean μ, log_variance log σ²: (N, ...). Returns the sum over
    all numbers of a latent, in nats: (N,).
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).flatten(1).sum(1)


def log_density_ratio(z: Tensor, deviation: Tensor, log_variance: Tensor) -> Tensor:
    """log p(z) - log q(z|x) = ½ Σ d² + log σ² - z², of p = N(0, I) and q = N(μ, σ²) at z = μ + σ d.

    z, deviation d: (K, N, ...); log_variance log σ²: (N, ...). Returns the sum over all numbers of
    a latent, in nats: (K, N).
    """
    return 0.5 * (deviation.square() + log_variance - z.square()).flatten(2).sum(2)


def importance_weighted_nll(log_weights: Tensor) -> Tensor:
    """-log 1/K Σ_k w_k with weights w_k = p(x, z_k) / q(z_k|x): an upper bound on -log p(x), in
    expectation. Its gradient is -Σ_k w̃_k ∇log w_k, with w̃_k = w_k / Σ w.

    Burda et al. 2016, eq. 8 and 14. log_weights log w_k: (K, N). Returns (N,), in nats.
    """
    return math.log(len(log_weights)) - log_weights.logsumexp(0)


def doubly_reparametrised_nll(
    z: Tensor,
    epsilon: Tensor,
    log_variance: Tensor,
    log_weights: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """-log 1/K Σ_k w_k of each image, (N,), with the gradient DReG (Tucker et al. 2019, "Doubly
    reparameterized gradient estimators for Monte Carlo objectives"):

        decoder:  -Σ_k w̃_k ∇log w_k
        encoder:  -Σ_k w̃_k² (∂log w_k / ∂z_k) ∇z_k,  w̃_k = w_k / Σ w

    In log w_k, the μ and σ of q are constants. Both gradients have the expectation of those of
    `importance_weighted_nll`. The encoder's has less variance; as K grows, its ratio of mean
    to spread grows with √K instead of falling with it. The decoder's is the same.

    z = μ + σ ε and epsilon: (K, N, ...); log_variance log σ²: (N, ...). log_weights: (z, deviation,
    log_variance), as of `log_density_ratio`, to log w_k, (K, N). It must reach the encoder through
    its arguments only. Its backward pass to z runs once more than without DReG.
    """
    drawn = z.detach().requires_grad_()
    fixed = log_variance.detach()
    # ε itself, and not (z - μ) / σ: a small σ would magnify the rounding of z.
    deviation = epsilon + (drawn - drawn.detach()) * (-0.5 * fixed).exp()
    found = log_weights(drawn, deviation, fixed)
    loss = importance_weighted_nll(found)
    gradient = gradient_at(loss, drawn)  # -w̃ ∂log w / ∂z
    share = found.detach().softmax(0).view(*found.shape, *[1] * (z.ndim - 2))
    path = (share * gradient * z).flatten(2).sum((0, 2))
    return loss + (path - path.detach())


def gradient_at(loss: Tensor, inputs: Tensor) -> Tensor:
    """∇ of each image's loss at its own inputs, a constant. loss: (N,), computed from the inputs,
    of any shape with requires_grad; its graph stays. Returns the shape of the inputs."""
    (gradient,) = torch.autograd.grad(loss.sum(), inputs, retain_graph=True)
    return gradient


def mean_of_each(logits: Tensor) -> Tensor:
    """The mean of all numbers of an image: (N, ...) to (N,)."""
    return logits.flatten(1).mean(1)


def _sum_of_means(logits: Tensor) -> Tensor:
    """Σ over images of the mean logit, 0-dimensional. Its gradient at an image is that of the
    image's mean logit."""
    return logits.sum() / (logits.numel() // len(logits))


def discriminator_loss(
    real_logits: Tensor, fake_logits: Tensor, smoothing: float | Tensor = 0.0
) -> Tensor:
    """-t log D(x) - (1 - t) log(1 - D(x)) - log(1 - D(G(z))), with the target t = 1 - smoothing.

    Goodfellow et al. 2014, eq. 1; one-sided smoothing: Salimans et al. 2016, 3.4. The optimum for
    p_data = p_G is D = t / 2. Returns (N,).
    """
    real = F.softplus(-real_logits) + smoothing * real_logits
    return mean_of_each(real + F.softplus(fake_logits))


def generator_loss_non_saturating(fake_logits: Tensor) -> Tensor:
    """-log D(G(z)). Goodfellow et al. 2014, section 3. Returns (N,)."""
    return mean_of_each(F.softplus(-fake_logits))


def generator_loss_minimax(fake_logits: Tensor) -> Tensor:
    """log(1 - D(G(z))). Goodfellow et al. 2014, eq. 1. Returns (N,), at most 0."""
    return mean_of_each(-F.softplus(fake_logits))


def discriminator_loss_hinge(
    real_logits: Tensor,
    fake_logits: Tensor,
    real_margin: float | Tensor = 1.0,
    fake_margin: float | Tensor = 1.0,
) -> Tensor:
    """max(0, m - D(x)) + max(0, m' + D(G(z))) on logits. Lim and Ye 2017, eq. 9; Miyato et al.
    2018, eq. 16.

    margins m, m': 1 in these papers; a tensor broadcasts to the logits. Returns (N,).
    """
    return mean_of_each(F.relu(real_margin - real_logits) + F.relu(fake_margin + fake_logits))


def generator_loss_hinge(fake_logits: Tensor) -> Tensor:
    """-D(G(z)) on logits. Miyato et al. 2018, eq. 17. Returns (N,)."""
    return mean_of_each(-fake_logits)


def discriminator_loss_least_squares(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½ (D(x) - 1)² + ½ D(G(z))² on logits. Mao et al. 2017, eq. 9. Returns (N,)."""
    return mean_of_each(0.5 * ((real_logits - 1.0).square() + fake_logits.square()))


def generator_loss_least_squares(fake_logits: Tensor) -> Tensor:
    """½ (D(G(z)) - 1)² on logits. Mao et al. 2017, eq. 9. Returns (N,)."""
    return mean_of_each(0.5 * (fake_logits - 1.0).square())


def discriminator_loss_wasserstein(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """D(G(z)) - D(x) on logits. Arjovsky et al. 2017, eq. 2. Returns (N,)."""
    return mean_of_each(fake_logits - real_logits)


def generator_loss_wasserstein(fake_logits: Tensor) -> Tensor:
    """-D(G(z)) on logits. Arjovsky et al. 2017, section 3. Returns (N,)."""
    return mean_of_each(-fake_logits)


def relativistic_loss(ahead: Tensor, behind: Tensor) -> Tensor:
    """-log σ(D(a) - D(b)) of pairs of images a, b, where a should get the higher logit: x and G(z)
    for the discriminator, G(z) and x for the generator.

    Jolicoeur-Martineau 2019, section 4.2; Huang et al. 2024, eq. 2. Returns (N,).
    """
    return mean_of_each(F.softplus(behind - ahead))


def classification_loss(class_logits: Tensor, classes: Tensor) -> Tensor:
    """-log P(c|x), with P the softmax over the classes: the loss of an auxiliary classifier (Odena
    et al. 2017, eq. 3, with the other sign).

    class_logits: (N, K); classes c: int64 (N,). Returns (N,), at least 0.
    """
    every = torch.arange(class_logits.shape[1], device=classes.device)
    right = torch.where(classes[:, None] == every, class_logits, 0.0).sum(1)
    return class_logits.logsumexp(1) - right


def lecam_penalty(
    real_logits: Tensor, fake_logits: Tensor, real_anchor: Tensor, fake_anchor: Tensor
) -> Tensor:
    """max(0, D(x) - α_F)² + max(0, α_R - D(G(z)))²: keeps the logits of real images near those that
    generated ones had, and the reverse.

    Tseng et al. 2021, eq. 3, with the rectifiers of the authors' code. anchors α_R, α_F:
    0-dimensional. Returns (N,).
    """
    above = F.relu(real_logits - fake_anchor).square()
    return mean_of_each(above + F.relu(real_anchor - fake_logits).square())


def consistency_penalty(logits: Tensor, moved_logits: Tensor) -> Tensor:
    """(D(x) - D(T(x)))² for an augmentation T: D should not see what T changes.

    Zhang et al. 2020, "Consistency regularization for generative adversarial networks", eq. 3, with
    T of its section 3. Returns (N,).
    """
    return mean_of_each((logits - moved_logits).square())


def squared_gradient_norm(logits: Tensor, images: Tensor) -> Tensor:
    """‖∇_x D(x)‖² of each image, summed over C, H, W: R1 of Mescheder et al. 2018, eq. 9, without
    the factor γ/2. On generated images it is R2.

    images: (N, C, H, W) with requires_grad; logits: computed from them. Returns (N,),
    differentiable.
    """
    (gradient,) = torch.autograd.grad(_sum_of_means(logits), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def gradient_norm_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """(‖∇_x D(x)‖₂ - 1)² of each image: the penalty of Gulrajani et al. 2017, eq. 3, without λ. Its
    images are mixes of a real and a generated one.

    images: (N, C, H, W) with requires_grad; logits: computed from them. Returns (N,),
    differentiable; at a gradient of 0 its own gradient is 0.
    """
    (gradient,) = torch.autograd.grad(_sum_of_means(logits), images, create_graph=True)
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norms - 1.0).square()


def path_lengths(images: Tensor, styles: Tensor, direction: Tensor) -> Tensor:
    """ℓ = √(mean over layers of ‖∂⟨g(w), y⟩ / ∂w_l‖²) with y ~ N(0, I) / √(H W) (Karras et al.
    2020, StyleGAN2, eq. 4): (N,), differentiable.

    images: (N, C, H, W), made of styles (N, L, W); direction: N(0, 1) in pixels, (N, C, H, W).
    """
    along = (images * direction).sum() / (images.shape[2] * images.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad(along, styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()
