"""What limits a step on many GPUs: bytes, links, and what hides or shrinks them.

    python jobs/scaling.py bytes              # counted from the project's own networks and phases
    sudo python jobs/scaling.py measure       # all-reduces between network namespaces, and a fit
    sudo python jobs/scaling.py choices       # the real step, its gradients summed in several ways
    python jobs/scaling.py predict            # efficiency on 1 to 256 GPUs, from stated assumptions

A step takes  compute(images a GPU) + Σ over phases all_reduce(bytes, link, GPUs) − overlap.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean, median

import click
import torch
from _flops import flops_of
from _links import BURST_BYTES, CannotLinkError, links, run_workers
from _scaling_model import (
    ALGORITHMS,
    B200_NODES,
    H200_NODE,
    StepTime,
    fit,
    interconnects,
    published,
)
from torch.utils._python_dispatch import TorchDispatchMode

# A script sees only its own folder; without this it would measure an installed version.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ray_gen.core import begin_phase, phase_modules
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.recipes import recipe
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Step

CLASSES = tuple("0123456789")
RGB_64 = ("data.image_size=64", "data.channels=3")
MODELS: dict[str, tuple[str, str, Callable[[int], list[str]]]] = {
    "dcgan-64": (
        "DCGAN, 64 x 64 RGB, z 100, width {}",
        "dcgan-mnist5k",
        lambda width: [f"networks.{n}.width={width}" for n in ("generator", "discriminator")],
    ),
    "conv-vae-64": (
        "convolutional VAE, 64 x 64 RGB, z 64, width {}",
        "vae-mnist5k",
        lambda width: [
            *(f"networks.{n}={{kind: conv, width: {width}}}" for n in ("encoder", "decoder")),
            "objective.latent_size=64",
            "objective.likelihood=gaussian",
        ],
    ),
}
"""By name: title, its recipe, and the overrides for a width."""
COUNTS = [2**power for power in range(9)]
"""Numbers of GPUs."""
WIDTHS = {"dcgan-64": 64, "conv-vae-64": 32}
"""The paper's, and the default of `networks: {kind: conv}`."""


def experiment_of(model: str, width: int | None = None, *overrides: str) -> Experiment:
    """A recipe at 64 x 64 RGB, resolved."""
    _, name, change = MODELS[model]
    changes = [*RGB_64, *change(width or WIDTHS[model]), *overrides]
    return recipe(name, *changes).resolved((3, 64, 64), CLASSES)


def phase_elements(experiment: Experiment) -> dict[str, tuple[int, int, int]]:
    """By phase: elements of gradients and of BatchNorm's sums in one all-reduce, and the steps
    between two all-reduces."""
    objective = build_objective(experiment)
    networks = build_networks(experiment, objective)
    found: dict[str, tuple[int, int, int]] = {}
    for phase in objective.phases():
        gradients = sum(p.numel() for name in phase.updates for p in networks[name].parameters())
        others = 0
        for name in phase.updates:
            begin_phase(networks[name])
        for module in [m for n in phase.updates for m in phase_modules(networks[n]).values()]:
            statistics = module.phase_statistics()
            others += 0 if statistics is None else statistics.numel()
        found[phase.name] = (gradients, others, phase.every)
    return found


class _Kernels(TorchDispatchMode):
    """Counts operations that compute or write. A GPU would run about as many kernels."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or "empty" in func.name() or "detach" in func.name())
        return func(*args, **(kwargs or {}))


@cache
def work_of_step(model: str) -> tuple[float, float, float]:
    """FLOPs for each image, kernels of every step, and kernels that each group adds. Counted in a
    step of one group and a step of two."""
    kernels: list[int] = []
    flops = 0.0
    for groups in (1, 2):
        experiment = experiment_of(model)
        batch = groups * experiment.group_size
        experiment = experiment.with_fields(training__global_batch_size=batch)
        objective, world = build_objective(experiment), World()
        state = State.build(experiment, objective, world)
        step = Step(experiment, objective, state, world, Meter(batch, world))
        images = torch.rand(batch, 3, 64, 64).to(memory_format=torch.channels_last)
        step(images, None)  # it also draws the noise of the next steps
        with _Kernels() as operations:
            flops = flops_of(partial(step, images, None)) / batch
        kernels.append(operations.count)
    return flops, 2.0 * kernels[0] - kernels[1], float(kernels[1] - kernels[0])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text: the first column to the left, the others to the right."""
    widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in [heads, *rows]
    )


@click.group(help=(__doc__ or "").splitlines()[0])
def main() -> None:
    """The commands."""


