"""Images/s of ray_gen's training, of a bare loop that is its limit, and of other projects' loops.

    python jobs/benchmark.py [--seconds 4] [--rounds 9] [--device auto]
                             [--only vae|dcgan|latent|limits] [--json FILE]

Three models: a VAE of fully connected layers (784-400-(20, 20), batch 128, digits of 28 x 28) and
DCGAN (64 x 64 RGB, z 100, width 64, batch 64), both with the recipes of pytorch/examples; and the
KL autoencoder of latent diffusion with maps of an eighth of the side (64 x 64 RGB, width 32, batch
16), trained by L1 and KL alone. Each contestant has its own process, with the same number of torch
threads; while one works, the others wait. It is built and warmed up before the clock starts. A
contestant's block is a fixed number of steps, chosen so that it takes about `--seconds`. Rounds are
interleaved (A B C D, A B C D, ...), and the table gives the median of images/s, the contestant's
peak memory (on a GPU that of its tensors; on a CPU that of its whole process: libraries, images and
all), and the medians of the ratios within each round.

    bare step         our step on one batch that already lies on the device: the limit
    ray_gen           our step on the batches of our data path
    whole trainer     ray_gen.training.loop.train with its reports and control steps, without Ray
                      and without writing the reports
    pytorch/examples  a plain loop that does the same as `vae/main.py` or `dcgan/main.py`: see
                      _peers.py
    pythae            its own trainer and data path (`pip install '.[benchmark]'`)
    diffusers         its own module in a plain loop (`pip install '.[benchmark]'`)

Ours train with EMA and metrics on. All read the built-in digits, repeated until an epoch of the VAE
is as long as MNIST's. All hold them in memory. So DCGAN's peer need not decode JPEG files. In the
generator phase ours draws a second z, as the algorithm does; the script uses the discriminator's
fakes again. So ours needs one more forward pass of the generator a step, but computes no weight
gradients of the discriminator there. `compiled` rows have `training.compile`, on a GPU with CUDA
graphs. `micro-batch` rows sum the gradients of parts of the batch. On a GPU there are also rows in
bf16, and each row's share of the device's dense bf16 peak: FLOPs of matrix products and
convolutions, counted over one step.

`limits` is another table: for each family (`ray-gen recipes`), with small networks, the
bare step in this process against what the device can compute. Its peaks are measured in the same
rounds: a large matrix product and a wide convolution. Columns: images/s, FLOPs of an image in all
passes of a step, the step's FLOP/s as a share of each peak, and how often a batch passes forward
through each network in a step, on average (penalties may be due at every 16th). On a GPU also in
bf16; float32 has torch's defaults for TF32: convolutions use it, products do not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import repeat
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import _limits
import torch
from _flops import flops_of
from _peers import DiffusersAutoencoder, ExampleDcgan, ExampleVae, PythaeVae
from torch import Tensor

# A script sees only its own folder; without this it would measure an installed version.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ray_gen
from ray_gen.data import Split, Store
from ray_gen.distributed import World, use_cores
from ray_gen.experiment import Experiment
from ray_gen.training.build import build_objective
from ray_gen.training.loop import build_feed, train
from ray_gen.training.meter import Meter
from ray_gen.training.sources import class_names, open_data
from ray_gen.training.state import State
from ray_gen.training.step import Step

ENDLESS = 10**12
REPORT_EVERY_IMAGES = 20_000
"""Report interval of the whole trainer, unless a block is shorter."""
REFERENCES = ("pytorch/examples", "pythae", "diffusers", "bare step")
"""Rows that every row is compared with."""
OPTIONAL = {"pythae", "diffusers"}
"""Packages whose rows need them."""
MICRO_BATCH = "micro-batch"

VAE: dict[str, Any] = {
    "data": {"kind": "mnist5k"},
    "networks": {
        "encoder": {"kind": "mlp", "hidden_sizes": [400]},
        "decoder": {"kind": "mlp", "hidden_sizes": [400]},
    },
    "objective": {"kind": "vae", "latent_size": 20, "likelihood": "bernoulli"},
    "optimizers": {"autoencoder": {"kind": "adam", "learning_rate": 1e-3}},
    "training": {
        "images": ENDLESS,
        "global_batch_size": 128,
        "group_size": 128,
        "checkpoint_every_images": ENDLESS,
    },
}
_DCGAN_ADAM = {"kind": "adam", "learning_rate": 2e-4, "betas": [0.5, 0.999]}
DCGAN: dict[str, Any] = {
    "data": {"kind": "mnist5k", "image_size": 64, "channels": 3},
    "networks": {
        "generator": {"kind": "dcgan", "width": 64},
        "discriminator": {"kind": "dcgan", "width": 64},
    },
    "objective": {"kind": "gan", "latent_size": 100, "loss": "non_saturating"},
    "optimizers": {"generator": _DCGAN_ADAM, "discriminator": _DCGAN_ADAM},
    "training": {
        "images": ENDLESS,
        "global_batch_size": 64,
        "group_size": 64,
        "checkpoint_every_images": ENDLESS,
    },
}

_KL = {"kind": "autoencoder_kl", "width": 32, "multipliers": [1, 2, 4, 4], "groups": 8}
LATENT: dict[str, Any] = {
    "data": {"kind": "mnist5k", "image_size": 64, "channels": 3},
    "networks": {"encoder": _KL, "decoder": _KL},
    "objective": {
        "kind": "latent_autoencoder",
        "latent_channels": 4,
        "downsampling": 8,
        "bottleneck": {"kind": "kl", "weight": 2.08e-8},
        "perceptual_weight": 0.0,
    },
    "optimizers": {"autoencoder": {"kind": "adam", "learning_rate": 7.2e-5, "betas": [0.5, 0.9]}},
    "training": {
        "images": ENDLESS,
        "global_batch_size": 16,
        "group_size": 4,
        "checkpoint_every_images": ENDLESS,
    },
}

DENSE_BF16_PEAKS = {
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""FLOP/s without sparsity, by a part of the device's name (vendors' data sheets). If several parts
match, the longest is used."""


