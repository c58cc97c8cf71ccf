"""The generator of StyleGAN2 (Karras et al. 2020, "Analyzing and improving the image quality of
StyleGAN", section 2 and figure 7): a mapping from z to styles, convolutions whose inputs the styles
scale, noise in every layer, and an image that grows by skip connections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.core import Noise, Signature
from ray_gen.networks.blur import Blur
from ray_gen.networks.equalised import GAIN, EqualisedLinear, activated, with_unit_mean_square
from ray_gen.networks.mapping import LabelMapping, Layers
from ray_gen.networks.resample import Upsample
from ray_gen.networks.running_mean import RunningMean
from ray_gen.networks.sizes import channels_at, halvings
from ray_gen.precision import without_autocast

_NONE: Mapping[str, Tensor] = {}
_DECAY = 0.995
"""Of the mean of all styles, at each update of the generator."""


class StyledLayer(nn.Module):
    """A convolution whose input channels the style scales; then noise, bias and LeakyReLU.

    The weights are scaled back so that outputs have unit variance (eq. 1 and 3):
    w'_oik = s_i w_oik / √(Σ_ik (s_i w_oik)²). Here the inputs are multiplied by s and the outputs
    are divided by the root. This is the same, and one convolution serves all images: on a CPU 1.5
    times as fast as a grouped convolution with the weights of each image (128 channels, 32 x 32).
    doubles: to twice the size, by a transposed convolution and a filter.
    """

    def __init__(self, style_size: int, inputs: int, outputs: int, *, doubles: bool) -> None:
        super().__init__()
        self.scales = EqualisedLinear(style_size, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.blur = Blur(padding=1) if doubles else None

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """x: (N, inputs, H, W); style: (N, W); noise: (N, 1, H', W') of the output's size."""
        scales = self.scales(style)  # (N, inputs)
        variances = scales.square() @ self.weight.square().sum((2, 3)).t()  # (N, outputs)
        back = (variances + 1e-8).rsqrt() * GAIN
        x = x * scales[:, :, None, None]
        if self.blur is None:
            x = F.conv2d(x, self.weight, padding=1)
        else:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)  # 2 H + 1 high
            x, back = self.blur(x), back * 4.0
        back, bias = back.to(x.dtype), (GAIN * self.bias).to(x.dtype)
        x = torch.addcmul(bias[:, None, None], x, back[:, :, None, None])
        return activated(x + (noise * (GAIN * self.noise_strength)).to(x.dtype))


