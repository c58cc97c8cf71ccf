"""p(x|z) of autoencoders: what a decoder's output says about the pixels of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ray_gen import losses
from ray_gen.core import Networks
from ray_gen.phase_sums import PhaseSums
from ray_gen.pixels import stretched, unstretched

MODULE = "likelihood"
"""The name of a likelihood's own module, if it has one."""
COMPONENTS = 10
"""Of a mixture (Child 2021, VDVAE: 10)."""
_RANGE = (-1.0, 1.0)
"""Of images, in the equations of logistic distributions."""


class Likelihood:
    """p(x|z) of images x in [0, 1]. Pixels are independent of each other. One that is learned or
    moves has a module of its own, `networks["likelihood"]`."""

    def __init__(self, channels: int) -> None:
        """channels: of an image."""
        self._channels = channels

    @property
    def channels(self) -> int:
        """How many numbers the decoder gives for each pixel."""
        return self._channels

    def modules(self) -> Mapping[str, nn.Module]:
        """Its own module, by `MODULE`, if it has one."""
        return {}

    def nll(self, networks: Networks, output: Tensor, images: Tensor) -> Tensor:
        """-log p(x|z) of each image in nats: (N,). output: (N, `channels`, H, W)."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z]: (N, C, H, W). Only a Gaussian's may leave [0, 1]."""
        return output


class SquaredError(Likelihood):
    """The squared error, in place of a likelihood."""

    def nll(self, networks: Networks, output: Tensor, images: Tensor) -> Tensor:
        """Σ (x - μ)²."""
        return losses.squared_error(output, images)


class Bernoulli(Likelihood):
    """Pixels that are 0 or 1, from logits."""

    def nll(self, networks: Networks, output: Tensor, images: Tensor) -> Tensor:
        """The binary cross-entropy."""
        return losses.bernoulli_nll(output, images)

    def mean(self, output: Tensor) -> Tensor:
        """λ"""
        return output.sigmoid()


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1], from logits (Loaiza-Ganem and Cunningham 2019)."""

    def nll(self, networks: Networks, output: Tensor, images: Tensor) -> Tensor:
        """The binary cross-entropy, and minus the logarithm of its normalising constant."""
        return losses.continuous_bernoulli_nll(output, images)

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z], and not its parameter λ, which is nearer to 0 or 1."""
        return losses.continuous_bernoulli_mean(output)


class Gaussian(Likelihood):
    """A Gaussian around the decoder's output, with one σ for all pixels."""

    def __init__(self, channels: int, sigma: float) -> None:
        super().__init__(channels)
        self._log_sigma = math.log(sigma)

    def nll(self, networks: Networks, output: Tensor, images: Tensor) -> Tensor:
        """Minus the log-density."""
        return losses.gaussian_nll(output, images, self.log_sigma(networks, images))

    def log_sigma(self, networks: Networks, images: Tensor) -> Tensor:
        """log σ, 0-dimensional, of the type of the images."""
        return torch.full((), self._log_sigma, dtype=images.dtype, device=images.device)


class LearnedSigma(nn.Module):
    """log σ of a Gaussian likelihood: one number for all pixels (Rybkin et al. 2021, section 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.zeros(()))


class LearnedGaussian(Gaussian):
    """A Gaussian whose σ is a parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1.0)

    def modules(self) -> Mapping[str, nn.Module]:
        """σ"""
        return {MODULE: LearnedSigma()}

    def log_sigma(self, networks: Networks, images: Tensor) -> Tensor:
        """log σ, 0-dimensional."""
        module = networks[MODULE]
        assert isinstance(module, LearnedSigma)
        return module.log_sigma


class OptimalSigma(PhaseSums):
    """σ² of a Gaussian likelihood: the mean squared error of the last phase, over the images of all
    ranks. 1 before the first phase."""

    variance: Tensor
    """0-dimensional."""

    def __init__(self) -> None:
        super().__init__(1)
        self.register_buffer("variance", torch.ones(()))

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """σ², from the sum of the mean squared errors of so many images."""
        return {"variance": (sums / count).squeeze(0)}


