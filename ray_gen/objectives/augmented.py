"""What the discriminator of a GAN sees: images, changed at random by DiffAugment or by ADA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ray_gen.augment import augment, augment_noise
from ray_gen.augment.ada import Ada
from ray_gen.core import Batch, ImageShape, Losses, Networks, NoiseOf, Noises, Number, noise_of
from ray_gen.losses import mean_of_each
from ray_gen.phase_sums import PhaseSums


class Augmentation(Protocol):
    """Changes what D sees in all phases. Its noise, modules and numbers become the objective's."""

    noise: Noises
    numbers: Mapping[str, Number]
    updated: tuple[str, ...]
    """The modules that D's phase updates."""

    def modules(self) -> Mapping[str, nn.Module]:
        """The objective's own modules that it needs."""
        ...

    def __call__(
        self, networks: Networks, images: Tensor, batch: Batch, *, generated: bool
    ) -> Tensor:
        """images_NCHW, real or generated, to what D sees of them."""
        ...

    def watch(self, networks: Networks, batch: Batch, real: Tensor) -> Losses:
        """Takes note of D's logits of real images in D's phase. Minimises nothing, but may report
        something."""
        ...


class DiffAugmented:
    """DiffAugment (Zhao et al. 2020). A real image and its generated partner share one draw."""

    numbers: Mapping[str, Number] = {}
    updated: tuple[str, ...] = ()

    def __init__(self, names: Sequence[str], *, opacity: bool) -> None:
        self._names, self._opacity = tuple(names), opacity
        self.noise: Noises = augment_noise(self._names)

    def modules(self) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def __call__(
        self, networks: Networks, images: Tensor, batch: Batch, *, generated: bool
    ) -> Tensor:
        """images_NCHW to the same."""
        return augment(images, self._names, batch.noise, opacity=self._opacity)

    def watch(self, networks: Networks, batch: Batch, real: Tensor) -> Losses:
        """Nothing to note."""
        return Losses({})


class AdaAugmented:
    """ADA (Karras et al. 2020): each image gets each transform with probability p, which is a
    number, a schedule, or adaptive."""

    updated: tuple[str, ...] = ("augment_p",)

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        opacity: bool,
        p: Number | None,
        multipliers: Mapping[str, float],
        shared: bool,
        middle: float,
        target: float,
        images: float,
        max_p: float,
    ) -> None:
        """p: None if it is adaptive. shared: whether a real image and its generated partner share
        one draw. middle: the logit between real and generated images, from which `target`
        counts. target, images, max_p: as `AdaptiveP`."""
        self._shape, self._opacity, self._multipliers = image_shape, opacity, dict(multipliers)
        self._adaptive, self._middle = p is None, middle
        self._target, self._images, self._max_p = target, images, max_p
        self._of_generated = "augment_real" if shared else "augment_fake"
        names = dict.fromkeys(("augment_real", self._of_generated))
        self.noise: Noises = {name: NoiseOf("augment") for name in names}
        self.numbers: Mapping[str, Number] = {} if p is None else {"augment_p": p}
        self._reports = p is None or not isinstance(p, (int, float))

    def modules(self) -> Mapping[str, nn.Module]:
        """The transforms, and the state of an adaptive p: a fixed p may become adaptive during a
        run, or the reverse."""
        return {
            "augment": Ada(self._shape, self._multipliers, opacity=self._opacity),
            "augment_p": AdaptiveP(self._target, self._images, self._max_p),
        }

    def __call__(
        self, networks: Networks, images: Tensor, batch: Batch, *, generated: bool
    ) -> Tensor:
        """images_NCHW to the same."""
        drawn = noise_of(batch.noise, self._of_generated if generated else "augment_real")
        return networks["augment"](images, self._p(networks, batch), **drawn)

    def watch(self, networks: Networks, batch: Batch, real: Tensor) -> Losses:
        """Reports p unless it is constant. An adaptive p moves by the signs of the logits."""
        of_phase = {"augment/p": self._p(networks, batch)} if self._reports else {}
        if not self._adaptive:
            return Losses({}, of_phase=of_phase)
        signs = mean_of_each((real.detach() - self._middle).sign())
        networks["augment_p"](signs)
        return Losses({}, {"augment/sign": signs}, of_phase)

    def _p(self, networks: Networks, batch: Batch) -> Tensor:
        if not self._adaptive:
            return batch.numbers["augment_p"]
        return networks["augment_p"].get_buffer("p")


class AdaptiveP(PhaseSums):
    """The probability p of adaptive discriminator augmentation (Karras et al. 2020, section 3).

    r = E sign D(x) over four phases of D. D overfits where r is above the target: then p grows, by
    1 in `images` images. Else it falls. p stays in [0, max_p].
    """

    PHASES = 4

    p: Tensor
    """0-dimensional."""
    since: Tensor
    """(3,): Σ sign D(x), images and phases since p last moved."""

    def __init__(self, target: float, images: float, max_p: float) -> None:
        super().__init__(1)
        self._target, self._images, self._max_p = target, images, max_p
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("since", torch.zeros(3))

    def forward(self, signs: Tensor) -> None:
        """Signs of real images, (N,), in a phase that updates D."""
        self.add(signs.sum()[None], len(signs))

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """p moves after every fourth phase that saw images."""
        one = torch.ones_like(count)
        signs, seen, phases = self.since + torch.stack([sums[0], count, one])
        way = (signs / seen - self._target).sign() * seen / self._images
        due = phases >= self.PHASES
        return {
            "p": torch.where(due, (self.p + way).clamp(0.0, self._max_p), self.p),
            "since": torch.where(due, 0.0, torch.stack([signs, seen, phases])),
        }
