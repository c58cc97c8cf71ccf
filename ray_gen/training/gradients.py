"""Sums the gradients of a phase over all workers, in one flat buffer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ray_gen.distributed import World
from ray_gen.training import foreach


class FlatSum:
    """Sums the gradients of some parameters, and a few other tensors, over all ranks in one call.

    The buffer is made once. Its views have the parameters' own strides (channels-last included) and
    become their gradients. A single worker keeps the gradients from backward: no buffer, no
    zeroing, no copy (for 2.6 MB they cost a small VAE about 5 % of its step on a CPU).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        self._parameters = list(parameters)
        self._world = world
        self._flat: Tensor | None = None
        self._views: list[Tensor] = []

    def __call__(self, others: Sequence[Tensor] = ()) -> list[Tensor]:
        """Sums every `grad` in place and returns the sums of the other tensors.

        If no due term reached a parameter, its gradient becomes zero, on any number of workers.
        Collective: every rank, same order.
        """
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        layouts = [*self._parameters, *others]
        others = [other.to(layouts[0].dtype) for other in others]  # the type of the flat buffer
        if self._world.size == 1 or not layouts:
            return others
        gradients: list[Tensor] = [p.grad for p in self._parameters if p.grad is not None]
        sources = [*gradients, *others]
        if self._flat is None:
            self._allocate(layouts)
        assert self._flat is not None
        foreach.copy_(self._views, sources)
        self._world.sum_(self._flat)
        for parameter, view in zip(self._parameters, self._views, strict=False):
            parameter.grad = view
        return [view.clone() for view in self._views[len(gradients) :]]

    def _allocate(self, layouts: Sequence[Tensor]) -> None:
        first = layouts[0]
        size = sum(layout.numel() for layout in layouts)
        self._flat = torch.empty(size, dtype=first.dtype, device=first.device)
        offset = 0
        for layout in layouts:
            self._views.append(self._flat.as_strided(layout.size(), layout.stride(), offset))
            offset += layout.numel()
