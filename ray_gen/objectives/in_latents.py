"""Any objective in the latents of an autoencoder: it trains on maps z, and samples are decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_gen.core import Clamps, Discriminates, Networks, Noise, Objective, Phase, Signature
from ray_gen.pixels import stretched

NAME = "autoencoder"
"""Name of the module that decodes, among the networks of a run."""
_SHARED = (
    *("watch", "settled"),  # ray_gen.core.Settles
    *("note", "failure"),  # ray_gen.core.Fails
    *("evaluate", "evaluation_noise"),  # ray_gen.core.Evaluates: of latents
    "gives_probability",
)
"""What else the objective may have that concerns latents alone. What it does with images, such as
encode or judge them, is left out: it would need the encoder too."""


class Decoding(nn.Module):
    """The part of an autoencoder that decodes, and how its latents were standardised. It never
    trains: it is in no phase, and stays in eval mode."""

    shift: Tensor
    scale: Tensor

    def __init__(self, networks: Networks, channels: int) -> None:
        super().__init__()
        self.networks = networks
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Decoding:
        """Eval mode, whatever is asked."""
        super().train(False)
        return self

    def latents(self, z: Tensor) -> Tensor:
        """Standardised latents (N, c, h, w) to those that the autoencoder knows."""
        return z * self.scale + self.shift


def check_bounds(objective: Objective) -> str | None:
    """Why an objective cannot make latents. None if it can."""
    if isinstance(objective, Clamps):
        return None
    return (
        f"the samples of {type(objective).__name__} are in [0, 1], and latents have no bounds; give"
        " it `unclamped` (ray_gen.core.Clamps)"
    )


class InLatents(Objective):
    """Trains as the objective that it is made of, on standardised latents in place of images. Its
    samples are images: the autoencoder's `sample` of that objective's samples."""

    def __init__(
        self,
        objective: Objective,
        autoencoder: Objective,
        networks: Callable[[], Networks],
        latent_CHW: tuple[int, int, int],
    ) -> None:
        """networks: builds those of the autoencoder that decode. latent_CHW: shape of z."""
        assert isinstance(objective, Clamps)
        self._objective, self._unclamped = objective, objective.unclamped
        self._autoencoder, self._networks = autoencoder, networks
        self._channels = latent_CHW[0]
        (self._latent,) = autoencoder.latents
        self.image_range = objective.image_range
        self.sampled_from = (*objective.sampled_from, NAME)
        self.latents: Mapping[str, Noise] = objective.latents
        self.has_prior = objective.has_prior
        self.sampling_noise = objective.sampling_noise
        self.judges_latents = isinstance(objective, Discriminates)
        for name in _SHARED:
            if hasattr(objective, name):
                setattr(self, name, getattr(objective, name))

    @property
    def averaged(self) -> tuple[str, ...]:
        """Those of the objective: the autoencoder does not change."""
        return self._objective.averaged

    def networks(self) -> Mapping[str, Signature]:
        """Those of the objective."""
        return self._objective.networks()

    def modules(self) -> Mapping[str, nn.Module]:
        """Those of the objective, and the autoencoder."""
        decoding = Decoding(self._networks(), self._channels)
        return {**self._objective.modules(), NAME: decoding}

    def phases(self) -> Sequence[Phase]:
        """Those of the objective."""
        return self._objective.phases()

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """Decoded samples: (N, C, H, W) in [0, 1]."""
        z = self._unclamped(networks, latents, labels, noise)
        return self.decoded(networks, stretched(z, self.image_range))

    def unclamped(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """As `sample`, before the autoencoder clamps, if it says so."""
        z = stretched(self._unclamped(networks, latents, labels, noise), self.image_range)
        decodes = self._autoencoder
        if not isinstance(decodes, Clamps):
            return self.decoded(networks, z)
        decoding = _decoding(networks)
        given = {self._latent: decoding.latents(z)}
        return decodes.unclamped(decoding.networks, given, None, {})

    def decoded(self, networks: Networks, images: Tensor) -> Tensor:
        """See `ray_gen.core.Decodes`."""
        decoding = _decoding(networks)
        given = {self._latent: decoding.latents(images)}
        return self._autoencoder.sample(decoding.networks, given, None, {})


def _decoding(networks: Networks) -> Decoding:
    found = networks[NAME]
    assert isinstance(found, Decoding)
    return found