@main.command("bytes")
def print_bytes() -> None:
    """Prints the bytes that a step sums over workers."""
    rows = []
    for model, (title, _, _) in MODELS.items():
        click.echo(f"{model}: {title.format(WIDTHS[model])}")
        for phase, (gradients, others, every) in phase_elements(experiment_of(model)).items():
            total = 4 * (gradients + others)
            rows.append([model, phase, f"{gradients:,}", f"{others:,}", f"{total:,}", str(every)])
    click.echo(table(["model", "phase", "gradients", "statistics", "bytes", "every"], rows))


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    del context, parameter
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value} is not a list of whole numbers") from None


@main.command()
@click.option("--rates", default="50,200,1000", callback=_numbers, help="Mbit/s of each link")
@click.option("--workers", default="2,3,4", callback=_numbers)
@click.option("--kib", default="4,64,512,2048", callback=_numbers, help="sizes of the buffer")
@click.option("--repeats", default=15, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="write every number there")
def measure(
    rates: list[int], workers: list[int], kib: list[int], repeats: int, path: Path | None
) -> None:
    """Times all-reduces of FlatSum over gloo between namespaces, and fits formulas to them."""
    points: dict[int, list[tuple[int, int, list[float]]]] = {}
    job = {"kind": "all_reduces", "sizes": [1024 * k for k in kib], "repeats": repeats}
    for rate in rates:
        for count in workers:
            seconds = _on_links(count, rate, job)["seconds"]
            points.setdefault(rate, []).extend((count, int(b), s) for b, s in seconds.items())
            click.echo(f"  {rate} Mbit/s, {count} workers", err=True)
    rows, fits = [], []
    for rate, measured in points.items():
        for count, size, seconds in measured:
            cells = [
                f"{1e3 * value:.2f}" for value in (min(seconds), median(seconds), max(seconds))
            ]
            rows.append([f"{rate}", f"{count}", f"{size:,}", *cells])
        for name, cost in ALGORITHMS.items():
            # Other work on the cores only adds time. So the lowest time is nearest to the link's.
            costs = [(*cost(n, size), min(seconds)) for n, size, seconds in measured]
            # After a pause a bucket lets its burst through at once.
            found = fit([(h, max(0.0, b - BURST_BYTES), t) for h, b, t in costs])
            cells = [f"{1e3 * found.hop_seconds:.3f}", f"{8e-6 * found.bytes_per_second:.1f}"]
            cells += [f"{value:.1%}" for value in (median(found.residuals), max(found.residuals))]
            fits.append([f"{rate}", name, *cells])
    click.echo(table(["Mbit/s", "workers", "bytes", "lowest ms", "median ms", "highest ms"], rows))
    click.echo()
    heads = ["Mbit/s", "formula", "hop ms", "fitted Mbit/s", "median residual", "largest"]
    click.echo(table(heads, fits))
    if path is not None:
        path.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")


def _on_links(count: int, rate: float, job: Mapping[str, object]) -> dict:
    try:
        with links(count, rate) as namespaces:
            return run_workers(namespaces, job)
    except CannotLinkError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--only", type=click.Choice(list(MODELS)), help="one of the models")
