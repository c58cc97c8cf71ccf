"""How near a step comes to what the machine can compute: floating point operations a second, as a
share of the best that large matrix products and wide convolutions reach in the same run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from _flops import flops_of
from torch import Tensor, nn

from ray_gen.core import Reconstructing, Styled
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.recipes import recipe
from ray_gen.training.build import build_objective
from ray_gen.training.loop import build_feed
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Step

# What is measured


@dataclass
class Measured:
    """Something that computes, and what it reached."""

    name: str
    run: Callable[[], object]
    """Once: a period of steps, or a large product."""
    flops: float
    """Of one call."""
    images: int = 0
    """Of one call; 0: it has none."""
    passes: Mapping[str, float] = field(default_factory=dict[str, float])
    """Forward passes of each network in a step, of a whole batch, on average over the period."""
    seconds: list[float] = field(default_factory=list[float])
    """Of one call, by round."""

    def numbers(self) -> dict[str, Any]:
        """All but what runs."""
        return {name: value for name, value in vars(self).items() if name != "run"}

    @property
    def flops_per_second(self) -> float:
        """The median over rounds."""
        return self.flops / median(self.seconds)


def peaks(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Measured]:
    """A product of two square matrices, and a 3 x 3 convolution of 256 channels on maps of 32 x 32,
    channels-last, forward: of a size that fills the device."""
    size, batch = (8192, 256) if device.type == "cuda" else (2048, 16)
    left, right = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    last = torch.channels_last
    maps = torch.randn(batch, 256, 32, 32, device=device, dtype=dtype).to(memory_format=last)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).to(memory_format=last)
    return [
        Measured("torch.mm", lambda: torch.mm(left, right), 2.0 * size**3),
        Measured(
            "3 x 3 convolution",
            lambda: F.conv2d(maps, weight, padding=1),
            2.0 * batch * 32 * 32 * 256 * 256 * 9,
        ),
    ]


_OF_GAN, _OF_AUTOENCODER = ("generator", "discriminator"), ("encoder", "decoder")
_KL = ["width=32", "groups=8"]

FAMILIES: Mapping[str, tuple[int, Sequence[str], Sequence[str]]] = {
    "dcgan": (32, _OF_GAN, ["width=32"]),
    "sngan": (32, _OF_GAN, ["width=16"]),
    "wgan-gp": (32, _OF_GAN, ["width=16"]),
    "r3gan": (32, _OF_GAN, ["width=48"]),
    "stylegan2-ada": (32, _OF_GAN, ["channel_base=1024", "channel_max=128"]),
    "fastgan": (64, _OF_GAN, ["width=8"]),
    "latent-kl-f8": (64, _OF_AUTOENCODER, _KL),
    "latent-kl-f4": (64, _OF_AUTOENCODER, _KL),
    "latent-vq": (64, _OF_AUTOENCODER, _KL),
    "latent-fsq": (64, _OF_AUTOENCODER, _KL),
    "latent-small": (64, _OF_AUTOENCODER, ["width=16"]),
}
"""Side of the images in pixels, and fields that make two of the networks small."""


def experiment_of(family: str, batch: int, precision: str = "fp32") -> Experiment:
    """A family with small networks, on RGB images. The EMA moves at every step, so that a period is
    short. A latent autoencoder has its discriminator from the first image on, and SSIM for a
    perceptual network."""
    side, networks, fields = FAMILIES[family]
    more = ["perceptual={kind: ssim}", "discriminator_start_images=0", "start_images=0"]
    return recipe(
        family,
        f"data={{kind: mnist5k, image_size: {side}, channels: 3}}",
        f"training.global_batch_size={batch}",
        f"training.precision={precision}",
        "training.ema_every_steps=1",
        *(f"networks.{of}.{field}" for of in networks for field in fields),
        *(f"objective.{one}" for one in more if networks is _OF_AUTOENCODER),
    )


def step_of(experiment: Experiment, store: Store, device: torch.device) -> Measured:
    """The training step of an experiment, on one batch that lies on the device.

    One call is a whole period of the step, so that penalties that are due every 16th update, for
    example, have their share.
    """
    world = World(device=device)
    objective = build_objective(experiment)
    state = State.build(experiment, objective, world)
    meter = Meter(experiment.training.global_batch_size, world)
    step = Step(experiment, objective, state, world, meter)
    feed = build_feed(experiment, objective, store, world)
    images, labels = next(iter(feed.steps(0, experiment.steps)))

    def run() -> None:
        for _ in range(step.period):
            step(images, labels)
        meter.report()

    with _passes_of({of: state.networks[of] for of in objective.networks()}) as seen:
        flops = flops_of(run)
    count = step.period * len(images)
    passes = {network: number / count for network, number in seen.items()}
    return Measured(experiment.name, run, flops, count, passes)


@contextmanager
def _passes_of(networks: Mapping[str, nn.Module]) -> Generator[Counter[str]]:
    """Counts the images that pass through each network, by `forward` or by a part of it that
    objectives call. A pass that calls another pass is one."""
    seen: Counter[str] = Counter()
    inside: set[str] = set()

    def counted(name: str, method: Callable[..., Any], given: Tensor, *args: Any, **more: Any):
        if name in inside:
            return method(given, *args, **more)
        seen[name] += len(given)
        inside.add(name)
        try:
            return method(given, *args, **more)
        finally:
            inside.remove(name)

    wrapped = [
        (network, method, partial(counted, name, getattr(network, method)))
        for name, network in networks.items()
        for method in _passes(network)
    ]
    for network, method, replacement in wrapped:
        setattr(network, method, replacement)
    try:
        yield seen
    finally:
        for network, method, _ in wrapped:
            delattr(network, method)  # the class has the real one


def _passes(network: nn.Module) -> list[str]:
    parts = {Styled: "synthesize", Reconstructing: "reconstructed"}
    return ["forward", *(name for kind, name in parts.items() if isinstance(network, kind))]


# Measuring


def measure(all_: Sequence[Measured], rounds: int, seconds: float, device: torch.device) -> None:
    """Times all in turns: each for about `seconds` a round, but at least once."""
    counts: dict[str, int] = {}
    for one in all_:
        count, elapsed = 1, _timed(one, 1, device)
        while elapsed < seconds / 4:
            count *= 2
            elapsed = _timed(one, count, device)
        counts[one.name] = max(1, round(count * seconds / elapsed))
    for _ in range(rounds):
        for one in all_:
            one.seconds.append(_timed(one, counts[one.name], device) / counts[one.name])


def _timed(one: Measured, count: int, device: torch.device) -> float:
    """Seconds of `count` calls."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        one.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def table(best: Sequence[Measured], steps: Sequence[Measured]) -> str:
    """Peaks, then a row for each step: images/s, GFLOPs an image, shares of the peaks, passes."""
    networks = list(dict.fromkeys(name for one in steps for name in one.passes))
    heads = ["images/s", "GFLOP/image", *(f"of {one.name}" for one in best)]
    rows = [["", *heads, *(f"passes of {name}" for name in networks)]]
    for one in steps:
        speed = one.images / median(one.seconds)
        shares = [f"{one.flops_per_second / peak.flops_per_second:.1%}" for peak in best]
        passes = [f"{one.passes.get(name, 0.0):.3g}" for name in networks]
        rows.append(
            [one.name, f"{speed:,.0f}", f"{one.flops / one.images / 1e9:.3f}", *shares, *passes]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{one.name}: {one.flops_per_second / 1e9:,.0f} GFLOP/s" for one in best]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
