"""A VAE and a GAN that share a network (Larsen et al. 2016, "Autoencoding beyond pixels using a
learned similarity metric")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ray_gen import losses
from ray_gen.core import (
    Batch,
    Featured,
    ImageShape,
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
from ray_gen.errors import Refused
from ray_gen.objectives import equilibrium
from ray_gen.objectives.decoding import OF_NETWORKS, Decoding, gaussian_posterior
from ray_gen.pixels import unstretched

_OF_DECODER = {
    "non_saturating": losses.generator_loss_non_saturating,
    "minimax": losses.generator_loss_minimax,
}


class VaeGan(Decoding):
    """Each network has the gradient of its own losses (Larsen et al. 2016, algorithm 1):

        encoder:        L_prior + L_like
        decoder:        γ L_like + L_fool
        discriminator:  L_GAN

    L_prior = KL(q(z|x) ‖ N(0, I)). L_like = ½ Σ (D_l(x) - D_l(x̂))², with the discriminator's
    features D_l and the reconstruction x̂ = Dec(z). L_GAN = -log D(x) - log(1 - D(x̂)) -
    log(1 - D(x_p)), with the sample x_p = Dec(z_p) of the prior. L_fool = -log D(x̂) - log D(x_p),
    or -L_GAN without its first term. Images are in [-1, 1].

    Two phases: the discriminator's, then that of encoder and decoder. In the second, x̂ is decoded
    once. L_like's gradient at z goes on to the encoder, and L_fool's does not: one more backward
    pass from the features to z in place of a second encoder pass, decoder pass and two
    discriminator passes.
    """

    image_range = (-1.0, 1.0)
    sampled_from: tuple[str, ...] = ("encoder", "decoder")
    sampling_noise: Noises = {"decoding": NoiseOf("decoder")}  # noqa: RUF012
    evaluation_noise: Noises = OF_NETWORKS
    discriminates_with: tuple[str, ...] = ("discriminator",)
    gives_probability = True

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        label_count: int | None,
        latent_size: int,
        feature_weight: Number,
        feature_layer: int | None,
        loss: str,
    ) -> None:
        """feature_weight: γ. feature_layer: as `Featured.features` takes it. loss: non_saturating
        or minimax."""
        self._image_shape = image_shape
        self._label_count = label_count
        self._latent_size = latent_size
        self._feature_weight = feature_weight
        self._layer = feature_layer
        self._loss = loss
        self.latents = {"z": Noise((latent_size,))}

    def networks(self) -> Mapping[str, Signature]:
        """An encoder to (μ, log σ²), a decoder from z and a discriminator to one logit."""
        image, size, labels = self._image_shape, self._latent_size, self._label_count
        return {
            "encoder": Signature(image, (2 * size,), labels),
            "decoder": Signature((size,), image, labels, "tanh"),
            "discriminator": Signature(image, (1,), labels, several_logits=True),
        }

    def phases(self) -> Sequence[Phase]:
        """The discriminator's, and that of encoder and decoder."""
        noise: dict[str, Noise | NoiseOf] = {
            "epsilon": Noise((self._latent_size,)),
            **self.latents,
            **self.evaluation_noise,
            "sampling": NoiseOf("decoder"),
        }
        discriminator = Term("discriminator", self._discriminator_loss)
        autoencoder = Term("autoencoder", self._autoencoder_losses)
        return [
            Phase("discriminator", ("discriminator",), (discriminator,), noise),
            Phase(
                "autoencoder",
                ("encoder", "decoder"),
                (autoencoder,),
                noise,
                numbers={"feature_weight": self._feature_weight},
            ),
        ]

    def _encoded(self, networks: Networks, batch: Batch) -> tuple[Tensor, Tensor]:
        """z of each image, (N, latent_size), and its KL, (N,)."""
        encoding = noise_of(batch.noise, "encoding")
        mean, log_variance = gaussian_posterior(networks, batch.images, batch.labels, **encoding)
        z = mean + (0.5 * log_variance).exp() * batch.noise["epsilon"]
        return z, losses.gaussian_kl(mean, log_variance)

    def _decoded(self, networks: Networks, batch: Batch, z: Tensor, noise: str) -> Tensor:
        """Dec(z): (N, C, H, W) in [-1, 1]. noise: the name of the decoder's."""
        return networks["decoder"](z, batch.labels, **noise_of(batch.noise, noise))

    def _logits(self, networks: Networks, batch: Batch, images: Tensor) -> Tensor:
        """(N, 1) or (N, K, …)"""
        return networks["discriminator"](images, batch.labels).to(batch.images.dtype)

    def _discriminator_loss(self, networks: Networks, batch: Batch) -> Losses:
        z, _ = self._encoded(networks, batch)
        drawn = ((z, "decoding"), (batch.noise["z"], "sampling"))
        images = [batch.images, *(self._decoded(networks, batch, *of) for of in drawn)]
        real, reconstructed, sampled = (self._logits(networks, batch, of) for of in images)
        loss = losses.discriminator_loss(real, reconstructed)
        loss = loss - losses.generator_loss_minimax(sampled)  # -log(1 - D(x_p))
        told = {"real": real, "reconstructed": reconstructed, "fake": sampled}
        reported = {
            f"discriminator/{name}": losses.mean_of_each(logits.detach()).sigmoid()
            for name, logits in told.items()
        }
        return Losses({"discriminator": loss}, reported)

    def _autoencoder_losses(self, networks: Networks, batch: Batch) -> Losses:
        z, kl = self._encoded(networks, batch)
        drawn = z.detach().requires_grad_()
        reconstructed = self._decoded(networks, batch, drawn, "decoding")
        sampled = self._decoded(networks, batch, batch.noise["z"], "sampling")
        logits, features = self._features(networks, batch, reconstructed)
        _, expected = self._features(networks, batch, batch.images)
        like = 0.5 * losses.squared_error(features, expected)
        fool = _OF_DECODER[self._loss]
        fooling = fool(logits) + fool(self._logits(networks, batch, sampled))
        # The value of L_like, with its gradient at the encoder and γ times that at the decoder.
        path = (losses.gradient_at(like, drawn) * z).sum(1)
        of_encoder, of_decoder = path - path.detach(), like - like.detach()
        both = like.detach() + of_encoder + batch.numbers["feature_weight"] * of_decoder
        return Losses({"kl": kl, "features": both, "decoder": fooling})

    def _features(self, networks: Networks, batch: Batch, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of images_NCHW and the features D_l, (N, ...)."""
        discriminator = _featured(networks["discriminator"])
        logits, features = discriminator.features(images, batch.labels, layer=self._layer)
        return logits.to(batch.images.dtype), features.to(batch.images.dtype)

    def unclamped(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """Dec(z), in [0, 1] if the decoder ends in a tanh."""
        made = networks["decoder"](latents["z"], labels, **noise_of(noise, "decoding"))
        return unstretched(made.float(), self.image_range)

    def encode(
        self, networks: Networks, images: Tensor, labels: Tensor | None
    ) -> Mapping[str, Posterior]:
        """μ and log σ² of q(z|x), each (N, latent_size)."""
        return {"z": Posterior(*gaussian_posterior(networks, images, labels))}

    def discriminate(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """D's logits (N,) of images: their mean where an image has several. Their sigmoid is
        D(x)."""
        return losses.mean_of_each(networks["discriminator"](images, labels).float())

    def evaluate(self, networks: Networks, batch: Batch) -> Mapping[str, Tensor]:
        """The mean squared error of the reconstruction at the mean of q(z|x), of pixels in [0, 1],
        and the KL, in nats: (N,) each. L_like is none of them: D moves, and with it its scale."""
        encoding = noise_of(batch.noise, "encoding")
        mean, log_variance = gaussian_posterior(networks, batch.images, batch.labels, **encoding)
        made = self.unclamped(networks, {"z": mean}, batch.labels, batch.noise).to(mean.dtype)
        error = losses.squared_error(made, unstretched(batch.images, self.image_range))
        return {
            "reconstruction_mse": error / batch.images[0].numel(),
            "kl": losses.gaussian_kl(mean, log_variance),
        }

    def note(self, memory: dict[str, float], metrics: Mapping[str, float], before: int) -> None:
        """Take note of whether D wins."""
        equilibrium.note_win(memory, equilibrium.wins(metrics, has_probability=True), before)

    def failure(self, memory: Mapping[str, float], images: int) -> str | None:
        """The words, if D has won in every report of 50,000 images."""
        won = equilibrium.won(memory, images, has_probability=True)
        if won is None:
            return None
        return f"{won}; train again with a lower optimizers.discriminator.learning_rate"


def _featured(discriminator: nn.Module) -> Featured:
    """The discriminator. Raises Refused if it gives no features."""
    if not callable(getattr(type(discriminator), "features", None)):
        raise Refused(
            f"networks.discriminator: {type(discriminator).__name__} has no method `features` "
            "(ray_gen.core.Featured); give it one, or set networks.discriminator.kind to dcgan"
        )
    assert isinstance(discriminator, Featured)
    return discriminator
