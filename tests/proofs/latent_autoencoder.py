"""A KL autoencoder whose latent is a map, and a PatchGAN that starts late (Rombach et al. 2022)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ray_gen import core, losses
from ray_gen.core import Batch, Losses, Networks, Phase, Posterior, Shape, Signature, Term, Weight
from ray_gen.experiment import Experiment
from ray_gen.experiment.schedules import Steps


class LatentAutoencoder(core.Objective):
    """min |x - x̂| + 1e-6 KL(q(z|x) ‖ N(0, I)) + w λ L_GAN, means over pixels, numbers of z and
    patches. λ is 1, or `LastLayer`'s. late: the images at which two losses start, and their w."""

    image_range = (-1.0, 1.0)
    sampled_from = ("encoder", "decoder")

    def __init__(
        self, *, image_shape: Shape, label_count: int | None, z: Shape, adaptive: bool, late: Any
    ) -> None:
        w = {loss: Weight(Steps(values=((0, 0.0), start))) for loss, start in late.items()}
        self._w, self._w_of_d = {"kl": Weight(1e-6), "gan": w.pop("gan")}, w
        self._adaptive, x, z = adaptive, image_shape, tuple(z)
        q = (2 * z[0], *z[1:])  # μ and log σ² of q(z|x)
        maps = {"encoder": (x, q), "decoder": (z, x), "discriminator": (x, (1, 2, 2))}
        self._networks = {name: Signature(*of, label_count) for name, of in maps.items()}
        self.latents = {"z": core.Noise(z)}

    def networks(self) -> dict[str, Signature]:
        return self._networks

    def phases(self) -> list[Phase]:
        vae = Term("autoencoder", self._vae_losses, weights=self._w)
        d = Term("discriminator", self._d_losses, weights=self._w_of_d)
        noise = {"epsilon": self.latents["z"]}
        vae_phase = Phase("autoencoder", self.sampled_from, (vae,), noise)
        return [vae_phase, Phase("discriminator", ("discriminator",), (d,), noise)]

    def encode(self, networks: Networks, images: Tensor, labels: Any) -> dict[str, Posterior]:
        mean, log_variance = networks["encoder"](images, labels).to(images.dtype).chunk(2, dim=1)
        return {"z": Posterior(mean, log_variance.clamp(-30.0, 20.0))}  # (N, c, h, w) each

    def _fakes(self, networks: Networks, batch: Batch) -> tuple[Tensor, Tensor]:
        """x̂ (N, C, H, W), and the KL divided by the count of numbers in z (N,)."""
        mean, log_variance = self.encode(networks, batch.images, batch.labels)["z"]
        z = mean + (0.5 * log_variance).exp() * batch.noise["epsilon"]
        kl = losses.gaussian_kl(mean.flatten(1), log_variance.flatten(1)) / mean[0].numel()
        return networks["decoder"](z, batch.labels).to(z.dtype), kl

    def _vae_losses(self, networks: Networks, batch: Batch) -> Losses:
        fakes, kl = self._fakes(networks, batch)
        error = (batch.images - fakes).abs().mean((1, 2, 3))
        gan = -networks["discriminator"](fakes, batch.labels).to(fakes.dtype).mean((1, 2, 3))
        factor = networks["decoder"][-1].factor(error, gan) if self._adaptive else gan.new_ones(())
        return Losses({"l1": error, "kl": kl, "gan": factor * gan}, of_phase={"gan/factor": factor})

    def _d_losses(self, networks: Networks, batch: Batch) -> Losses:
        images = (batch.images, self._fakes(networks, batch)[0])
        real, fake = (networks["discriminator"](x, batch.labels).to(x.dtype) for x in images)
        hinge = losses.discriminator_loss_hinge(real, fake)  # a mean over patches
        return Losses({"discriminator": 0.5 * hinge})

    def sample(self, networks: Networks, latents: Any, labels: Any, noise: Any) -> Tensor:
        return (networks["decoder"](latents["z"], labels).float() / 2 + 0.5).clamp(0.0, 1.0)


def experiment(*overrides: str) -> Experiment:
    from tests.helpers import TRAINING, experiment

    adam = {"kind": "adam", "learning_rate": 3e-3}
    given = {"z": [2, 4, 4], "adaptive": True, "late": {"discriminator": [96, 1], "gan": [192, 1]}}
    objective = {"kind": "custom", "target": f"{__name__}:LatentAutoencoder", "options": given}
    of, kinds = "tests.proofs.latent_networks:", ("Encoder", "Decoder", "Discriminator")
    networks = {kind.lower(): {"kind": "custom", "target": of + kind} for kind in kinds}
    more = {"optimizers": {"autoencoder": adam, "discriminator": adam}, "training": TRAINING}
    return experiment({"objective": objective, "networks": networks, **more}, *overrides)
