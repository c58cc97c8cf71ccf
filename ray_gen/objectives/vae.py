"""Autoencoders: plain, variational (Kingma and Welling 2014), β (Higgins et al. 2017), conditional
(Sohn et al. 2015) and importance-weighted (Burda et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from ray_gen import losses
from ray_gen.core import (
    Batch,
    ImageShape,
    LikelihoodKind,
    Losses,
    Networks,
    Noise,
    NoiseOf,
    Noises,
    Number,
    Phase,
    Posterior,
    Signature,
    Term,
    noise_of,
)
from ray_gen.objectives.decoding import OF_NETWORKS, Decoding, gaussian_posterior
from ray_gen.objectives.likelihoods import Likelihood, likelihood_of
from ray_gen.pixels import LEVELS


class _OfLikelihood(Decoding):
    """Common to both autoencoders: decodes z to E[x|z]."""

    image_range = (0.0, 1.0)
    sampling_noise: Noises = {"decoding": NoiseOf("decoder")}  # noqa: RUF012
    _likelihood: Likelihood
    _image_shape: ImageShape

    @property
    def _decoded(self) -> ImageShape:
        """The shape of what the decoder gives."""
        _, height, width = self._image_shape
        return self._likelihood.channels, height, width

    def unclamped(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """E[x|z]."""
        decoding = noise_of(noise, "decoding")
        return self._likelihood.mean(networks["decoder"](latents["z"], labels, **decoding).float())


class Autoencoder(_OfLikelihood):
    """min -log p(x|z), or the squared error, at z = encoder(x). z has no prior, so the model cannot
    be sampled from."""

    sampled_from: tuple[str, ...] = ("encoder", "decoder")
    has_prior = False
    evaluation_noise: Noises = OF_NETWORKS

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        label_count: int | None,
        latent_size: int,
        likelihood: str,
        levels: int | None = LEVELS,
    ) -> None:
        """levels: see `likelihood_of`."""
        self._image_shape = image_shape
        self._label_count = label_count
        self._latent_size = latent_size
        self._likelihood = likelihood_of(likelihood, None, image_shape[0], levels)
        self.latents = {"z": Noise((latent_size,))}

    def networks(self) -> Mapping[str, Signature]:
        """An encoder to z and a decoder from z."""
        return {
            "encoder": Signature(self._image_shape, (self._latent_size,), self._label_count),
            "decoder": Signature((self._latent_size,), self._decoded, self._label_count),
        }

    def phases(self) -> Sequence[Phase]:
        """One phase that updates both networks."""
        term = Term("reconstruction", self._loss)
        return [Phase("autoencoder", ("encoder", "decoder"), (term,), self.evaluation_noise)]

    def _loss(self, networks: Networks, batch: Batch) -> Losses:
        return Losses({"reconstruction": self._error(networks, batch)})

    def _error(self, networks: Networks, batch: Batch) -> Tensor:
        """-log p(x|z), or the squared error, of each image: (N,)."""
        encoding = noise_of(batch.noise, "encoding")
        decoding = noise_of(batch.noise, "decoding")
        z = networks["encoder"](batch.images, batch.labels, **encoding)
        output = networks["decoder"](z, batch.labels, **decoding)
        return self._likelihood.nll(networks, output.to(batch.images.dtype), batch.images)

    def evaluate(self, networks: Networks, batch: Batch) -> Mapping[str, Tensor]:
        """The reconstruction error of each image: (N,)."""
        return {"reconstruction": self._error(networks, batch)}

    def encode(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Posterior]:
        """z (N, latent_size), without a distribution."""
        return {"z": Posterior(networks["encoder"](images, labels).to(images.dtype), None)}


class Vae(_OfLikelihood):
    """max log p(x|z) - β KL(q(z|x) ‖ N(0, I)), z = μ(x) + σ(x) ε (Kingma and Welling 2014, eq. 10).

    β = 1 is the evidence lower bound. Each step draws one z per image. With K = `samples` > 1 it
    draws K, and the objective is max log 1/K Σ_k p(x, z_k) / q(z_k|x) (Burda et al. 2016, eq. 8).
    With `binarize`, each step also draws the pixels: 1 with probability x (Salakhutdinov and Murray
    2008). Only losses and bounds use binarised pixels; a reconstruction, for example, uses x
    unchanged.
    """

    likelihood: LikelihoodKind
    pixel_noise: Noise | None

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        label_count: int | None,
        latent_size: int,
        likelihood: LikelihoodKind,
        sigma: float | str,
        beta: Number,
        beta_warmup_images: int,
        binarize: bool,
        samples: int = 1,
        gradient: Literal["iwae", "dreg"] = "iwae",
        levels: int | None = LEVELS,
    ) -> None:
        """gradient: with more than one sample. iwae: that of the bound. dreg: see
        `losses.doubly_reparametrised_nll`. levels: see `likelihood_of`."""
        self._samples = samples
        self._doubly_reparametrised = gradient == "dreg"
        self._image_shape = image_shape
        self._label_count = label_count
        self._latent_size = latent_size
        self._likelihood = likelihood_of(likelihood, sigma, image_shape[0], levels)
        self._beta = beta
        self._beta_warmup_images = beta_warmup_images
        self.posterior_noise = Noise((latent_size,))
        self.latents = {"z": self.posterior_noise}
        self.likelihood = likelihood
        self.pixel_noise = Noise(image_shape, "uniform") if binarize else None
        pixels = {"pixels": self.pixel_noise} if self.pixel_noise else {}
        draws = self.posterior_noise if samples == 1 else Noise((samples, latent_size))
        self.evaluation_noise: Noises = {"epsilon": draws, **pixels, **OF_NETWORKS}
        self.sampled_from = ("encoder", "decoder", *self._likelihood.modules())

    def networks(self) -> Mapping[str, Signature]:
        """An encoder to (μ, log σ²) and a decoder from z."""
        size = self._latent_size
        return {
            "encoder": Signature(self._image_shape, (2 * size,), self._label_count),
            "decoder": Signature((size,), self._decoded, self._label_count),
        }

    def modules(self) -> Mapping[str, nn.Module]:
        """That of the likelihood, if it has one: σ."""
        return self._likelihood.modules()

    def phases(self) -> Sequence[Phase]:
        """One phase that updates all networks."""
        term = Term("elbo", self._loss)
        noise, numbers = self.evaluation_noise, {"beta": self._beta}
        return [Phase("autoencoder", self.sampled_from, (term,), noise, numbers=numbers)]

    def encode(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Posterior]:
        """μ and log σ² of q(z|x), each (N, latent_size)."""
        return {"z": Posterior(*gaussian_posterior(networks, images, labels))}

    def observed(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """The pixels that the likelihood describes: 1 where noise, U[0, 1), is below x, else 0.
        Without noise: x unchanged."""
        return images if noise is None else (noise < images).to(images.dtype)

    def log_weights(
        self, networks: Networks, images: Tensor, labels: Tensor | None, epsilon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p(x|z) and log p(z) - log q(z|x) = ½ Σ ε² + log σ² - z² at z = μ(x) + σ(x) ε, in
        nats: float64 (S, N) each.

        Burda et al. 2016, eq. 8. images: (N, C, H, W), from `observed`; epsilon: (S, N,
        latent_size).
        """
        mean, log_variance = gaussian_posterior(networks, images, labels)
        z = mean + (0.5 * log_variance).exp() * epsilon
        nll = self._nll(networks, z, images, labels)
        ratio = losses.log_density_ratio(z.double(), epsilon.double(), log_variance.double())
        return -nll.double(), ratio

    def _nll(
        self,
        networks: Networks,
        z: Tensor,
        images: Tensor,
        labels: Tensor | None,
        noise: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """-log p(x|z) in nats: (K, N). z: (K, N, latent_size). noise: a batch's, of N images; all
        draws of z of an image get the same."""
        count = len(z)
        output = networks["decoder"](
            z.flatten(0, 1),  # all images with their first z, then all with their second
            None if labels is None else _repeated(labels, count),
            **noise_of({name: _repeated(x, count) for name, x in noise.items()}, "decoding"),
        )
        repeated = _repeated(images, count)
        nll = self._likelihood.nll(networks, output.to(images.dtype), repeated)
        return nll.unflatten(0, z.shape[:2])

    def _encoded(self, networks: Networks, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The pixels that the likelihood describes, and μ and log σ² of q(z|x)."""
        images = self.observed(batch.images, batch.noise.get("pixels"))
        encoding = noise_of(batch.noise, "encoding")
        return images, *gaussian_posterior(networks, images, batch.labels, **encoding)

    def _draws(self, batch: Batch) -> Tensor:
        """ε: (K, N, latent_size)."""
        epsilon = batch.noise["epsilon"]
        return epsilon[None] if self._samples == 1 else epsilon.movedim(1, 0)

    def _loss(self, networks: Networks, batch: Batch) -> Losses:
        images, mean, log_variance = self._encoded(networks, batch)
        kl = losses.gaussian_kl(mean, log_variance)
        epsilon = self._draws(batch)
        z = mean + (0.5 * log_variance).exp() * epsilon
        if self._samples > 1:
            bound = self._importance_weighted(networks, batch, images, z, epsilon, log_variance)
            return Losses({"importance_weighted": bound}, {"latent/kl": kl})
        (nll,) = self._nll(networks, z, images, batch.labels, batch.noise)
        if self._beta == 1.0 and not self._beta_warmup_images:
            return Losses({"reconstruction": nll, "kl": kl})
        beta = batch.numbers["beta"]
        if self._beta_warmup_images:
            beta = beta * (batch.images_seen / self._beta_warmup_images).clamp(max=1.0)
        return Losses({"reconstruction": nll, "kl": beta * kl}, {"latent/kl": kl})

    def _importance_weighted(
        self,
        networks: Networks,
        batch: Batch,
        images: Tensor,
        z: Tensor,
        epsilon: Tensor,
        log_variance: Tensor,
    ) -> Tensor:
        """-log 1/K Σ_k w_k of each image, in nats: (N,). images: `observed`; z and epsilon: (K, N,
        latent_size); log_variance: (N, latent_size)."""

        def log_weights(z: Tensor, deviation: Tensor, log_variance: Tensor) -> Tensor:
            nll = self._nll(networks, z, images, batch.labels, batch.noise)
            return losses.log_density_ratio(z, deviation, log_variance) - nll

        if self._doubly_reparametrised:
            return losses.doubly_reparametrised_nll(z, epsilon, log_variance, log_weights)
        return losses.importance_weighted_nll(log_weights(z, epsilon, log_variance))

    def evaluate(self, networks: Networks, batch: Batch) -> Mapping[str, Tensor]:
        """The evidence lower bound and its two terms, in nats, with one z per image; and `iwae`,
        the bound of all K, if K > 1: (N,) each. Decodes N latents at once."""
        images, mean, log_variance = self._encoded(networks, batch)
        kl = losses.gaussian_kl(mean, log_variance)
        nlls: list[Tensor] = []
        log_weights: list[Tensor] = []
        for epsilon in self._draws(batch).split(1):
            z = mean + (0.5 * log_variance).exp() * epsilon
            nlls.append(self._nll(networks, z, images, batch.labels, batch.noise)[0])
            log_weights.append(losses.log_density_ratio(z, epsilon, log_variance)[0] - nlls[-1])
        scores = {"elbo": -nlls[0] - kl, "reconstruction": nlls[0], "kl": kl}
        if self._samples > 1:
            scores["iwae"] = -losses.importance_weighted_nll(torch.stack(log_weights))
        return scores


def _repeated(values: Tensor, count: int) -> Tensor:
    """`count` copies one after the other: (N, ...) to (count N, ...)."""
    return values if count == 1 else torch.cat([values] * count)
