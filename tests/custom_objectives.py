"""Objectives that the package does not have, as its users would write them outside of it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import softplus

from ray_gen import losses
from ray_gen.core import (
    Batch,
    ImageShape,
    ImageToVector,
    Losses,
    Networks,
    Noise,
    Phase,
    Term,
    VectorToImage,
)


class RelativisticGan:
    """min_G max_D E f(D(G(z)) - D(x)), f(t) = -log(1 + e^-t), with R1 and R2 (Huang et al. 2024,
    R3GAN, eq. 2 and algorithm 1). Both penalties are taken in full precision, with their images."""

    image_range = (-1.0, 1.0)
    sampled_from = ("generator",)

    def __init__(
        self, *, image_shape: ImageShape, label_count: int | None, latent_size: int, gamma: float
    ) -> None:
        self.latent = Noise((latent_size,))
        self._generator = VectorToImage(latent_size, image_shape, label_count, output="tanh")
        self._discriminator = ImageToVector(image_shape, 1, label_count)
        self._gamma = gamma

    def networks(self) -> dict[str, ImageToVector | VectorToImage]:
        return {"generator": self._generator, "discriminator": self._discriminator}

    def phases(self) -> list[Phase]:
        discriminator = (
            Term("discriminator", self._discriminator_loss),
            Term("r1", self._r1, self._gamma / 2, full_precision=True),
            Term("r2", self._r2, self._gamma / 2, full_precision=True),
        )
        generator = (Term("generator", self._generator_loss),)
        noise = {"z": self.latent}
        return [
            Phase("discriminator", ("discriminator",), discriminator, noise),
            Phase("generator", ("generator",), generator, noise),
        ]

    def _margin(self, networks: Networks, batch: Batch) -> Tensor:
        """D(x) - D(G(z)): (N,)."""
        fakes = networks["generator"](batch.noise["z"], batch.labels)
        real, fake = (networks["discriminator"](x, batch.labels) for x in (batch.images, fakes))
        return (real - fake).flatten().to(batch.images.dtype)

    def _discriminator_loss(self, networks: Networks, batch: Batch) -> Losses:
        return Losses({"discriminator": softplus(-self._margin(networks, batch))})

    def _generator_loss(self, networks: Networks, batch: Batch) -> Losses:
        return Losses({"generator": softplus(self._margin(networks, batch))})

    def _penalty(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        images = images.detach().requires_grad_()
        return losses.squared_gradient_norm(networks["discriminator"](images, labels), images)

    def _r1(self, networks: Networks, batch: Batch) -> Losses:
        return Losses({"r1": self._penalty(networks, batch.images, batch.labels)})

    def _r2(self, networks: Networks, batch: Batch) -> Losses:
        fakes = networks["generator"](batch.noise["z"], batch.labels)
        return Losses({"r2": self._penalty(networks, fakes, batch.labels)})

    def sample(self, networks: Networks, z: Tensor, labels: Tensor | None) -> Tensor:
        return networks["generator"](z, labels).float().add(1.0).mul(0.5)


class FeatureDiscriminator(nn.Module):
    """images (N, C, H, W) -> logits (N, 1) and the features (N, F) that they are made of."""

    def __init__(self, signature: ImageToVector, *, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(signature.image_shape[0], width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        _, height, side = signature.image_shape
        self.head = nn.Linear(2 * width * (height // 4) * (side // 4), signature.vector_size)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.head(features), features


class VaeGan:
    """A VAE whose likelihood is a Gaussian on features of a discriminator (Larsen et al. 2016,
    algorithm 1); the decoder minimises γ L_like - L_GAN, its GAN part non-saturating."""

    image_range = (-1.0, 1.0)
    sampled_from = ("encoder", "decoder")

    def __init__(
        self, *, image_shape: ImageShape, label_count: int | None, latent_size: int, gamma: float
    ) -> None:
        self.latent = Noise((latent_size,))
        self._gamma = gamma
        self._networks = {
            "encoder": ImageToVector(image_shape, 2 * latent_size, label_count),
            "decoder": VectorToImage(latent_size, image_shape, label_count, output="tanh"),
            "discriminator": ImageToVector(image_shape, 1, label_count),
        }

    def networks(self) -> dict[str, ImageToVector | VectorToImage]:
        return self._networks

    def phases(self) -> list[Phase]:
        noise = {"epsilon": self.latent, "z": self.latent}
        losses_of = (self._encoder_loss, self._decoder_loss, self._discriminator_loss)
        return [
            Phase(name, (name,), (Term(name, loss),), noise)
            for name, loss in zip(self._networks, losses_of, strict=True)
        ]

    def _passes(self, networks: Networks, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor]:
        """Logits (N,) of real, reconstructed and sampled images, L_like and the KL, both (N,)."""
        dtype = batch.images.dtype
        encoded = networks["encoder"](batch.images, batch.labels).to(dtype)
        mean, log_variance = encoded.chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * batch.noise["epsilon"]
        fakes = [networks["decoder"](of, batch.labels) for of in (z, batch.noise["z"])]
        seen = [networks["discriminator"](of, batch.labels) for of in (batch.images, *fakes)]
        real, reconstructed = (features.to(dtype) for _, features in seen[:2])
        likelihood = 0.5 * losses.squared_error(reconstructed, real)
        logits = [of.flatten().to(dtype) for of, _ in seen]
        return logits, likelihood, losses.gaussian_kl(mean, log_variance)

    def _encoder_loss(self, networks: Networks, batch: Batch) -> Losses:
        _, likelihood, kl = self._passes(networks, batch)
        return Losses({"kl": kl, "features": likelihood})

    def _decoder_loss(self, networks: Networks, batch: Batch) -> Losses:
        (_, reconstructed, sampled), likelihood, _ = self._passes(networks, batch)
        fooling = softplus(-reconstructed) + softplus(-sampled)
        return Losses({"decoder": self._gamma * likelihood + fooling})

    def _discriminator_loss(self, networks: Networks, batch: Batch) -> Losses:
        (real, reconstructed, sampled), _, _ = self._passes(networks, batch)
        return Losses(
            {"discriminator": softplus(-real) + softplus(reconstructed) + softplus(sampled)}
        )

    def sample(self, networks: Networks, z: Tensor, labels: Tensor | None) -> Tensor:
        return networks["decoder"](z, labels).float().add(1.0).mul(0.5)
