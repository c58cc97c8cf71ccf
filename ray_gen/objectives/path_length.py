"""Path length regularisation: a step between styles changes an image by the same length
everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen import losses
from ray_gen.core import Batch, Losses, Networks, PhaseModule, Styled, noise_of
from ray_gen.errors import Refused

DECAY = 0.99
"""Of the mean length, at each update that has the penalty."""


class PathLength(PhaseModule):
    """(ℓ - a)², with the running mean a of ℓ. An update uses a, then moves it by 0.01 (E ℓ - a). It
    begins at 0, as published, so the first updates shorten the paths."""

    mean: Tensor
    _sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        # The lengths of this phase, and their number. Keeps its address: a CUDA graph adds to it.
        self.register_buffer("_sums", torch.zeros(2), persistent=False)

    def forward(self, lengths: Tensor) -> Tensor:
        """Lengths (N,) to penalties (N,)."""
        seen = lengths.detach().to(self._sums.dtype)
        self._sums += torch.stack([seen.sum(), seen.new_full((), len(seen))])
        return (lengths - self.mean.to(lengths.dtype)).square()

    def begin_phase(self, original: Tensor | None = None) -> None:
        """Forgets what it saw outside of a phase."""
        self._sums.zero_()

    def phase_statistics(self) -> Tensor | None:
        """The sum of the lengths, and their number."""
        return self._sums

    def end_phase(self, statistics: Tensor | None, noise: object = None) -> None:
        """Moves the mean, if the phase saw images."""
        assert statistics is not None
        total, count = statistics.unbind()
        moved = self.mean.lerp(total / count.clamp(min=1.0), 1.0 - DECAY)
        self.mean.copy_(torch.where(count > 0, moved, self.mean))
        self._sums.zero_()


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
