"""What all discrete bottlenecks have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ray_gen.core import Noise


class Quantised(NamedTuple):
    """A map of encodings as a map of codes, in training."""

    z_q: Tensor
    """(N, c, h, w): the codes. A gradient at them passes to the encodings, as the kind of
    bottleneck says."""
    indices: Tensor
    """int64 (N, h, w), from 0 to below `code_count`."""
    losses: Mapping[str, Tensor]
    """By the names in `loss_names`: (N,) each, means over positions, without weights."""
    of_phase: Mapping[str, Tensor]
    """Numbers to report of the phase before, 0-dimensional: perplexity and usage of the codes."""


@runtime_checkable
class Quantiser(Protocol):
    """A discrete bottleneck: a module of the objective, which calls it as
    `quantiser(z, noise=...)`. Its statistics move once a phase that updates it, by sums over all
    ranks. It computes in the type of its buffers, also under autocast."""

    loss_names: ClassVar[tuple[str, ...]]
    """Its losses. The settings have a weight for each, under the same name."""
    code_count: int
    """K"""
    channels: int
    """c: channels of encodings and of codes."""
    noise: Mapping[str, Noise]
    """Noise of a call in a phase that updates it, for one image."""

    def __call__(self, z: Tensor, *, noise: Mapping[str, Tensor] = ...) -> Quantised:
        """Encodings (N, c, h, w) to codes."""
        ...

    def quantised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Encodings (N, c, h, w) to codes (N, c, h, w) and their indices, int64 (N, h, w), without
        gradients: after training."""
        ...

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices int64 (N, h, w) to codes (N, c, h, w)."""
        ...
