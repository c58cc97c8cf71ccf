"""The blocks of a plain row of layers, for `ray_gen.core.InBlocks`."""

from __future__ import annotations

from torch import nn

_WITH_A_WEIGHT = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def blocks_of(layers: nn.Sequential) -> list[nn.Module]:
    """Each linear or convolutional layer with what follows it, in order. The first layer must be
    one."""
    starts = [n for n, layer in enumerate(layers) if isinstance(layer, _WITH_A_WEIGHT)]
    ends = [*starts[1:], len(layers)]
    return [layers[start:end] for start, end in zip(starts, ends, strict=True)]
