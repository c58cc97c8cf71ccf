"""What training StyleGAN2-ADA moves besides weights: once a phase, from sums over all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen.core import Noise, PhaseModule


class _OfImages(PhaseModule):
    """Adds up a value of each image, and counts them, over a phase and all ranks."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, start in buffers.items():
            self.register_buffer(name, start)
        self.register_buffer("_sums", torch.zeros(2), persistent=False)  # 0 between phases

    def see(self, values: Tensor) -> None:
        """values: (N,). To be called in the phase that updates this module, and in no other."""
        self._sums += torch.stack([values.detach().sum(), values.new_full((), len(values))])

    def phase_statistics(self) -> Tensor | None:
        return self._sums

    def end_phase(self, statistics: Tensor | None, noise: object = None) -> None:
        assert statistics is not None
        self.move(*statistics.unbind())
        self._sums.zero_()


class PathLength(_OfImages):
    """(ℓ - a)², ℓ = ‖Jᵀ y‖ with y ~ N(0, 1 / HW) in pixels, the norm on average over layers (Karras
    et al. 2020, StyleGAN2, eq. 4). A phase uses a, then moves it by 0.01 (E ℓ - a)."""

    def __init__(self) -> None:
        super().__init__(mean=torch.zeros(()))

    def forward(self, images: Tensor, styles: Tensor, direction: Tensor) -> Tensor:
        """(N,). images: (N, C, H, W), made of styles: (N, L, W); direction: N(0, 1) in pixels."""
        along = (images * direction).sum() / (images.shape[2] * images.shape[3]) ** 0.5
        (gradient,) = torch.autograd.grad(along, styles, create_graph=True)  # (N, L, W)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        self.see(lengths)
        return (lengths - self.mean).square()

    def move(self, total: Tensor, count: Tensor) -> None:
        moved = self.mean.lerp(total / count.clamp(min=1.0), 0.01)
        self.mean.copy_(torch.where(count > 0, moved, self.mean))


class AdaptiveAugment(_OfImages):
    """Mirrors an image with probability p / 2, and changes its brightness with p. Where E sign D(x)
    over `every` phases lies above `target`, D overfits and p grows, by 1 in `images` images, else
    it falls (Karras et al. 2020, ADA, section 3.2). From 0.8 on it would leak."""

    def __init__(self, *, images: float, every: int = 4, target: float = 0.6) -> None:
        super().__init__(p=torch.zeros(()), since=torch.zeros(3))  # Σ sign D(x), images, phases
        self.noise = {"mirror": Noise((), "uniform"), "lit": Noise((), "uniform"), "by": Noise(())}
        self.images, self.every, self.target = images, every, target

    def forward(self, images: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """(N, C, H, W) to the same, differentiable. noise: (N,) each."""
        mirrored = (noise["mirror"] < 0.5 * self.p)[:, None, None, None]
        brightness = 0.2 * noise["by"] * (noise["lit"] < self.p)  # (N,)
        return torch.where(mirrored, images.flip(3), images) + brightness[:, None, None, None]

    def move(self, total: Tensor, count: Tensor) -> None:
        signs, seen, phases = self.since + torch.stack([total, count, count.sign()])
        way = (signs / seen.clamp(min=1.0) - self.target).sign() * seen / self.images
        due = phases >= self.every
        self.p.copy_(torch.where(due, (self.p + way).clamp(0.0, 0.8), self.p))
        self.since.copy_(torch.where(due, 0.0, torch.stack([signs, seen, phases])))