class Contestant(Protocol):
    """A way to train a model."""

    def run(self, steps: int) -> int:
        """Trains for about `steps` steps. Returns the images seen."""
        ...


class _Ours:
    """A state of ray_gen, and the step that trains it."""

    def __init__(self, experiment: Experiment, store: Store, device: torch.device) -> None:
        self.world = World(device=device)
        self.batch = experiment.training.global_batch_size
        objective = build_objective(experiment)
        state = State.build(experiment, objective, self.world)
        self._meter = Meter(self.batch, self.world)
        self._step = Step(experiment, objective, state, self.world, self._meter)
        feed = build_feed(experiment, objective, store, self.world)
        self._batches = iter(feed.steps(0, experiment.steps))

    def run(self, steps: int) -> int:
        """A report of the metrics ends a block."""
        for _ in range(steps):
            self._step(*next(self._batches))
        self._meter.report()
        return steps * self.batch


class WithFeed(_Ours):
    """Our step on the batches of our data path."""


class BareStep(_Ours):
    """Our step on one batch that already lies on the device."""

    def __init__(self, experiment: Experiment, store: Store, device: torch.device) -> None:
        super().__init__(experiment, store, device)
        self._batches = repeat(next(self._batches))


class WholeTrainer:
    """`ray_gen.training.loop.train`, from report to report."""

    def __init__(self, experiment: Experiment, store: Store, device: torch.device) -> None:
        world = World(device=device)
        objective = build_objective(experiment)
        state = State.build(experiment, objective, world)
        self._interval = max(
            1, experiment.training.report_every_images // experiment.training.global_batch_size
        )
        self._reports = train(experiment, objective, state, store, world)
        self._images = 0

    def run(self, steps: int) -> int:
        """Trains for the number of reports that comes nearest to `steps` steps, at least one."""
        before = self._images
        for _ in range(max(1, round(steps / self._interval))):
            self._images = next(self._reports).images
        return self._images - before


