"""`objective` of kind vae_gan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import PositiveInt

from ray_gen.experiment.networks import NetworkSettings
from ray_gen.experiment.objective import MinOrMax, ObjectiveSettings
from ray_gen.experiment.schedules import NonNegative
from ray_gen.settings import live


class VaeGanObjective(ObjectiveSettings):
    """A VAE whose decoder is the generator of a GAN: its likelihood compares features of the
    discriminator and not pixels (Larsen et al. 2016)."""

    targets: ClassVar[Mapping[str, str]] = {"objective": "ray_gen.objectives.vae_gan:VaeGan"}
    network_names: ClassVar[tuple[str, ...] | None] = ("encoder", "decoder", "discriminator")
    phase_names: ClassVar[tuple[str, ...] | None] = ("discriminator", "autoencoder")
    evaluated: ClassVar[Mapping[str, MinOrMax | None] | None] = {
        "reconstruction_mse": "min",
        "kl": None,
    }
    title: ClassVar[str] = "VAE-GAN"
    kind: Literal["vae_gan"] = "vae_gan"
    latent_size: PositiveInt = 128
    """How many numbers the latent vector z has (the authors' code: 128)."""
    feature_weight: NonNegative = live(0.01)
    """Weight γ of the reconstruction in the decoder's loss γ · L_like + L_GAN. L_like is half the
    sum of squared differences of the features, so γ depends on their number (the authors' code:
    0.01 by default, 1e-6 for faces of 64 pixels). The encoder's loss does not contain it."""
    feature_layer: PositiveInt | None = None
    """The discriminator's block that gives the features, from 1 for the first after the image.
    None: the last before the logit."""
    loss: Literal["non_saturating", "minimax"] = "non_saturating"
    """How the decoder plays against the discriminator: it minimises -log D, or log(1 - D) as in
    the paper."""

    def network_problems(self, networks: Mapping[str, NetworkSettings]) -> Iterator[str]:
        """The discriminator gives features. Labels enter as a network can take them."""
        discriminator = networks.get("discriminator")
        if discriminator is not None and not discriminator.gives_features:
            yield (
                f"networks.discriminator.kind: {getattr(discriminator, 'kind', 'it')} gives no "
                "features to compare; set it to dcgan, resnet, patch, conv or mlp"
            )
        if not self.conditional:
            return
        forms = {"encoder": "map_to_vector", "decoder": "vector_to_map"}
        for name, network in networks.items():
            problem = network.labels_problem(forms.get(name, "map_to_vector"))
            if problem is not None:
                yield f"networks.{name}.labels: {problem}"
