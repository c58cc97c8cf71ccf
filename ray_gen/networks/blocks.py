"""The blocks of a plain row of layers, for `ray_gen.core.InBlocks` and `ray_gen.core.Featured`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ray_gen.errors import Refused

_WITH_A_WEIGHT = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def blocks_of(layers: nn.Sequential) -> list[nn.Module]:
    """Each linear or convolutional layer with what follows it, in order. The first layer must be
    one."""
    starts = [n for n, layer in enumerate(layers) if isinstance(layer, _WITH_A_WEIGHT)]
    ends = [*starts[1:], len(layers)]
    return [layers[start:end] for start, end in zip(starts, ends, strict=True)]


def ends_of(layers: nn.Sequential) -> tuple[int, ...]:
    """The number of the last layer, from 0, of each block."""
    starts = [n for n, layer in enumerate(layers) if isinstance(layer, _WITH_A_WEIGHT)]
    return tuple(n - 1 for n in (*starts[1:], len(layers)))


def with_features(
    layers: Iterable[nn.Module], ends: tuple[int, ...], x: Tensor, layer: int | None
) -> tuple[Tensor, Tensor]:
    """The output of a row of layers for x, and that of its `layer`-th block, from 1; None: of the
    last one. ends: the number of each block's last layer."""
    if not ends:
        raise Refused("networks.discriminator: has no block before its output; give it one")
    if layer is not None and not 1 <= layer <= len(ends):
        raise Refused(
            f"objective.feature_layer: {layer}, but the discriminator has {len(ends)} blocks "
            f"before its output; set it to 1 to {len(ends)}, or to null for the last"
        )
    wanted, found = ends[-1 if layer is None else layer - 1], x
    for number, one in enumerate(layers):
        x = one(x)
        if number == wanted:
            found = x
    return x, found
