"""What lies between an encoder and a decoder of maps: a distribution of latents, or a quantiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor, nn

from ray_gen import losses
from ray_gen.bottlenecks.kinds import code_count_of, quantiser_of
from ray_gen.core import (
    Batch,
    Losses,
    Networks,
    Noise,
    NoiseOf,
    Noises,
    Number,
    Posterior,
    Shape,
    noise_of,
)

QUANTISER = "quantiser"
"""Name of the quantiser among an objective's own modules."""
LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE = -30.0, 20.0
"""Bounds of log σ² of q(z|x), those of Rombach et al. 2022 in their code."""


@dataclass(frozen=True)
class Latent:
    """What a bottleneck makes of an encoder's output."""

    z: Tensor
    """(N, c, h, w): the decoder's input."""
    losses: Losses


class Bottleneck(Protocol):
    """Between the encoder's output, (N, `encoded_channels`, h, w), and the decoder's input."""

    encoded_channels: int
    noise: Noises
    numbers: Mapping[str, Number]
    own: tuple[str, ...]
    """Names of its modules. The autoencoder's phase updates them, and sampling needs them."""
    code_count: int | None
    """How many codes a position has. None without a quantiser."""

    def modules(self) -> Mapping[str, nn.Module]:
        """The objective's own modules that it needs."""
        ...

    def __call__(self, networks: Networks, encoded: Tensor, batch: Batch) -> Latent:
        """The latent that training decodes, and its losses."""
        ...

    def posterior(self, encoded: Tensor) -> Posterior:
        """The position of an image among the latents."""
        ...

    def decoded_from(self, networks: Networks, z: Tensor) -> Tensor:
        """What the decoder gets of a latent z, (N, c, h, w) each."""
        ...


class Gaussian:
    """q(z|x) = N(μ, σ²), and w KL(q(z|x) ‖ N(0, I)) / n with the count n of numbers in z (Kingma
    and Welling 2014, appendix B)."""

    own: tuple[str, ...] = ()
    code_count: int | None = None

    def __init__(self, shape: Shape, weights: Mapping[str, Number]) -> None:
        """shape: (c, h, w) of z. weights: of "kl"."""
        self.encoded_channels = 2 * shape[0]
        self.noise: Noises = {"epsilon": Noise(shape)}
        self.numbers: Mapping[str, Number] = {_weight_of("kl"): weights["kl"]}

    def modules(self) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def __call__(self, networks: Networks, encoded: Tensor, batch: Batch) -> Latent:
        """z = μ(x) + σ(x) ε."""
        mean, log_variance = _mean_and_log_variance(encoded)
        z = mean + (0.5 * log_variance).exp() * batch.noise["epsilon"]
        kl = losses.gaussian_kl(mean, log_variance) / mean[0].numel()
        told = {"latent/kl": kl, "latent/square": losses.mean_of_each(z.square())}
        return Latent(z, Losses({"kl": batch.numbers[_weight_of("kl")] * kl}, told))

    def posterior(self, encoded: Tensor) -> Posterior:
        """μ and log σ²."""
        return Posterior(*_mean_and_log_variance(encoded))

    def decoded_from(self, networks: Networks, z: Tensor) -> Tensor:
        """z."""
        return z


def _mean_and_log_variance(encoded: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = encoded.chunk(2, dim=1)
    return mean, log_variance.clamp(LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)


class Quantised:
    """The codes of a quantiser. A latent is the encoder's output before it."""

    own: tuple[str, ...] = (QUANTISER,)
    noise: Noises = MappingProxyType({QUANTISER: NoiseOf(QUANTISER)})

    def __init__(self, shape: Shape, weights: Mapping[str, Number], options: Any) -> None:
        """shape: (c, h, w) of z. weights: of the quantiser's losses. options: of
        `quantiser_of`."""
        self.encoded_channels = shape[0]
        self.numbers: Mapping[str, Number] = {_weight_of(n): w for n, w in weights.items()}
        self._shape, self._options = shape, options
        self.code_count: int | None = code_count_of(**options)

    def modules(self) -> Mapping[str, nn.Module]:
        """The quantiser."""
        channels, *positions = self._shape
        return {QUANTISER: quantiser_of(channels=channels, positions=positions, **self._options)}

    def __call__(self, networks: Networks, encoded: Tensor, batch: Batch) -> Latent:
        """The codes, with a gradient for the encoder."""
        found = networks[QUANTISER](encoded, **noise_of(batch.noise, QUANTISER))
        minimised = {n: batch.numbers[_weight_of(n)] * loss for n, loss in found.losses.items()}
        reported = {f"latent/{name}": loss for name, loss in found.losses.items()}
        return Latent(found.z_q, Losses(minimised, reported, found.of_phase))

    def posterior(self, encoded: Tensor) -> Posterior:
        """The encoder's output, without a distribution."""
        return Posterior(encoded, None)

    def decoded_from(self, networks: Networks, z: Tensor) -> Tensor:
        """The codes nearest to z."""
        return quantiser_in(networks).quantised(z)[0]


def quantiser_in(networks: Networks) -> Any:
    """The quantiser (`ray_gen.bottlenecks.quantiser.Quantiser`) of a model that has one."""
    return networks[QUANTISER]


def bottleneck_of(
    shape: Shape, *, kind: str, weights: Mapping[str, Number], **options: Any
) -> Bottleneck:
    """A bottleneck by its name in the settings. shape: (c, h, w) of z. weights: of its losses, by
    name. options: of `quantiser_of`."""
    if kind == "kl":
        return Gaussian(shape, weights)
    return Quantised(shape, weights, {"kind": kind, **options})


def _weight_of(loss: str) -> str:
    """Name of the weight of a loss among a phase's numbers."""
    return f"weight of {loss}"
