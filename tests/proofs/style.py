"""StyleGAN2-ADA (Karras et al. 2020): -log D(G(z)), R1, path lengths, adaptive augmentation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ray_gen import core, losses
from ray_gen.core import Batch, Losses, Networks, Noise, NoiseOf, Phase, Signature, Term, Weight
from ray_gen.experiment import Experiment
from tests.proofs.style_modules import AdaptiveAugment, PathLength


class Style(core.Objective):
    """Every fourth forward pass of a phase also gives its regulariser, in full precision."""

    image_range = (-1.0, 1.0)
    sampled_from = ("mapping", "synthesis")
    sampling_noise = {"mapping": NoiseOf("mapping"), "synthesis": NoiseOf("synthesis")}  # noqa: RUF012
    latents = {"z": Noise((5,))}  # noqa: RUF012

    def __init__(self, *, image_shape: core.Shape, label_count: int | None, **ada: Any) -> None:
        self._d, self._ada = Signature(image_shape, (1,), label_count), ada

    def networks(self) -> dict[str, Signature]:
        layers = 2 * self._d.input[1].bit_length() - 5  # of the synthesis: 3 make 8 x 8 pixels
        mapping = Signature((5,), (layers, 6), self._d.label_count)
        synthesis = Signature(mapping.output_shape, self._d.input)
        return {"mapping": mapping, "synthesis": synthesis, "discriminator": self._d}

    def modules(self) -> dict[str, nn.Module]:
        return {"augment": AdaptiveAugment(**self._ada), "path": PathLength()}

    def phases(self) -> list[Phase]:
        d = Term("d", self._d_losses, full_precision=True, weights={"r1": Weight(0.5, every=4)})
        g = Term("g", self._g_losses, full_precision=True, weights={"path": Weight(2.0, every=4)})
        noise = {**self.latents, **self.sampling_noise, "fake": NoiseOf("augment")}
        in_d, in_g = {"real": NoiseOf("augment")}, {"direction": Noise(self._d.input)}
        d_phase = Phase("discriminator", ("discriminator", "augment"), (d,), noise | in_d)
        return [d_phase, Phase("generator", (*self.sampled_from, "path"), (g,), noise | in_g)]

    def _fakes(self, networks: Networks, z: Tensor, labels: Any, noise: Any) -> list[Tensor]:
        styles = networks["mapping"](z, labels, **core.noise_of(noise, "mapping"))  # (N, L, W)
        return [styles, networks["synthesis"](styles, **core.noise_of(noise, "synthesis"))]

    def _logits(self, networks: Networks, images: Tensor, batch: Batch, name: str) -> Tensor:
        seen = networks["augment"](images, **core.noise_of(batch.noise, name))
        return networks["discriminator"](seen, batch.labels)  # (N, 1)

    def _d_losses(self, networks: Networks, batch: Batch) -> Losses:
        _, fakes = self._fakes(networks, batch.noise["z"], batch.labels, batch.noise)
        images = batch.images.detach().requires_grad_("r1" in batch.due)
        real = self._logits(networks, images, batch, "real")
        networks["augment"].see(real.sign().flatten())
        found = losses.discriminator_loss(real, self._logits(networks, fakes, batch, "fake"))
        r1 = {"r1": losses.squared_gradient_norm(real, images)} if "r1" in batch.due else {}
        return Losses({"discriminator": found, **r1}, of_phase={"augment/p": networks["augment"].p})

    def _g_losses(self, networks: Networks, batch: Batch) -> Losses:
        styles, fakes = self._fakes(networks, batch.noise["z"], batch.labels, batch.noise)
        logits = self._logits(networks, fakes, batch, "fake")
        found = {"generator": losses.generator_loss_non_saturating(logits)}
        if "path" in batch.due:
            found["path"] = networks["path"](fakes, styles, batch.noise["direction"])
        return Losses(found)

    def sample(self, networks: Networks, latents: Any, labels: Any, noise: Any) -> Tensor:
        _, images = self._fakes(networks, latents["z"], labels, noise)
        return images.float().add(1.0).mul(0.5).clamp(0.0, 1.0)


def experiment(*overrides: str) -> Experiment:
    from tests.helpers import ADAM, TRAINING, experiment
    from tests.proofs.style_networks import NETWORKS

    adam = {**ADAM, "learning_rate": 2e-3, "betas": [0.0, 0.99]}
    objective = {"kind": "custom", "target": f"{__name__}:Style", "options": {"images": 960}}
    parts = {"networks": NETWORKS, "optimizers": {"discriminator": adam, "generator": adam}}
    return experiment({"objective": objective, "training": TRAINING, **parts}, *overrides)
