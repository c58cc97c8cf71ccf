"""The discriminator of StyleGAN2 (Karras et al. 2020, section 4.1 and figure 7): residual blocks
without normalisation, and a channel that tells how much the images of a group differ."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from ray_gen.core import Signature
from ray_gen.networks.blur import Blur
from ray_gen.networks.equalised import (
    GAIN,
    EqualisedConv,
    EqualisedLinear,
    activated,
)
from ray_gen.networks.mapping import LabelMapping, Layers
from ray_gen.networks.resample import Downsample
from ray_gen.networks.running_mean import RunningMean
from ray_gen.networks.sizes import channels_at, halvings
from ray_gen.precision import without_autocast

_DECAY = 0.99
"""Of the mean deviation, at each update of the discriminator."""


class GroupDeviation(nn.Module):
    """Appends a channel with the standard deviation between the images of a group, the mean over
    channels and pixels (Karras et al. 2018, section 3).

    Groups are consecutive images. In eval mode the channel is the mean over training: an image's
    logit must not depend on other images.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self._group = group
        self.usual = RunningMean((), _DECAY)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + 1, H, W). In training N is a multiple of the group."""
        if self.training:
            groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(
                0, (-1, self._group)
            )
            deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().flatten(1).mean(1)
            self.usual.see(deviation)
            deviation = deviation[:, None].expand(-1, self._group).reshape(-1)  # (N,)
        else:
            deviation = self.usual.mean.expand(x.shape[0])
        channel = deviation.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return torch.cat([x, channel], dim=1)


class DownBlock(nn.Module):
    """(N, inputs, H, W) to (N, outputs, H/2, W/2). residual: plus the input, filtered, halved and
    brought to as many channels; the sum is divided by √2."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        self.first = EqualisedConv(inputs, inputs, 3)
        self.second = EqualisedConv(inputs, outputs, 3, stride=2)
        self.skip = EqualisedConv(inputs, outputs, 1, bias=False) if residual else None
        self.blur, self.halved = Blur(padding=2), Downsample()

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        inner = self.blur(activated(self.first(x, GAIN)))
        if self.skip is None:
            return activated(self.second(inner, GAIN))
        skipped = self.skip(self.halved(x), math.sqrt(0.5))
        return skipped + activated(self.second(inner, GAIN * math.sqrt(0.5)))


class StyleGan2Discriminator(nn.Module):
    """images (N, C, H, W) -> (N, K): one logit, or the output of an encoder.

    With labels an output is ⟨f(x), m(label)⟩ / √W, with features f of the image and a mapping m of
    the label (Karras et al. 2020, ADA, after Miyato and Koyama 2018).
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
        del mixing  # of the generator
        steps, (height, width) = halvings(signature.input)
        channels = [
            channels_at(height << i, width << i, channel_base, channel_max)
            for i in reversed(range(steps + 1))
        ]
        self.from_image = EqualisedConv(signature.input[0], channels[0], 1)
        # Named by the height of their input, so that `training.start_from` finds a block that does
        # the same in a network for images of another size.
        heights = [height << i for i in reversed(range(1, steps + 1))]
        blocks = [DownBlock(a, b, residual=residual) for a, b in pairwise(channels)]
        names = (f"b{height}" for height in heights)
        self.blocks = nn.Sequential(OrderedDict(zip(names, blocks, strict=True)))
        last = channels[-1]
        self.deviation = GroupDeviation(deviation_group) if deviation_group > 1 else None
        self.conv = EqualisedConv(last + (self.deviation is not None), last, 3)
        labels = LabelMapping(signature, style_size)
        self.labels = None if labels.is_empty else labels
        if self.labels is not None:
            self.mapping = Layers(style_size, style_size, mapping_layers, mapping_rate)
        self._outputs = signature.output_shape[0]
        of_each = 1 if self.labels is None else style_size
        self.dense = EqualisedLinear(last * height * width, last)
        self.output = EqualisedLinear(last, self._outputs * of_each)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each size, and the last layers."""
        blocks = [*self.blocks]
        first = nn.ModuleList([self.from_image, *blocks[:1]])
        return [first, *blocks[1:], nn.ModuleList([self.conv, self.dense, self.output])]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: (N, C, H, W); labels: see `Signature`."""
        x = self.blocks(activated(self.from_image(images, GAIN)))
        if self.deviation is not None:
            x = self.deviation(x)
        x = activated(self.conv(x, GAIN))
        found = self.output(activated(self.dense(x.flatten(1), GAIN)))
        if self.labels is None:
            return found  # (N, K)
        with without_autocast(found):
            of_label = self.mapping(self.labels(labels))  # (N, W)
        features = found.unflatten(1, (self._outputs, -1))  # (N, K, W)
        return (features * of_label[:, None]).sum(2) / math.sqrt(of_label.shape[1])
