"""Layers with equalised learning rates (Karras et al. 2018, Progressive GAN, section 4.1): weights
begin as N(0, 1) and are scaled when they are used, so Adam moves the weights of all layers equally
fast."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

GAIN = math.sqrt(2.0)
"""LeakyReLU halves the variance, roughly. √2 f(x) = f(√2 x), so layers take this gain into their
weights and biases, which saves a pass over all pixels."""


def activated(x: Tensor) -> Tensor:
    """LeakyReLU 0.2, in place."""
    return F.leaky_relu_(x, 0.2)


class EqualisedLinear(nn.Linear):
    """y = c W x + r b with c = r / √inputs. W begins as N(0, 1 / r²), and r b as `bias`.

    rate: r, how fast the layer learns in comparison with others (StyleGAN's mapping: 0.01).
    """

    def __init__(self, inputs: int, outputs: int, *, rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__(inputs, outputs)
        nn.init.normal_(self.weight, 0.0, 1.0 / rate)
        nn.init.constant_(self.bias, bias / rate)
        self._rate = rate
        self._gain = rate / math.sqrt(inputs)

    def forward(self, input: Tensor, gain: float = 1.0) -> Tensor:
        """(N, inputs) to (N, outputs), times `gain`."""
        return F.linear(input, self.weight * (self._gain * gain), self.bias * (self._rate * gain))


class EqualisedConv(nn.Conv2d):
    """A convolution by c W with c = 1 / √(inputs · kernel²). W begins as N(0, 1), the bias as 0.

    Without stride it keeps the size of a map. With stride there is no padding.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = True
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self._gain = 1.0 / math.sqrt(inputs * kernel * kernel)

    def forward(self, input: Tensor, gain: float = 1.0) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H', W'), times `gain`."""
        bias = None if self.bias is None else self.bias * gain
        return self._conv_forward(input, self.weight * (self._gain * gain), bias)


def with_unit_mean_square(x: Tensor) -> Tensor:
    """x / √(mean x²), for each row of (N, D)."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
