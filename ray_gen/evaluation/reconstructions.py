"""Held-out images, and what a model makes of them: the same crops on both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ray_gen.core import Codes, Encodes, Noise, Objective, Reconstructs, posteriors_of
from ray_gen.distributed import World
from ray_gen.evaluation.images import Images, gathered
from ray_gen.evaluation.subject import Subject
from ray_gen.pixels import quantised, stretched, unit
from ray_gen.sampling import latents_of, noise_for

PURPOSE = "reconstruction"
"""Name of the noise of reconstructions."""


class Originals:
    """Held-out images that a model reconstructs, with their labels."""

    def __init__(self, images: Images, labels: Tensor | None, subject: Subject) -> None:
        """labels: of these images, (N,). None: the model takes none."""
        self._images, self._labels, self._subject = images, labels, subject
        self.description, self.digest = images.description, images.digest

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: Sequence[int]) -> Tensor:
        """(N, C, H, W) on the device: uint8, 0 to 255, or uint16, 0 to 65,535."""
        return self._images.take(indices)

    def seen(self, levels: Tensor) -> Tensor:
        """Levels (N, C, H, W) of `take` as the networks see them."""
        subject = self._subject
        return stretched(unit(levels, subject.dtype), subject.objective.image_range)

    def labels_of(self, first: int, count: int, device: torch.device) -> Tensor | None:
        """Labels of consecutive images, (count,)."""
        return None if self._labels is None else self._labels[first : first + count].to(device)


class Reconstructed:
    """The reconstructions of a model, rounded to the levels of its data. Image i depends only on
    the original i, on the seed and on i."""

    digest = None  # statistics of a model's images are never cached

    def __init__(self, subject: Subject, originals: Originals, seed: int, *, drawn: bool) -> None:
        """drawn: from one draw of the posterior, and not from its mean. The objective then is
        `Encodes`, else `Reconstructs`."""
        self._subject, self._originals, self._seed, self._drawn = subject, originals, seed, drawn
        how = f"one draw of the posterior, seed {seed}" if drawn else "the posterior's mean"
        if has_codes(subject.objective):
            how = "codes"
        rounded = f"to {2**subject.bits:,} levels"
        self.description = {**subject.description, "made from": how, "rounded": rounded}

    def __len__(self) -> int:
        return len(self._originals)

    @torch.no_grad()
    def take(self, indices: Sequence[int]) -> Tensor:
        """(N, C, H, W) on the device of the networks: uint8 or uint16. indices: consecutive."""
        subject, seed, dtype = self._subject, self._seed, self._subject.dtype
        objective, networks = subject.objective, subject.networks
        images = self._originals.seen(self._originals.take(indices))
        labels = self._originals.labels_of(indices[0], len(indices), images.device)
        numbers = torch.tensor(indices, device=images.device)
        noise = noise_for(objective.sampling_noise, networks, seed, PURPOSE, numbers, dtype)
        if self._drawn:
            made = self._from_a_draw(objective, images, labels, numbers, noise)
        else:
            assert isinstance(objective, Reconstructs)
            made = objective.reconstruct(networks, images, labels, noise)
        return quantised(made, subject.bits)

    def _from_a_draw(
        self,
        objective: Objective,
        images: Tensor,
        labels: Tensor | None,
        numbers: Tensor,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        assert isinstance(objective, Encodes)
        networks, latents = self._subject.networks, dict[str, Tensor]()
        for name, (mean, log_variance) in posteriors_of(
            objective, networks, images, labels
        ).items():
            latents[name] = mean
            if log_variance is not None:
                spec = {name: Noise(tuple(mean.shape[1:]))}
                epsilon = latents_of(spec, self._seed, PURPOSE, numbers, mean.dtype)[name]
                latents[name] = mean + (0.5 * log_variance).exp() * epsilon
        return objective.sample(networks, latents, labels, noise)


def has_codes(objective: Objective | None) -> bool:
    """Whether latents of images are codes, and no distribution."""
    return isinstance(objective, Codes) and bool(objective.code_count)


class Rows:
    """Keeps some numbers of each image of a pass, float64 (N, K). Their means do not depend on the
    number of ranks: every rank adds all rows in one order."""

    def __init__(
        self, function: Callable[[int, Tensor], Tensor], size: int, own: range, world: World
    ) -> None:
        """function: from the number of the first image, and images (N, C, H, W), to (N, size) or,
        for size 1, (N,). own: the numbers of this rank's images."""
        self._function, self._own, self._world = function, own, world
        self._rows = torch.zeros(len(own), size, dtype=torch.float64)

    @torch.no_grad()
    def see(self, first: int, images: Tensor) -> None:
        """Adds a batch. first: number of its first image."""
        start = first - self._own.start
        found = self._function(first, images).double()
        self._rows[start : start + len(images)] = found.reshape(len(images), -1).cpu()

    def of_all(self, count: int) -> Tensor:
        """The rows of all images, float64 (count, size) on the CPU. Collective: every rank, same
        order."""
        return gathered(self._rows.to(self._world.device), self._own, count, self._world)


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """The mean of (N,) and its standard error. None: there is only one value."""
    mean = values.mean().item()
    return mean, None if len(values) == 1 else (values.std() / len(values) ** 0.5).item()
