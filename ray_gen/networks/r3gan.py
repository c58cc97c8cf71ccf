"""R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN! A modern GAN baseline"): residual
networks of grouped convolutions without normalisation, styles or noise.

A block is x + W₃ φ(W₂ φ(W₁ x)). W₁ and W₃ are 1 x 1 convolutions to `expansion` times the channels
and back, W₂ is a grouped 3 x 3 convolution, φ adds a learned bias and is LeakyReLU 0.2. Weights
begin as N(0, g² / fan-in): W₁ and W₂ with g = √(2 / 1.04) L^(-1/4) for the L blocks of the network,
so that the variance of the output does not grow with L (Zhang et al. 2019, Fixup), W₃ with 0, all
others with g = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, linear

from ray_gen.core import Shape, Signature
from ray_gen.networks.labels import code_size, label_code
from ray_gen.networks.resample import Downsample, Upsample
from ray_gen.networks.sizes import halvings
from ray_gen.precision import autocast_type, without_autocast

_SLOPE = 0.2


def _weight(*shape: int, gain: float = 1.0) -> nn.Parameter:
    """N(0, gain² / fan-in)"""
    return nn.Parameter(torch.randn(shape) * (gain / math.sqrt(math.prod(shape[1:]))))


class _Pointwise(nn.Module):
    """A 1 x 1 convolution without a bias, as a matrix product. For channels-last maps it needs no
    copy, and its second derivative is a product too: the two backward passes of R1 through 96
    to 192 channels, 32 images of 32 x 32, take 142 ms of a CPU core, and 217 ms through torch's
    convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = _weight(outputs, inputs)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)"""
        weight = self.weight.to(x.dtype)
        return linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """x + W₃ φ(W₂ φ(W₁ x)): (N, C, H, W) to the same."""

    def __init__(self, channels: int, expansion: int, group_width: int, depth: int) -> None:
        super().__init__()
        hidden = expansion * channels
        width = math.gcd(hidden, group_width)
        self._groups = hidden // width
        gain = math.sqrt(2 / (1 + _SLOPE**2)) * depth**-0.25
        self.widen = _Pointwise(channels, hidden)
        self.grouped = _weight(hidden, width, 3, 3, gain=gain)
        self.narrow = _Pointwise(hidden, channels)
        self.biases = nn.ParameterList(torch.zeros(hidden) for _ in range(2))
        with torch.no_grad():
            self.widen.weight.mul_(gain)
            self.narrow.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)"""
        first, second = (bias.to(x.dtype) for bias in self.biases)
        y = leaky_relu(self.widen(x, first), _SLOPE, inplace=True)
        y = conv2d(y, self.grouped.to(x.dtype), second, padding=1, groups=self._groups)
        return x + self.narrow(leaky_relu(y, _SLOPE, inplace=True))


class _Stages:
    """The shapes of a network's stages. Stage 0 has the start map. Each next stage has twice its
    sides, and the last one those of the image."""

    def __init__(
        self,
        image_shape: Shape,
        *,
        width: int,
        full_width_stages: int,
        blocks: int,
        expansion: int,
        group_width: int,
        bf16_from: int,
    ) -> None:
        steps, self.start = halvings(image_shape)
        self.widths = [width >> max(0, n + 1 - full_width_stages) for n in range(steps + 1)]
        self.in_bf16 = [min(self.start) << n >= bf16_from for n in range(steps + 1)]
        self._blocks, self._depth = blocks, blocks * (steps + 1)
        self._expansion, self._group_width = expansion, group_width

    def blocks_of(self, stage: int) -> list[nn.Module]:
        """New residual blocks of a stage."""
        shape = self.widths[stage], self._expansion, self._group_width, self._depth
        return [_Block(*shape) for _ in range(self._blocks)]


def _change(inputs: int, outputs: int) -> list[nn.Module]:
    return [_Pointwise(inputs, outputs)] if inputs != outputs else []


