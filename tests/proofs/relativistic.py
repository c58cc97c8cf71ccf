"""R3GAN (Huang et al. 2024): a paired loss, R1 and R2, from two passes of D and one of G."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import leaky_relu, softplus

from ray_gen import core
from ray_gen.core import Batch, Losses, Networks, Noise, Phase, Shape, Signature, Term, Weight
from ray_gen.experiment import Experiment
from ray_gen.experiment.schedules import number
from ray_gen.losses import squared_gradient_norm


class Relativistic(core.Objective):
    """min_G max_D E f(D(G(z)) - D(x)), f(t) = -log(1 + e^-t) (eq. 2), with γ/2 of R1 and of R2
    (algorithm 1). half_gamma: a schedule. every: updates of D from one penalty to the next."""

    image_range = (-1.0, 1.0)
    sampled_from = ("generator",)

    def __init__(
        self, *, image_shape: Shape, label_count: int | None, half_gamma: Any, every: int = 1
    ) -> None:
        self.latents = {"z": Noise((5,))}
        self._g = Signature((5,), image_shape, label_count)
        self._features = Signature(image_shape, (8,), label_count)
        self._penalty = Weight(number(half_gamma), every)

    def networks(self) -> Mapping[str, Signature]:
        return {"generator": self._g, "discriminator": self._features}

    def modules(self) -> Mapping[str, nn.Module]:
        """D's last layer, without a bias: it would cancel in D(x) - D(G(z)) and never move."""
        return {"head": nn.Linear(8, 1, bias=False)}

    def phases(self) -> Sequence[Phase]:
        weights = {"discriminator": Weight(), "r1": self._penalty, "r2": self._penalty}
        d = Term("discriminator", self._d_losses, full_precision=True, weights=weights)
        g = Term("generator", self._g_loss)
        d_phase = Phase("discriminator", ("discriminator", "head"), (d,), self.latents)
        return [d_phase, Phase("generator", ("generator",), (g,), self.latents)]

    def _logits(self, networks: Networks, images: Tensor, batch: Batch) -> Tensor:
        features = networks["discriminator"](images, batch.labels)  # (N, 8)
        return networks["head"](leaky_relu(features, 0.2)).to(batch.images.dtype).flatten()  # (N,)

    def _d_losses(self, networks: Networks, batch: Batch) -> Losses:
        fakes = networks["generator"](batch.noise["z"], batch.labels)  # (N, C, H, W)
        real_images = batch.images.detach().requires_grad_("r1" in batch.due)
        fake_images = fakes.detach().requires_grad_("r2" in batch.due)
        real, fake = (self._logits(networks, x, batch) for x in (real_images, fake_images))
        of = {"r1": (real, real_images), "r2": (fake, fake_images)}
        penalties = {n: squared_gradient_norm(*of[n]) for n in of if n in batch.due}
        return Losses({"discriminator": softplus(fake - real), **penalties})

    def _g_loss(self, networks: Networks, batch: Batch) -> Losses:
        fakes = networks["generator"](batch.noise["z"], batch.labels)
        real, fake = (self._logits(networks, x, batch) for x in (batch.images, fakes))
        return Losses({"generator": softplus(real - fake)})

    def sample(self, networks: Networks, latents: Any, labels: Any, noise: Any) -> Tensor:
        return networks["generator"](latents["z"], labels).float().add(1.0).mul(0.5).clamp(0.0, 1.0)


def experiment(*overrides: str) -> Experiment:
    from tests.helpers import ADAM, TRAINING, experiment

    cosine = {"kind": "cosine", "until_images": 24 * 16}
    options = {"half_gamma": {**cosine, "start": 1.0, "end": 0.1}}
    network = {"kind": "dcgan", "width": 8, "batch_norm": False}
    adam = {**ADAM, "betas": [0.0, {**cosine, "start": 0.9, "end": 0.99}]}
    objective = {"kind": "custom", "target": f"{__name__}:Relativistic", "options": options}
    both = {"networks": network, "optimizers": adam}
    parts = {part: {"generator": of, "discriminator": of} for part, of in both.items()}
    return experiment({"objective": objective, "training": TRAINING, **parts}, *overrides)