@dataclass(frozen=True)
class Model:
    """The model that contestants train, and the contestants beside ours."""

    title: str
    experiment: dict[str, Any]
    images: int
    """Number of images to train on: the digits, repeated."""
    warm_up_steps: int
    peers: dict[str, Callable[[Tensor, Tensor, torch.device], Contestant]]
    """By row; built from uint8 images (N, H, W, C) and labels."""
    micro_batches: tuple[int, ...] = ()
    """Images of a part of the step: a row for each."""

    @property
    def batch(self) -> int:
        """Images of a step."""
        return self.experiment["training"]["global_batch_size"]

    def build(self, row: str, report_every_images: int, device: torch.device) -> Contestant:
        """The contestant of a row."""
        if row not in self.peers:
            use_cores(torch.get_num_threads())  # before any tensor, as ray_gen's workers do
        experiment = Experiment.of(self.experiment)
        store = open_data(experiment)
        assert store.train.labels is not None
        indices = torch.arange(self.images) % len(store.train)
        images_NHWC, labels = store.train.images_NHWC[indices], store.train.labels[indices]
        if row in self.peers:
            return self.peers[row](images_NHWC, labels, device)
        kind, *options = row.split(", ")
        parts = [int(option.split()[1]) for option in options if option.startswith(MICRO_BATCH)]
        resolved = experiment.resolved(store.image_shape, class_names(store)).with_fields(
            training__precision="bf16" if "bf16" in options else "fp32",
            training__compile="compiled" in options,
            training__micro_batch_size=parts[0] if parts else None,
            training__report_every_images=report_every_images,
        )
        return OURS[kind](resolved, replace(store, train=Split(images_NHWC, labels)), device)


OURS = {"bare step": BareStep, "ray_gen": WithFeed, "whole trainer": WholeTrainer}
MODELS = {
    "vae": Model(
        "VAE, 784-400-(20, 20), batch 128, digits of 28 x 28",
        VAE,
        images=60_000,
        # Adam's first moments at pixels that are always black decay to denormal numbers in some 700
        # steps. From then on every step is slower on a CPU, by a third in one measurement.
        warm_up_steps=1000,
        peers={"pytorch/examples": ExampleVae, "pythae": PythaeVae},
    ),
    "dcgan": Model(
        "DCGAN, z 100, width 64, batch 64, digits of 64 x 64 RGB",
        DCGAN,
        images=20_000,
        warm_up_steps=5,
        peers={"pytorch/examples": ExampleDcgan},
    ),
    "latent": Model(
        "KL autoencoder, f = 8, width 32, batch 16, digits of 64 x 64 RGB",
        LATENT,
        images=20_000,
        warm_up_steps=5,
        peers={"diffusers": DiffusersAutoencoder},
        micro_batches=(8, 4),
    ),
}


def serve(pipe: Connection, key: str, row: str, report_every_images: int, device: str) -> None:
    """A contestant's process: answers every request with two numbers, or with a traceback."""
    try:
        where = torch.device(device)
        contestant = MODELS[key].build(row, report_every_images, where)
        for what, steps in iter(pipe.recv, None):
            pipe.send(ANSWERS[what](contestant, steps, where))
    except EOFError:  # the benchmark has ended
        return
    except Exception:
        pipe.send(traceback.format_exc())