class ToImage(nn.Module):
    """A 1 x 1 convolution to the channels of the image. The style scales its inputs; nothing scales
    them back."""

    def __init__(self, style_size: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scales = EqualisedLinear(style_size, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x: (N, inputs, H, W); style: (N, W)."""
        scales = self.scales(style, 1.0 / math.sqrt(self.weight.shape[1]))
        image = F.conv2d(x * scales[:, :, None, None], self.weight, self.bias)
        return image.to(torch.promote_types(image.dtype, torch.float32))  # bf16 has only 8 bits


class StyleGan2Generator(nn.Module):
    """z (N, D) -> styles (N, L, W) -> images (N, C, H, W).

    A layer at the start map, two at each size up to the image's, and at each size an image, which
    is added to the smaller one. L is the number of layers plus 1, for the last image. The other
    images share the style of the next layer. As published there is no last tanh.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        channel_base: int,
        channel_max: int,
        style_size: int,
        mapping_layers: int,
        mapping_rate: float,
        mixing: float,
        residual: bool,
        deviation_group: int,
    ) -> None:
        super().__init__()
        del residual, deviation_group  # of the discriminator
        (z_size,), image_shape = signature.input, signature.output_shape
        doublings, (height, width) = halvings(image_shape)
        sizes = [(height << i, width << i) for i in range(doublings + 1)]
        channels = [channels_at(*size, channel_base, channel_max) for size in sizes]
        self._mixing = mixing
        self._styles = 2 * len(sizes)
        labels = LabelMapping(signature, style_size)
        self.labels = None if labels.is_empty else labels
        inputs = z_size if self.labels is None else z_size + style_size
        self.mapping = Layers(inputs, style_size, mapping_layers, mapping_rate)
        self.mean_style = RunningMean((style_size,), _DECAY)
        self.start = nn.Parameter(torch.randn(1, channels[0], height, width))
        pairs = [(channels[0], channels[0]), *pairwise(channels)]
        self.first = nn.ModuleList(
            StyledLayer(style_size, a, b, doubles=True) for a, b in pairs[1:]
        )
        self.second = nn.ModuleList(StyledLayer(style_size, b, b, doubles=False) for _, b in pairs)
        self.doubled = Upsample()
        self.to_image = nn.ModuleList(ToImage(style_size, b, image_shape[0]) for _, b in pairs)
        maps = [sizes[0], *(size for size in sizes[1:] for _ in range(2))]
        self._layers = {f"layer_{i}": Noise((1, *size)) for i, size in enumerate(maps)}
        self._mixed = {"other_z": Noise((z_size,)), "mixing": Noise((2,), "uniform")}

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each size. The mapping is in none: it takes the labels."""
        parts = (self.to_image, self.second, [nn.Identity(), *self.first])
        blocks = [nn.ModuleList(block) for block in zip(*parts, strict=True)]
        return [*reversed(blocks)]

    @property
    def noise(self) -> dict[str, Noise]:
        """A map for each layer. In training also another z, whose styles some images use from a
        random layer onwards, and two numbers: whether to mix, and from where."""
        return {**self._mixed, **self._layers} if self._mixes else self._layers

    @property
    def _mixes(self) -> bool:
        return self.training and self._mixing > 0.0

    def styles(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        noise: Mapping[str, Tensor] = _NONE,
        truncation: float = 1.0,
    ) -> Tensor:
        """z (N, D) to styles (N, L, W): in eval mode and without mixing L times the same. Full
        precision under autocast too, as published: in bfloat16 these layers move an image as much
        as all convolutions do (1 % of its root mean square)."""
        with without_autocast(z):
            return self._styled(z, labels, noise, truncation)

    def _styled(
        self, z: Tensor, labels: Tensor | None, noise: Mapping[str, Tensor], truncation: float
    ) -> Tensor:
        of_labels = None if self.labels is None else self.labels(labels)
        style = self._style(z, of_labels)  # (N, W)
        if self.training:
            self.mean_style.see(style)
        styles = style[:, None].expand(-1, self._styles, -1)
        if self._mixes:  # Karras et al. 2019, section 3.1
            mixes, where = noise["mixing"].unbind(1)  # (N,)
            start = 1.0 + (where * (self._styles - 1)).floor()
            layer = torch.arange(self._styles, device=z.device)
            others = (mixes < self._mixing)[:, None] & (layer >= start[:, None])  # (N, L)
            other = self._style(noise["other_z"].to(z.dtype), of_labels)
            styles = torch.where(others[:, :, None], other[:, None], styles)
        if truncation != 1.0:
            styles = self.mean_style.mean.to(styles.dtype).lerp(styles, truncation)
        return styles

    def _style(self, z: Tensor, of_labels: Tensor | None) -> Tensor:
        z = with_unit_mean_square(z)
        return self.mapping(z if of_labels is None else torch.cat([z, of_labels], dim=1))

    def synthesize(self, styles: Tensor, noise: Mapping[str, Tensor] = _NONE) -> Tensor:
        """Styles (N, L, W) to images (N, C, H, W), in (-1, 1) for the most part."""
        style = styles.unbind(1)
        maps = [noise[name] for name in self._layers]
        x = self.second[0](self.start.expand(styles.shape[0], -1, -1, -1), style[0], maps[0])
        image = self.to_image[0](x, style[1])
        for i, first in enumerate(self.first):
            x = first(x, style[2 * i + 1], maps[2 * i + 1])
            x = self.second[i + 1](x, style[2 * i + 2], maps[2 * i + 2])
            image = self.doubled(image) + self.to_image[i + 1](x, style[2 * i + 3])
        return image

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, noise: Mapping[str, Tensor] = _NONE
    ) -> Tensor:
        """z: (N, D); labels: see `Signature`."""
        return self.synthesize(self.styles(z, labels, noise), noise)
