"""The arithmetic of scaling.py: a step's time, an all-reduce's time, and fits to measured times.

step = compute(images a GPU) + Σ over phases all_reduce(bytes, link, GPUs) − overlap
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Link:
    """How GPUs are joined: inside nodes of `gpus` GPUs each, and by a network between nodes.

    hop_seconds, bytes_per_second: inside a node, for each GPU. network_*: between nodes, for each
    node.
    """

    title: str
    gpus: int
    network_hop_seconds: float
    network_bytes_per_second: float
    hop_seconds: float = 0.0
    bytes_per_second: float = math.inf

    def all_reduce_seconds(self, count: int, size_bytes: float) -> float:
        """Time of one call over `count` GPUs: the faster of a ring and a tree, as NCCL chooses.

        ring: 2(n−k)·hop + 2(k−1)·network_hop + 2(n−1)/n·bytes/bandwidth, n GPUs on k nodes;
        tree: 2(n/k−1)·hop + 2⌈log2 k⌉·network_hop + 2·bytes/(0.9·bandwidth).
        """
        nodes = math.ceil(count / self.gpus)
        bandwidth = self.bytes_per_second
        if nodes > 1:
            bandwidth = min(bandwidth, self.network_bytes_per_second)
        ring = 2 * (count - nodes) * self.hop_seconds + 2 * (nodes - 1) * self.network_hop_seconds
        ring += 2 * (count - 1) / count * size_bytes / bandwidth
        if nodes == 1:
            return ring
        tree = 2 * (self.gpus - 1) * self.hop_seconds
        tree += 2 * math.ceil(math.log2(nodes)) * self.network_hop_seconds
        return min(ring, tree + 2 * size_bytes / (0.9 * bandwidth))


@dataclass(frozen=True)
class StepTime:
    """Step time of one model. `sizes`: bytes of each all-reduce, and its share of steps. `hidden`:
    share of an all-reduce that can run during the backward pass. At most half of the compute time
    hides it."""

    sizes: Sequence[tuple[float, float]]
    images_per_second: float
    kernel_seconds: float = 0.0
    kernels: tuple[float, float] = (0.0, 0.0)
    group_size: int = 1
    hidden: float = 0.0

    def compute_seconds(self, images: int) -> float:
        """Compute time of a step with `images` images on a GPU: arithmetic or kernel launches,
        whichever is longer."""
        launches = self.kernels[0] + self.kernels[1] * images / self.group_size
        return max(images / self.images_per_second, launches * self.kernel_seconds)

    def step_seconds(self, images: int, count: int, link: Link) -> float:
        """compute + all-reduces − overlap."""
        compute = self.compute_seconds(images)
        summing = sum(share * link.all_reduce_seconds(count, size) for size, share in self.sizes)
        return compute + summing - min(self.hidden * summing, compute / 2)

    def strong(self, batch: int, count: int, link: Link) -> float | None:
        """Efficiency at a constant global batch; None if there are fewer groups than GPUs."""
        groups = batch // self.group_size
        if count > groups:
            return None
        largest = math.ceil(groups / count) * self.group_size
        return self.compute_seconds(batch) / (count * self.step_seconds(largest, count, link))

    def weak(self, images: int, count: int, link: Link) -> float:
        """Efficiency at a constant batch a GPU."""
        return self.compute_seconds(images) / self.step_seconds(images, count, link)


Cost = Callable[[int, float], tuple[float, float]]
"""(workers, bytes) to hops in sequence and bytes through one worker's link."""
ALGORITHMS: dict[str, Cost] = {
    "ring": lambda n, size: (2 * (n - 1), 2 * (n - 1) / n * size),
    "halving-doubling": lambda n, size: (2 * math.ceil(math.log2(n)), 2 * (n - 1) / n * size),
    "tree": lambda n, size: (2 * math.ceil(math.log2(n)), 2 * math.ceil(math.log2(n)) * size),
    "star": lambda n, size: (2 * (n - 1), 2 * (n - 1) * size),
}


@dataclass(frozen=True)
class Fit:
    """seconds = hops·hop_seconds + bytes/bytes_per_second, and the distance of the points to it."""

    hop_seconds: float
    bytes_per_second: float
    residuals: list[float]
    """|fitted − measured| / measured."""


def fit(points: Sequence[tuple[float, float, float]]) -> Fit:
    """Least squares of relative errors; points are (hops, bytes, seconds)."""
    rows = torch.tensor([(h / t, b / t) for h, b, t in points], dtype=torch.float64)
    solved = torch.linalg.lstsq(rows, torch.ones(len(points), 1, dtype=torch.float64)).solution
    hop, per_byte = (float(value) for value in solved.flatten())
    return Fit(hop, 1 / per_byte, [abs(float(r @ solved) - 1.0) for r in rows])


H200_NODE = {1: 74.57, 2: 96.26, 4: 145.14, 8: 196.56, 16: 255.90, 32: 301.25, 64: 368.86}
"""MiB to bus GB/s of an all-reduce over 8 H200 by NVLink: github.com/stas00/ml-engineering,
network/benchmarks, "default" column."""
B200_NODES = {1: 12.47, 2: 20.79, 4: 31.63, 8: 50.61, 16: 71.80, 32: 142.90, 64: 197.77}
"""The same over 4 nodes of 8 B200. Each GPU has its own 400 Gbit/s network card."""
LINE_SHARE = 0.9
"""Share of a network's line rate that an all-reduce gets (assumed)."""


def published(table: Mapping[int, float], count: int, nodes: int, hop: float = 0.0) -> Fit:
    """The ring's constants from a table of bus bandwidths. If `hop` is given, it is the hop inside
    a node, and the fit finds the network's hop."""
    share = 2 * (count - 1) / count
    inside = 2 * (count - nodes) * hop
    hops = 2 * (nodes - 1) if hop else 2 * (count - 1)
    sizes = {mib * 2**20: rate * 1e9 for mib, rate in table.items()}
    return fit([(hops, share * b, share * b / rate - inside) for b, rate in sizes.items()])


@cache
def interconnects() -> list[Link]:
    """The links of the predictions. NVLink and its 400 Gbit/s network are fitted to published
    tables. The others have line rates and the same hops; only the hop of Ethernet (TCP) is
    assumed."""
    node = published(H200_NODE, 8, 1)
    cluster = published(B200_NODES, 32, 4, node.hop_seconds)
    inside = (node.hop_seconds, node.bytes_per_second)
    gbit = LINE_SHARE * 1e9 / 8
    hop = cluster.hop_seconds
    return [
        Link("8 x NVLink, 400 Gb/s a GPU", 8, hop, cluster.bytes_per_second, *inside),
        Link("8 x NVLink, 400 Gb/s a node", 8, hop, 400 * gbit, *inside),
        Link("8 x NVLink, 100 Gb/s a node", 8, hop, 100 * gbit, *inside),
        Link("1 GPU, 25 Gb/s Ethernet", 1, 50e-6, 25 * gbit),
    ]
