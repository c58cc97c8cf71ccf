"""Encoder, decoder and discriminator of a latent autoencoder (Esser et al. 2021, VQGAN)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ray_gen.core import PhaseModule, Signature


def halvings(signature: Signature, more: int = 0) -> int:
    """How often a side halves or doubles to become the output's side plus `more`. Raises ValueError
    if that is no whole number, or if there are labels."""
    if signature.label_count is not None:
        raise ValueError("takes no labels; set objective.conditional to false")
    small, large = sorted((signature.input[1], signature.output_shape[1] + more))
    steps = (large // small).bit_length() - 1
    if small << steps != large:
        raise ValueError(f"halves or doubles a side, and {large} is not {small} times 2^n")
    return steps


class Layers(nn.Sequential):
    """A map (N, C, H, W) to another, without labels."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Residual(Layers):
    """Adds x (N, C, H, W) to what its layers make of it, a map of the same shape."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return x + super().forward(x)


def normed_conv(inputs: int, outputs: int) -> nn.Sequential:
    """GroupNorm, swish and a convolution."""
    return nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, 1, 1))


class Encoder(Layers):
    """images (N, C, H, W) to (N, 2c, h, w)."""

    def __init__(self, signature: Signature, *, width: int = 8) -> None:
        first = nn.Conv2d(signature.input[0], width, 3, 1, 1)
        halves = [nn.Conv2d(width, width, 4, 2, 1) for _ in range(halvings(signature))]
        residual = Residual(normed_conv(width, width), normed_conv(width, width))
        super().__init__(first, *halves, residual, normed_conv(width, signature.output_shape[0]))


class Decoder(Layers):
    """z (N, c, h, w) to images (N, C, H, W)."""

    def __init__(self, signature: Signature, *, width: int = 8) -> None:
        first = nn.Conv2d(signature.input[0], width, 3, 1, 1)
        residual = Residual(normed_conv(width, width), normed_conv(width, width))
        doubles = [nn.ConvTranspose2d(width, width, 4, 2, 1) for _ in range(halvings(signature))]
        last = LastLayer(width, signature.output_shape[0], 3, 1, 1)
        super().__init__(first, residual, *doubles, nn.GroupNorm(4, width), nn.SiLU(), last)


class Discriminator(Layers):
    """images (N, C, H, W) to a logit for each patch, (N, 1, h, h) with h = H / 2^n - 2: n strided
    convolutions and two others, BatchNorm between (PatchGAN, Isola et al. 2017, section 3.2.2)."""

    def __init__(self, signature: Signature, *, width: int = 8) -> None:
        layers = [nn.Conv2d(signature.input[0], width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for stride in (2,) * (halvings(signature, 2) - 1) + (1,):
            conv = nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        # Without a bias: within the margins of the hinge loss, its gradients at x and x̂ cancel.
        super().__init__(*layers, nn.Conv2d(width, 1, 4, 1, 1, bias=False))


class LastLayer(PhaseModule, nn.Conv2d):
    """A convolution that measures how hard two losses pull at its weight.

    ratio = ‖∇ L_rec‖ / (‖∇ L_GAN‖ + 1e-4), at most 1e4: the gradients of means over the global
    batch, in the phase before; 0 until there is one (Esser et al. 2021, eq. 7; ε and the bound are
    those of their code).
    """

    ratio: Tensor
    _sums: Tensor

    def __init__(self, *of_conv: int) -> None:
        super().__init__(*of_conv)
        self.register_buffer("ratio", torch.zeros(()))
        sums = torch.zeros(1 + 2 * self.weight.numel())  # of images and of both gradients
        self.register_buffer("_sums", sums, persistent=False)

    def factor(self, *both: Tensor) -> Tensor:
        """The ratio; gradients of L_rec and L_GAN, (N,) each, are collected for the next."""
        slopes = [torch.autograd.grad(of.sum(), self.weight, retain_graph=True)[0] for of in both]
        count = self.weight.new_full((1,), len(both[0]))
        self._sums += torch.cat([count, *(slope.flatten() for slope in slopes)])
        return self.ratio

    def begin_phase(self, original: Tensor | None = None) -> None:
        """Start collecting."""
        self._sums.zero_()

    def phase_statistics(self) -> Tensor | None:
        """The number of images, and the sums of both gradients, flat."""
        return self._sums

    def end_phase(
        self, statistics: Tensor | None, noise: Mapping[str, Tensor] | None = None
    ) -> None:
        """Move the ratio, unless no rank saw an image."""
        assert statistics is not None
        count = statistics[0]
        reconstruction, gan = (statistics[1:] / count.clamp(min=1.0)).chunk(2)
        found = (reconstruction.norm() / (gan.norm() + 1e-4)).clamp(max=1e4)
        self.ratio.copy_(torch.where(count > 0, found, self.ratio))
        self._sums.zero_()