def _timed(contestant: Contestant, steps: int, device: torch.device) -> tuple[int, float]:
    """Images and seconds of `steps` steps. On a GPU a peak of memory begins anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _synchronise(device)
    start = time.perf_counter()
    images = contestant.run(steps)
    _synchronise(device)
    return images, time.perf_counter() - start


def counted_flops(contestant: Contestant, steps: int, device: torch.device) -> tuple[int, float]:
    """Images and FLOPs of `steps` steps."""
    del device
    images: list[int] = []
    flops = flops_of(lambda: images.append(contestant.run(steps)))
    return images[0], flops


def _peak_memory(contestant: Contestant, steps: int, device: torch.device) -> tuple[int, float]:
    """0, and the most GiB: of tensors in the last block on a GPU, else of this process so far."""
    del contestant, steps
    if device.type == "cuda":
        return 0, torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


ANSWERS = {"time": _timed, "flops": counted_flops, "memory": _peak_memory}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Row:
    """A contestant in its own process, and its measurements."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.installed = name not in OPTIONAL or find_spec(name) is not None
        self.steps = 1
        """Steps of a block."""
        self.images_per_second: list[float] = []
        """By round."""
        self.flops_per_image: float | None = None
        self.peak_gib = 0.0

    def start(self, key: str, report_every_images: int, device: str) -> None:
        """Starts the process, which builds the contestant."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, key, self.name, report_every_images, device)
        self._process = context.Process(target=serve, args=arguments)
        self._process.start()
        theirs.close()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()

    def _asked(self, steps: int, what: str = "time") -> tuple[int, float]:
        try:
            self._pipe.send((what, steps))
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise SystemExit(f"{self.name}: its process ended without a message") from None
        if isinstance(answer, str):
            raise SystemExit(f"{self.name}:\n{answer}")
        return answer

    def prepare(self, batch: int, warm_up_steps: int, seconds: float) -> None:
        """Warms up, for four blocks at most, and finds the number of steps that takes `seconds`."""
        self._asked(3)
        done, spent, elapsed, images = 0, 0.0, 0.0, 0
        while elapsed < seconds / 4 or (done < warm_up_steps and spent < 4 * seconds):
            images, elapsed = self._asked(self.steps)
            done, spent = done + images // batch, spent + elapsed
            if elapsed < seconds / 4:
                self.steps *= 2
        self.steps = max(1, round(images / elapsed * seconds / batch))

    def count_flops(self) -> None:
        """Counts the FLOPs per image of one step."""
        images, flops = self._asked(1, "flops")
        self.flops_per_image = flops / images

    def measure(self) -> None:
        """Times one block."""
        images, seconds = self._asked(self.steps)
        self.images_per_second.append(images / seconds)
        _, self.peak_gib = self._asked(0, "memory")


def prepared_rows(key: str, device: str, seconds: float, processes: ExitStack) -> list[Row]:
    """All contestants of a model, warmed up. Closing `processes` ends their processes."""
    model = MODELS[key]
    rows: list[Row] = []

    def add(name: str, report_every_images: int = REPORT_EVERY_IMAGES) -> Row:
        print(f"  preparing {name}", file=sys.stderr, flush=True)
        row = Row(name)
        rows.append(row)
        if row.installed:
            row.start(key, report_every_images, device)
            processes.callback(row.close)
            row.prepare(model.batch, model.warm_up_steps, seconds)
            if device == "cuda" and "compiled" not in name:
                row.count_flops()
        return row

    for suffix in ("", ", bf16", ", bf16, compiled") if device == "cuda" else ("", ", compiled"):
        bare = add(f"bare step{suffix}")
        add(f"ray_gen{suffix}")
        add(f"whole trainer{suffix}", min(REPORT_EVERY_IMAGES, bare.steps * model.batch))
    for size in model.micro_batches:
        add(f"ray_gen, {MICRO_BATCH} {size}")
    for row in rows:  # the counter does not see inside a CUDA graph
        if "compiled" in row.name:
            row.flops_per_image = rows[0].flops_per_image
    for name in model.peers:
        add(name)
    return rows


def measure(rows: Sequence[Row], rounds: int) -> None:
    """Times the contestants in turns: each once a round."""
    for number in range(rounds):
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for row in rows:
            if row.installed:
                row.measure()


def ratio(row: Row, reference: Row) -> float:
    """Median over rounds of a row's speed divided by another row's."""
    pairs = zip(row.images_per_second, reference.images_per_second, strict=True)
    return median(own / other for own, other in pairs)


def table(rows: Sequence[Row], peak: float | None, *, shares: bool) -> str:
    """The rows, as text. shares: add a column with the share of the device's peak."""
    references = [row for name in REFERENCES for row in rows if row.name == name and row.installed]
    heads = ["images/s", "lowest", "highest", "peak GiB", *(f"x {row.name}" for row in references)]
    heads += ["of bf16 peak"] if shares else []
    widths = [max(9, len(head)) for head in heads]
    lines = [("", heads)]
    for row in rows:
        speeds = row.images_per_second
        if not row.installed:
            lines.append((row.name, ["not installed (pip install '.[benchmark]')"]))
            continue
        cells = [f"{speed:,.0f}" for speed in (median(speeds), min(speeds), max(speeds))]
        cells.append(f"{row.peak_gib:.2f}")
        cells += [f"{ratio(row, reference):.3f}" for reference in references]
        if shares:
            flops = median(speeds) * (row.flops_per_image or 0.0)
            cells.append(f"{flops / peak:.1%}" if peak and flops else "n/a")
        lines.append((row.name, cells))
    first = max(len(name) for name, _ in lines)
    return "\n".join(
        "  ".join([name.ljust(first), *map(str.rjust, cells, widths)]).rstrip()
        for name, cells in lines
    )


