"""The adaptive weight of an adversarial loss (Esser et al. 2021, VQGAN, eq. 7)

    λ = ‖∇ L_rec‖ / (‖∇ L_GAN‖ + ε), at most a bound,

with gradients at the weight of a decoder's last layer. Here they are gradients of the means over
the global batch of the phase before, not of this one: so λ is the same on any number of workers,
and a phase needs no second sum over them. What the delay changes is unmeasured.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ray_gen.phase_sums import PhaseSums


class GradientNorms(PhaseSums):
    """The norms of two losses' gradients at one weight, in the last phase that measured both."""

    norms: Tensor
    """(2,): 0 before the first measurement."""

    def __init__(self, size: int) -> None:
        """size: how many numbers the weight has."""
        super().__init__(2 * size)
        self.register_buffer("norms", torch.zeros(2))

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """The norms of the gradients of means over all images."""
        return {"norms": (sums / count).view(2, -1).norm(dim=1)}


class MeasuredConv2d(nn.Conv2d):
    """A convolution that keeps the size, and that measures how hard two losses pull at its weight.
    (N, inputs, H, W) to (N, outputs, H, W). A decoder whose last layer it is can offer
    `adaptive_weight` (`ray_gen.core.Balances`)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        epsilon: float = 1e-4,
        bound: float = 1e4,
    ) -> None:
        """kernel_size: odd. epsilon, bound: ε and the largest λ, by default those of Esser et al.'s
        code. They belong to the scale of the losses."""
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2)
        self.epsilon, self.bound = epsilon, bound
        self.measured = GradientNorms(self.weight.numel())

    def adaptive_weight(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """λ of the phase before, 0-dimensional and without a gradient; 0 until there is one.

        reconstruction, adversarial: losses of each image, (N,), means over its pixels and patches.
        In a phase that trains this layer, their gradients are collected for the next phase. That
        costs one more backward pass through the discriminator.
        """
        if self.measured.collecting:
            slopes = [
                torch.autograd.grad(losses.sum(), self.weight, retain_graph=True)[0].flatten()
                for losses in (reconstruction, adversarial)
            ]
            self.measured.add(torch.cat(slopes), reconstruction.shape[0])
        of_reconstruction, of_adversarial = self.measured.norms.unbind()
        return (of_reconstruction / (of_adversarial + self.epsilon)).clamp(max=self.bound)
