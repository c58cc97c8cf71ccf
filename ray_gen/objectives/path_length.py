"""Path length regularisation: a step between styles changes an image by the same length
everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen import losses
from ray_gen.core import (
    Batch,
    ImageShape,
    Losses,
    Networks,
    Noise,
    Styled,
    Weight,
    noise_of,
)
from ray_gen.errors import Refused
from ray_gen.objectives.game import Addition, Judgements, Round
from ray_gen.phase_sums import PhaseSums

DECAY = 0.99
"""Of the mean length, at each update that has the penalty."""


class PathLengths(Addition):
    """(ℓ - a)² of the generator; see `path_length_losses`."""

    phase = "generator"
    alone = True
    updated = ("path_length",)

    def __init__(self, weight: Weight, image_shape: ImageShape) -> None:
        super().__init__("path_length", weight)
        self.noise = {"direction": Noise(image_shape)}

    def modules(self) -> Mapping[str, nn.Module]:
        """The mean a."""
        return {"path_length": PathLength()}

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """From passes of its own."""
        return path_length_losses(game.networks, game.batch)


class PathLength(PhaseSums):
    """(ℓ - a)², with the running mean a of ℓ. An update uses a, then moves it by 0.01 (E ℓ - a). It
    begins at 0, as published, so the first updates shorten the paths."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__(1)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, lengths: Tensor) -> Tensor:
        """Lengths (N,) to penalties (N,)."""
        seen = lengths.detach().to(self._sums.dtype)
        self.add(seen.sum()[None], len(seen))
        return (lengths - self.mean.to(lengths.dtype)).square()

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """The mean, by an update."""
        return {"mean": self.mean.lerp(sums[0] / count, 1.0 - DECAY)}


def path_length_losses(networks: Networks, batch: Batch) -> Losses:
    """λ (ℓ - a)² on the first half of each group; its weight is λ. With networks "generator" and
    "path_length", and noise "z", "fakes" and "direction".

    Half the images give the mean with half the memory and time (as published). Their losses count
    twice, so that the mean over the batch is the mean over these images. z is that of the other
    losses of this update.

    The published code lowers the learning rate and β of lazy penalties, because it steps Adam once
    more for each penalty (Karras et al. 2020, appendix B). Here a penalty joins the gradient of the
    phase's own update: there is no further step, and nothing to correct.
    """
    generator, size = networks["generator"], batch.group_size
    if not isinstance(generator, Styled):
        raise Refused(
            f"objective.path_length_weight: needs a generator with styles, and "
            f"{type(generator).__name__} has no `styles` and `synthesize` (ray_gen.core.Styled); "
            "set objective.path_length_weight to 0, or networks.generator.kind to stylegan2"
        )
    used = (size + 1) // 2

    def half(values: Tensor) -> Tensor:
        return values.unflatten(0, (-1, size))[:, :used].flatten(0, 1)

    given: Mapping[str, Tensor] = noise_of(batch.noise, "fakes").get("noise", {})
    noise = {name: half(values) for name, values in given.items()}
    labels = None if batch.labels is None else half(batch.labels)
    styles = generator.styles(half(batch.noise["z"]), labels, noise)  # (N/2, L, W)
    images = generator.synthesize(styles, noise)
    path_length = networks["path_length"]
    assert isinstance(path_length, PathLength)
    penalties = path_length(losses.path_lengths(images, styles, half(batch.noise["direction"])))
    of_each = F.pad(penalties.unflatten(0, (-1, used)), (0, size - used)).flatten()  # (N,)
    return Losses(
        {"path_length": of_each * (size / used)},
        of_phase={"path_length/mean": path_length.mean},
    )
