"""The workers of a run and their communication: sums, maxima and a replica check.

There is no DistributedDataParallel. The gradients of a phase are summed by hand, once, in one flat
buffer (as in StyleGAN3). This works for every model: with several losses, frozen networks and
double backward. Every function that communicates is collective: every rank calls it, in the same
order.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


def use_cores(count: int) -> None:
    """Set up this process's CPU arithmetic, before its first tensor operation.

    Denormal numbers become 0. Adam's moments of weights at always-black pixels decay to denormal
    numbers, and with these a step of a small VAE took 6.0 ms instead of 4.4 ms. A thread inherits
    the flag from the thread that starts it. Freed memory stays with the process.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(count)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """glibc gives each freed tensor of more than 128 KiB back to the system, and the next one
    begins with page faults: 4,400 in a step of a small discriminator with R1, a fifth of its
    time."""
    with contextlib.suppress(AttributeError, OSError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


class WorkerLostError(RuntimeError):
    """A collective failed: another worker died, or the connection between workers failed."""


@dataclass(frozen=True)
class World:
    """This worker among the others. The default is a single worker: it never communicates."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def joined(cls, device: torch.device) -> World:
        """The world of this process's process group. A single worker if there is no group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(device=device)

    def share(self, groups: int) -> range:
        """This rank's groups of a batch, consecutive. Some ranks take one more than others."""
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
        """Names of the parameters and buffers whose bits differ between ranks.

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
    except RuntimeError as error:  # gloo and nccl raise it when a peer is gone
        raise WorkerLostError(str(error)) from error


def _bits(tensor: Tensor) -> Tensor:
    """A checksum of a tensor's bits in logical order: the sum, modulo 2^64, of its words times
    their positions."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    flat = tensor.detach().contiguous().flatten()
    numbers = (flat.view(integers) if integers else flat).to(torch.int64)
    return (numbers * torch.arange(1, numbers.numel() + 1, device=numbers.device)).sum()