def dense_bf16_peak(device: torch.device) -> float | None:
    """FLOP/s of the device; None if it is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [part for part in DENSE_BF16_PEAKS if part in name]
    return DENSE_BF16_PEAKS[max(known, key=len)] if known else None


def environment(device: torch.device) -> dict[str, str | int]:
    """Hardware, threads and versions."""
    found: dict[str, str | int] = {"device": device.type}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    found |= {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "ray_gen": ray_gen.__version__,
    }
    for package in ("torch", "torchvision", *sorted(OPTIONAL)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def limits(device: torch.device, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measures the table `limits` and prints it. Returns its numbers."""
    found: list[dict[str, Any]] = []
    batch = 64 if device.type == "cuda" else 16
    use_cores(torch.get_num_threads())
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for precision, dtype in dtypes.items():
        if precision == "bf16" and device.type == "cpu":
            continue
        title = f"Limits, {precision}, batch {batch}; {rounds} rounds, blocks of {seconds:g} s"
        print(f"\n{title} or of one period of steps", flush=True)
        best = _limits.peaks(device, dtype)
        steps: list[_limits.Measured] = []
        for family in _limits.FAMILIES:
            print(f"  preparing {family}", file=sys.stderr, flush=True)
            experiment = _limits.experiment_of(family, batch, precision)
            store = open_data(experiment)
            experiment = experiment.resolved(store.image_shape, class_names(store))
            steps.append(_limits.step_of(experiment, store, device))
        _limits.measure([*best, *steps], rounds, seconds, device)
        print(_limits.table(best, steps), flush=True)
        found += [{"precision": precision, **one.numbers()} for one in (*best, *steps)]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of a block (default: 4)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", choices=(*MODELS, "limits"), help="one of the tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; use --device cpu")
    on_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu else "cpu")
    found = environment(device)
    print("\n".join(f"{name}: {value}" for name, value in found.items()))
    peak = dense_bf16_peak(device)
    result: dict[str, Any] = {"environment": found, "dense_bf16_peak": peak, "models": {}}
    for key in [options.only] if options.only else [*MODELS, "limits"]:
        if key == "limits":
            result[key] = limits(device, options.rounds, options.seconds)
            continue
        title = f"{MODELS[key].title}; {options.rounds} rounds, blocks of {options.seconds:g} s"
        print(f"\n{title}", flush=True)
        with ExitStack() as processes:
            rows = prepared_rows(key, device.type, options.seconds, processes)
            measure(rows, options.rounds)
        print(table(rows, peak, shares=on_gpu), flush=True)
        result["models"][key] = [
            {
                "name": row.name,
                "installed": row.installed,
                "steps_per_block": row.steps,
                "images_per_second": row.images_per_second,
                "flops_per_image": row.flops_per_image,
                "peak_gib": row.peak_gib,
            }
            for row in rows
        ]
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