@click.option("--width", default=16, show_default=True, help="of both networks")
@click.option("--images", default=16, show_default=True, help="of a worker, a multiple of 16")
@click.option("--rate", default=200.0, show_default=True, help="Mbit/s of each link")
@click.option("--workers", default=2, show_default=True)
@click.option("--rounds", default=40, show_default=True)
@click.option("--steps", default=2, show_default=True, help="of a block, one a round")
def choices(
    only: str | None, width: int, images: int, rate: float, workers: int, rounds: int, steps: int
) -> None:
    """Runs the project's step, its gradients summed in several ways: time, gradients, losses."""
    for model in [only] if only else MODELS:
        batch = images * workers
        experiment = experiment_of(
            model, width, f"training.global_batch_size={batch}", "training.group_size=16"
        ).with_fields(training__images=batch * steps * (rounds + 1))
        job = {"kind": "choices", "rounds": rounds, "steps": steps}
        found = _on_links(workers, rate, {**job, "experiment": experiment.to_yaml()})
        size = 4 * sum(g + o for g, o, _ in phase_elements(experiment).values())
        title = MODELS[model][0].format(width)
        click.echo(
            f"{title}; {workers} workers, {images} images each, {rate:g} Mbit/s, {size:,} bytes"
        )
        seconds: dict[str, list[float]] = found["seconds"]
        rows = []
        for name, own in seconds.items():
            ratios = [flat / other for flat, other in zip(seconds["flat"], own, strict=True)]
            cells = [f"{1e3 * min(own):.1f}", f"{1e3 * median(own):.1f}"]
            cells += [f"{value:.3f}" for value in (min(ratios), median(ratios), max(ratios))]
            late = found["losses"][name][(rounds + 1) // 2 :]
            losses = [mean(r[tag] for r in late) for tag in late[0] if tag.startswith("loss/")]
            rows.append([name, *cells, ", ".join(f"{value:.4f}" for value in losses)])
        heads = ["", "lowest ms", "median ms", "gain, lowest", "median", "highest", "losses"]
        click.echo(table(heads, rows))
        for phase, errors in zip(phase_elements(experiment), found["bf16_errors"], strict=True):
            click.echo(
                f"bf16, gradient of {phase}: ‖Δg‖/‖g‖ median {median(errors):.2e}, "
                f"largest {max(errors):.2e}"
            )
        for name, of in (("lowest", min), ("median", median)):
            flat, buckets, silent = (of(seconds[n]) for n in ("flat", "buckets", "silent"))
            hidden = (flat - buckets) / (flat - silent)
            click.echo(f"buckets hide {hidden:.0%} of what communication adds (by {name} times)")
        click.echo()


@main.command()
@click.option("--only", type=click.Choice(list(MODELS)), help="one of the models")
@click.option("--batch", type=int, help="global batch of strong scaling [the recipe's]")
@click.option("--images-per-second", type=float, help="of one GPU at a large batch, measured")
@click.option("--flops", default=0.13 * 989e12, show_default=True, help="FLOP/s of a GPU, assumed")
@click.option("--kernel-us", default=5.0, show_default=True, help="launch of a kernel, assumed")
@click.option("--gradient-bytes", default=4, show_default=True, help="2: bf16")
@click.option(
    "--hidden",
    default=0.0,
    show_default=True,
    help="share of an all-reduce that the backward pass hides",
)
def predict(
    only: str | None,
    batch: int | None,
    images_per_second: float | None,
    flops: float,
    kernel_us: float,
    gradient_bytes: int,
    hidden: float,
) -> None:
    """Efficiency on 1 to 256 GPUs. Every table is a prediction.

    --flops: 13 % of an H100's dense bf16 peak, the share that R3GAN reports of its GPUs.
    """
    for title, given, count, nodes, hop in (
        ("8 H200, NVLink", H200_NODE, 8, 1, 0.0),
        ("4 nodes of 8 B200", B200_NODES, 32, 4, interconnects()[0].hop_seconds),
    ):
        found = published(given, count, nodes, hop)
        click.echo(
            f"{title}, published: hop {1e6 * found.hop_seconds:.2f} µs, "
            f"{found.bytes_per_second / 1e9:.0f} GB/s, "
            f"residual median {median(found.residuals):.0%}, largest {max(found.residuals):.0%}"
        )
    for name in [only] if only else MODELS:
        experiment = experiment_of(name)
        per_image, *kernels = work_of_step(name)
        times = StepTime(
            [
                (gradient_bytes * gradients + 4 * others, 1 / every)
                for gradients, others, every in phase_elements(experiment).values()
            ],
            images_per_second or flops / per_image,
            kernel_us * 1e-6,
            (kernels[0], kernels[1]),
            experiment.group_size,
            hidden,
        )
        own = experiment.training.global_batch_size
        click.echo(
            f"\n{name}: {per_image / 1e9:.2f} GFLOPs an image, {kernels[0]:.0f} kernels a step and "
            f"{kernels[1]:.0f} a group, {times.images_per_second:,.0f} images/s at most (assumed); "
            f"{own} images on one GPU take {1e3 * times.compute_seconds(own):.2f} ms"
        )
        limit = (batch or own) // experiment.group_size
        heads = ["GPUs", *(link.title for link in interconnects())]
        click.echo(f"predicted efficiency, weak, {own} images a GPU")
        rows = [
            [f"{n}", *(f"{times.weak(own, n, link):.1%}" for link in interconnects())]
            for n in COUNTS
        ]
        click.echo(table(heads, rows))
        click.echo(
            f"predicted efficiency, strong, global batch {batch or own}: {limit} GPUs at most"
        )
        rows = [
            [f"{n}", *(f"{times.strong(batch or own, n, link):.1%}" for link in interconnects())]
            for n in COUNTS
            if n <= limit
        ]
        click.echo(table(heads, rows))


if __name__ == "__main__":
    main()