class OptimalGaussian(Gaussian):
    """A Gaussian whose σ² maximises the likelihood: σ² = the mean squared error (Rybkin et al.
    2021, "Simple and effective VAE training with calibrated decoders").

    That of a batch would couple its images, so σ² comes from the phase before, of all images of all
    ranks. It is a constant: at the optimum the loss has no slope in σ, so its gradient is the same.
    """

    _LEAST = math.exp(-12.0)
    """Of σ²: log σ >= -6, as in the authors' code."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1.0)

    def modules(self) -> Mapping[str, nn.Module]:
        """σ²"""
        return {MODULE: OptimalSigma()}

    def nll(self, networks: Networks, output: Tensor, images: Tensor) -> Tensor:
        """Minus the log-density. Collects the squared errors."""
        module = networks[MODULE]
        assert isinstance(module, OptimalSigma)
        error = (images - output.detach()).square().flatten(1).mean(1)
        module.add(error.sum()[None], len(images))
        return super().nll(networks, output, images)

    def log_sigma(self, networks: Networks, images: Tensor) -> Tensor:
        """log σ, 0-dimensional."""
        module = networks[MODULE]
        assert isinstance(module, OptimalSigma)
        return 0.5 * module.variance.clamp(min=self._LEAST).log()


class Logistic(Likelihood):
    """A logistic distribution of each value, rounded to the levels of the data: a probability of
    each level. The decoder gives its mean and its log-scale, for images in [-1, 1]."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__(channels)
        self._levels = levels

    @property
    def channels(self) -> int:
        """Means, then log-scales."""
        return 2 * self._channels

    def nll(self, networks: Networks, output: Tensor, images: Tensor) -> Tensor:
        """Minus the log-probability of the levels."""
        mean, log_scale = output.chunk(2, dim=1)
        images = stretched(images, _RANGE)
        return losses.discretised_logistic_nll(mean, log_scale, images, self._levels)

    def mean(self, output: Tensor) -> Tensor:
        """That of the distribution with its tails at 0 and 1."""
        mean, log_scale = output.chunk(2, dim=1)
        return unstretched(losses.clipped_logistic_mean(mean, log_scale, self._levels), _RANGE)


class LogisticMixture(Likelihood):
    """A mixture of `COMPONENTS` such logistic distributions of each pixel (Salimans et al. 2017,
    PixelCNN++, section 2). The channels of a pixel share the component. In RGB the mean of green
    depends on red, and that of blue on both; other numbers of channels are independent given the
    component."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__(channels)
        self._levels = levels
        self._coefficients = 3 if channels == 3 else 0

    @property
    def channels(self) -> int:
        """For each component a logit, means, log-scales and coefficients."""
        return COMPONENTS * (1 + 2 * self._channels + self._coefficients)

    def nll(self, networks: Networks, output: Tensor, images: Tensor) -> Tensor:
        """Minus the log-probability of the levels."""
        images = stretched(images, _RANGE)
        return losses.logistic_mixture_nll(*self._parts(output), images, self._levels)

    def mean(self, output: Tensor) -> Tensor:
        """That of the mixture with its tails at 0 and 1. In RGB a mean takes the means before it in
        place of the values."""
        found = losses.logistic_mixture_mean(*self._parts(output), self._levels)
        return unstretched(found, _RANGE)

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Logits (N, K, H, W), means and log-scales (N, K, C, H, W), coefficients (N, K, 3, H,
        W)."""
        each = output.unflatten(1, (COMPONENTS, -1))  # (N, K, 1 + 2 C + 3, H, W)
        sizes = (1, self._channels, self._channels, self._coefficients)
        logits, means, log_scales, coefficients = each.split(sizes, dim=2)
        return logits[:, :, 0], means, log_scales, coefficients if self._coefficients else None


def likelihood_of(
    kind: str, sigma: float | str | None, channels: int, levels: int | None
) -> Likelihood:
    """A likelihood by the settings' name. sigma: of a Gaussian; None: the squared error. channels:
    of an image. levels: how many values a channel of the data can have; None: any. Raises
    ValueError."""
    if kind == "gaussian":
        if sigma is None:
            return SquaredError(channels)
        if isinstance(sigma, str):
            return LearnedGaussian(channels) if sigma == "learned" else OptimalGaussian(channels)
        return Gaussian(channels, sigma)
    of_levels: dict[str, Callable[[int, int], Likelihood]] = {
        "logistic": Logistic,
        "logistic_mixture": LogisticMixture,
    }
    if kind in of_levels:
        if levels is None:
            raise ValueError(
                f"likelihood: {kind} gives probabilities to 256 or 65,536 levels, but the values "
                "of these data are no levels; set objective.likelihood to gaussian"
            )
        return of_levels[kind](channels, levels)
    return ContinuousBernoulli(channels) if kind == "continuous_bernoulli" else Bernoulli(channels)