class R3ganGenerator(nn.Module):
    """z (N, vector_size) -> images (N, C, H, W), without bounds unless `tanh` is set and the
    signature asks for it.

    A vector that is linear in the labels joins z. A linear map of both weighs a learned start map
    of each channel.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        label_size: int,
        tanh: bool,
        **shape: int,
    ) -> None:
        """shape: arguments of `_Stages`."""
        super().__init__()
        stages = _Stages(signature.output_shape, **shape)
        self._in_bf16 = stages.in_bf16
        self._tanh = tanh and signature.activation == "tanh"
        self._signature, code = signature, code_size(signature)
        self.from_labels = _weight(label_size, code) if code else None
        inputs = signature.input[0] + (label_size if code else 0)
        self.from_vector = _weight(stages.widths[0], inputs)
        self.start = nn.Parameter(torch.randn(1, stages.widths[0], *stages.start))
        self.stages = nn.ModuleList()
        for n, width in enumerate(stages.widths):
            up = [] if n == 0 else [*_change(stages.widths[n - 1], width), Upsample()]
            self.stages.append(nn.Sequential(*up, *stages.blocks_of(n)))
        self.to_image = _Pointwise(stages.widths[-1], signature.output_shape[0])

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: (N, vector_size); labels: see `Signature`."""
        full = self.from_vector.dtype
        low = autocast_type(z) or full
        with without_autocast(z):
            vector = z.to(full)
            if self.from_labels is not None:
                code = label_code(labels, self._signature, like=vector)
                vector = torch.cat([vector, linear(code, self.from_labels)], dim=1)
            x = linear(vector, self.from_vector)[:, :, None, None] * self.start
            for stage, in_bf16 in zip(self.stages, self._in_bf16, strict=True):
                x = stage(x.to(low if in_bf16 else full))
            images = self.to_image(x).to(full)
            return images.tanh() if self._tanh else images

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: a block is a stage."""
        *others, last = self.stages
        return [nn.ModuleList([self.to_image, last]), *reversed(others)]


class R3ganDiscriminator(nn.Module):
    """images (N, C, H, W) -> (N, vector_size): one logit, or the output of an encoder. The
    generator mirrored.

    At its end each channel is weighted by a learned map and summed: features (N, width). With
    labels, a logit is the inner product of a linear map of the features and a vector that is linear
    in the labels (Miyato and Koyama 2018).
    """

    def __init__(self, signature: Signature, *, label_size: int, tanh: bool, **shape: int) -> None:
        """shape: arguments of `_Stages`."""
        super().__init__()
        del label_size, tanh  # here the vector of a label is as long as the features
        stages = _Stages(signature.input, **shape)
        self._in_bf16 = stages.in_bf16
        self.from_image = _Pointwise(signature.input[0], stages.widths[-1])
        self.stages = nn.ModuleList()  # stage 0 first
        for n, width in enumerate(stages.widths):
            down = [] if n == 0 else [Downsample(), *_change(width, stages.widths[n - 1])]
            self.stages.append(nn.Sequential(*stages.blocks_of(n), *down))
        features, outputs = stages.widths[0], signature.output_shape[0]
        self.end = nn.Parameter(
            torch.randn(features, *stages.start) / math.prod(stages.start) ** 0.5
        )
        self._signature, code = signature, code_size(signature)
        self.from_labels = _weight(features, code, gain=features**-0.5) if code else None
        self.to_vector = _weight(outputs * (features if code else 1), features)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: (N, C, H, W); labels: see `Signature`."""
        full = self.end.dtype
        low = autocast_type(images) or full
        with without_autocast(images):
            x = images.to(full).to(low if self._in_bf16[-1] else full)
            x = self.from_image(x)
            for stage, in_bf16 in zip(reversed(self.stages), reversed(self._in_bf16), strict=True):
                x = stage(x.to(low if in_bf16 else full))
            features = (x.to(full) * self.end).sum((2, 3))  # (N, width)
            outputs = linear(features, self.to_vector)
            if self.from_labels is None:
                return outputs
            vector = linear(label_code(labels, self._signature, like=outputs), self.from_labels)
            return (outputs.unflatten(1, (-1, vector.shape[1])) * vector[:, None]).sum(2)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: a block is a stage."""
        *others, last = self.stages
        return [nn.ModuleList([self.from_image, last]), *reversed(others)]
