"""The workers of a run and what they say to each other: sums, maxima and a replica check.

No DistributedDataParallel: a phase's gradients are summed by hand, once, in one flat buffer, the
same for every model, with several losses, frozen networks and double backward (as StyleGAN3 does).
Every function that communicates is collective: every rank calls it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ray_gen import foreach


def use_cores(count: int) -> None:
    """Set up this process's CPU arithmetic, before its first tensor operation.

    Denormal numbers become 0: Adam's moments of weights at always-black pixels decay into them,
    and from then on a step of a small VAE took 6.0 ms instead of 4.4 ms. Threads inherit the flag
    from the one that starts them.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(count)


class WorkerLostError(RuntimeError):
    """A collective failed: another worker died, or the network between them did."""


@dataclass(frozen=True)
class World:
    """This worker among the others. The default is a single worker, which communicates nothing."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def joined(cls, device: torch.device) -> World:
        """The process group that this process belongs to, if any."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(device=device)

    def share(self, groups: int) -> range:
        """This rank's groups of a batch, consecutive; some ranks take one more than others."""
        whole, more = divmod(groups, self.size)
        first = self.rank * whole + min(self.rank, more)
        return range(first, first + whole + (self.rank < more))

    def sum_(self, tensor: Tensor) -> None:
        """Add up a tensor over all ranks, in place. Collective: every rank, same order."""
        if self.size > 1:
            _all_reduce(tensor, dist.ReduceOp.SUM)

    def maxima(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over all ranks. Collective: every rank, same order."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, device=self.device)
        _all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def differing(self, network: nn.Module) -> list[str]:
        """Parameters and buffers that are not the same bits on all ranks.

        Collective: every rank, same order.
        """
        named = [*network.named_parameters(), *network.named_buffers()]
        if self.size == 1 or not named:
            return []
        sums = torch.stack([_bits(tensor) for _, tensor in named])
        extremes = torch.cat([sums, -sums])
        _all_reduce(extremes, dist.ReduceOp.MAX)
        largest, smallest = extremes.chunk(2)
        differs = (largest != -smallest).tolist()
        return [name for (name, _), bad in zip(named, differs, strict=True) if bad]


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    try:
        dist.all_reduce(tensor, operation)
    except RuntimeError as error:  # what gloo and nccl raise when a peer is gone
        raise WorkerLostError(str(error)) from error


def _bits(tensor: Tensor) -> Tensor:
    """A checksum of a tensor's bits in its logical order: the wrapped sum of its words, each times
    its position."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    flat = tensor.detach().contiguous().flatten()
    numbers = (flat.view(integers) if integers else flat).to(torch.int64)
    return (numbers * torch.arange(1, numbers.numel() + 1, device=numbers.device)).sum()


class FlatSum:
    """Sums the gradients of some parameters, and a few other tensors, over all ranks in one call.

    The buffer is made once; its views have the parameters' own strides (channels-last, too), and
    become their gradients. A single worker keeps the gradients that backward made: no buffer, no
    zeroing, no copy (2.6 MB of those cost a small VAE some 5 % of its step on a CPU).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        self._parameters = list(parameters)
        self._world = world
        self._flat: Tensor | None = None
        self._views: list[Tensor] = []

    def __call__(self, others: Sequence[Tensor] = ()) -> list[Tensor]:
        """Sums every `grad` in place and returns the sums of the others.

        A parameter that no due term reached gets a gradient of zero, on any number of workers.
        Collective: every rank, same order.
        """
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        layouts = [*self._parameters, *others]
        others = [other.to(layouts[0].dtype) for other in others]  # as in one flat buffer
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
