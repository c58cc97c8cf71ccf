"""Acceptance test of a GPU: one table of what must hold on it, and of the speed of a step.

    python jobs/gpu.py [--device cuda|cpu] [--only ROW ...] [--family NAME ...] [--json FILE]
                       [--seconds 1]

Exit code 0 if no row failed, else 1. Needs no Ray, network or data set: images are random and lie
in memory. Needs torch, numpy, safetensors, pyyaml and pydantic. `--device cpu` rehearses the table:
it compares the CPU with itself, with smaller models. Rows that need a GPU are n/a.

UNMEASURED: no row has run on a GPU yet. Bounds and budgets are what is expected of a GPU. torch's
deterministic algorithms are expected to refuse nothing: of the operators that their documentation
lists as refused, steps use only `grid_sample`, in ADA's warp, whose gradient is a sum of whole
numbers of our own.

    fp64         20 steps in float64 agree with the CPU's
    gradients    gradients of the first step, in float32, agree with the CPU's
    resume       10 steps, a checkpoint and 10 steps equal 20 steps bit for bit, with torch's
                 deterministic algorithms; the cost of these
    compiled     gradients with `training.compile` agree with the eager ones
    bf16         gradients of the first step have the direction of those in float32
    no-sync      no step makes the host wait, also for new blocks of noise and the EMA
    memory       peak memory of 10 steps
    speed        images/s, as a share of the measured bf16 peak, and against a plain loop of PyTorch
    speed-bf16   the same in bf16
    replay       whole steps as CUDA graphs equal eager steps; the speed of the graphs
    sampling     samples agree with the CPU's
    evaluation   held-out scores agree with the CPU's
    export       files of the model on the device agree with the model on the CPU

To add a model, add a `Family` to FAMILIES. TF32 is off in rows that compare float32 of two devices.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

# cuBLAS sums in a fixed order only in a workspace of a fixed size. It reads this when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from _flops import flops_of
from torch import Tensor, nn

# A script sees only its own folder; without this it would accept an installed version.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ray_gen
from ray_gen import losses
from ray_gen.core import Evaluates, Networks, declared
from ray_gen.data import Split, Store
from ray_gen.data.moments import Moments
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.networks.batch_norm import GroupBatchNorm
from ray_gen.noise import Tape
from ray_gen.pipeline import Pipeline
from ray_gen.pipeline.export import export
from ray_gen.pipeline.export.programs import TOLERANCE, programs_of
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.loop import build_feed, held_out_scores
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Program, Recorder, Step

CPU = torch.device("cpu")
ENDLESS = 10**12
STEPS = 20
# Models


Autocast = Callable[[], AbstractContextManager[Any]]
"""A context in which networks compute in bf16, or one without effect."""

PlainLoop = Callable[[Networks, Autocast], Callable[[Tensor], None]]
"""From networks to a step on images (N, C, H, W), as one writes it in PyTorch: the same losses,
torch's own Adam, no EMA, no metrics."""


@dataclass(frozen=True)
class Family:
    """A kind of model. A batch is one group."""

    side: int
    """Side of its images, in pixels."""
    experiment: Callable[[bool], dict[str, Any]]
    """Networks, objective and optimisers. With True: of a small model for a CPU."""
    batch: tuple[int, int]
    """Images of a step: on a GPU, and of the small model."""
    plain: PlainLoop | None = None
    """Of images without labels. None: its speed is not compared."""
    channels: int = 1
    """Of its images."""
    of_latents: bool = False
    """Its images are latents of images, mirrored ones too, which training draws anew."""
    cosine: float = 0.99
    """Least cosine of the row bf16."""
    uncompilable: str = ""
    """Why `training.compile` refuses it. Empty: it must compile."""


def _images(side: int, channels: int) -> dict[str, Any]:
    return {"kind": "mnist5k", "image_size": side, "channels": channels}


def _adam(rate: float, beta1: float) -> dict[str, Any]:
    return {"kind": "adam", "learning_rate": rate, "betas": [beta1, 0.999]}


def _vae(small: bool) -> dict[str, Any]:
    """784-400-(20, 20), as in pytorch/examples."""
    mlp = {"kind": "mlp", "hidden_sizes": [64 if small else 400]}
    return {
        "networks": {"encoder": mlp, "decoder": mlp},
        "objective": {"kind": "vae", "latent_size": 20, "likelihood": "bernoulli"},
        "optimizers": {"autoencoder": _adam(1e-3, 0.9)},
    }


def _plain_vae(networks: Networks, autocast: Autocast) -> Callable[[Tensor], None]:
    optimizer = torch.optim.Adam(networks.parameters(), lr=1e-3)

    def step(images: Tensor) -> None:
        with autocast():
            mean, log_variance = networks["encoder"](images).float().chunk(2, dim=1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            logits = networks["decoder"](z)
        nll = losses.bernoulli_nll(logits.float(), images)
        optimizer.zero_grad()
        (nll + losses.gaussian_kl(mean, log_variance)).mean().backward()
        optimizer.step()

    return step


def _iwae(small: bool) -> dict[str, Any]:
    """Burda et al. 2016, with five samples and DReG."""
    mlp = {
        "kind": "mlp",
        "hidden_sizes": [32] if small else [200, 200],
        "activation": "tanh",
        "initial_weights": "glorot",
    }
    return {
        "networks": {"encoder": mlp, "decoder": mlp},
        "objective": {
            "kind": "vae",
            "latent_size": 50,
            "binarize": True,
            "samples": 5,
            "gradient": "dreg",
        },
        "optimizers": {"autoencoder": _adam(1e-3, 0.9)},
    }


def _dcgan(small: bool) -> dict[str, Any]:
    """Radford et al. 2016, at 32 pixels."""
    dcgan = {"kind": "dcgan", "width": 16 if small else 64}
    adam = _adam(2e-4, 0.5)
    return {
        "networks": {"generator": dcgan, "discriminator": dcgan},
        "objective": {"kind": "gan", "latent_size": 100, "loss": "non_saturating"},
        "optimizers": {"generator": adam, "discriminator": adam},
    }


def _plain_gan(networks: Networks, autocast: Autocast) -> Callable[[Tensor], None]:
    generator, discriminator = networks["generator"], networks["discriminator"]
    of_generator, of_discriminator = (
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for network in (generator, discriminator)
    )

    def step(images: Tensor) -> None:
        discriminator.requires_grad_(True)
        with autocast():
            with torch.no_grad():
                fakes = generator(torch.randn(len(images), 100, device=images.device))
            fake, real = discriminator(fakes), discriminator(images)
        of_discriminator.zero_grad()
        losses.discriminator_loss(real.float(), fake.float()).mean().backward()
        of_discriminator.step()
        discriminator.requires_grad_(False)  # spares its weights' gradients, as our step does
        with autocast():
            fake = discriminator(generator(torch.randn(len(images), 100, device=images.device)))
        of_generator.zero_grad()
        losses.generator_loss_non_saturating(fake.float()).mean().backward()
        of_generator.step()

    return step


def _vae_gan(small: bool) -> dict[str, Any]:
    """Larsen et al. 2016, with the networks of DCGAN. The encoder's gradient passes the decoder and
    the discriminator: on a CPU the cosine was 0.989 at width 8."""
    dcgan = {"kind": "dcgan", "width": 8 if small else 64}
    adam = _adam(2e-4, 0.5)
    return {
        "networks": {"encoder": dcgan, "decoder": dcgan, "discriminator": dcgan},
        "objective": {"kind": "vae_gan", "latent_size": 128},
        "optimizers": {"discriminator": adam, "autoencoder": adam},
    }


# Penalties that are lazy where these models were published are due at every step here: otherwise
# most rows would not meet them.


def _gan(
    network: dict[str, Any], adam: dict[str, Any], of_discriminator: Any = None, **objective: Any
) -> dict[str, Any]:
    """A GAN with one architecture. of_discriminator: other fields of this network."""
    other = {**network, **(of_discriminator or {})}
    return {
        "networks": {"generator": network, "discriminator": other},
        "objective": {"kind": "gan", **objective},
        "optimizers": {"generator": adam, "discriminator": adam},
    }


def _resnet(small: bool) -> dict[str, Any]:
    """SNGAN with labels (Miyato and Koyama 2018), but with one discriminator step."""
    return _gan(
        {"kind": "resnet", "width": 2 if small else 32, "labels": "conditional_batch_norm"},
        _adam(2e-4, 0.0),
        {"labels": "projection", "spectral_norm": True},
        conditional=True,
        latent_size=128,
        loss="hinge",
    )


def _r3gan(small: bool) -> dict[str, Any]:
    """Huang et al. 2024, with its schedules over the first 20 steps."""
    horizon = STEPS * R3GAN_BATCH[small]

    def falls(start: float, end: float) -> dict[str, Any]:
        return {"kind": "cosine", "start": start, "end": end, "until_images": horizon}

    return _gan(
        {"kind": "r3gan", "width": 8 if small else 64, "blocks": 1 if small else 2},
        {"kind": "adam", "learning_rate": 2e-4, "betas": [0.0, falls(0.9, 0.99)]},
        latent_size=64,
        loss="relativistic",
        r1_weight=falls(0.05, 0.005),
        r2_weight=falls(0.05, 0.005),
    )


R3GAN_BATCH = (32, 4)


def _stylegan2(small: bool) -> dict[str, Any]:
    """StyleGAN2-ADA (Karras et al. 2020) with path length. The target of the adaptive p is so low
    that p grows, by 1 in 400 images."""
    size = 32 if small else 512
    network = {"kind": "stylegan2", "mapping_layers": 2, "style_size": size}
    width = {"channel_base": 64 if small else 1024, "channel_max": 16 if small else 256}
    return _gan(
        {**network, **width},
        {"kind": "adam", "learning_rate": 2.5e-3, "betas": [0.0, 0.99]},
        latent_size=size,
        r1_weight=0.01,
        path_length_weight=2.0,
        path_length_every=1,
        augment={"kind": "ada", "target": -0.99, "ada_images": 400},
    )


def _fastgan(small: bool) -> dict[str, Any]:
    """Liu et al. 2021; MS-SSIM compares reconstructions. Rounding turns the gradient of its deep
    generator: on a CPU the cosine was 0.959 to 0.979 at widths from 2 to 16."""
    return _gan(
        {"kind": "fastgan", "width": 2 if small else 16},
        _adam(2e-4, 0.5),
        latent_size=256,
        loss="hinge",
        hinge_margin=[0.8, 1.0],
        reconstruction_weight=8.0,
        reconstruction_distance={"kind": "ssim"},
        augment=["color", "translation"],
    )


def _patch(small: bool) -> dict[str, Any]:
    """DCGAN's generator against a patch discriminator (Isola et al. 2017)."""
    return _gan(
        {"kind": "dcgan", "width": 8 if small else 64},
        _adam(2e-4, 0.5),
        {"kind": "patch", "layers": 2},
        latent_size=100,
        loss="hinge",
    )


def _latent(small: bool, bottleneck: dict[str, Any]) -> dict[str, Any]:
    """A latent autoencoder with a discriminator of patches from the first step on."""
    network = {"kind": "conv", "width": 8 if small else 64}
    adam = _adam(2e-4, 0.5)
    return {
        "networks": {
            "encoder": network,
            "decoder": network,
            "discriminator": {"kind": "patch", "layers": 1, "width": 8 if small else 64},
        },
        "objective": {
            "kind": "latent_autoencoder",
            "downsampling": 4,
            "bottleneck": bottleneck,
            "perceptual": {"kind": "ssim"},
            "adversarial_weight": 0.5,
            "adaptive": True,
        },
        "optimizers": {"autoencoder": adam, "discriminator": adam},
    }


def _latent_kl(small: bool) -> dict[str, Any]:
    """Rombach et al. 2022, with small networks."""
    return _latent(small, {"kind": "kl", "weight": 1e-6})


def _latent_vq(small: bool) -> dict[str, Any]:
    """Esser et al. 2021, with small networks."""
    return _latent(small, {"kind": "vq", "codes": 64 if small else 1024})


def _in_latents(small: bool) -> dict[str, Any]:
    """DCGAN in the latents of the KL autoencoder, which decodes its samples."""
    training = {"images": ENDLESS, "global_batch_size": 8}
    given = {"data": _images(32, 3), "training": training, **_latent_kl(small)}
    autoencoder = Experiment.of(given).resolved((3, 32, 32), None).model_dump(mode="json")
    data = {"kind": "latents", "path": "nowhere", "flip": True, "autoencoder": autoencoder}
    return {"data": data, **_dcgan(small)}


FAMILIES: dict[str, Family] = {
    "vae": Family(28, _vae, (128, 32), _plain_vae),
    "iwae": Family(28, _iwae, (128, 32)),
    "dcgan": Family(32, _dcgan, (64, 16), _plain_gan),
    "vae_gan": Family(32, _vae_gan, (64, 16), channels=3, cosine=0.95),
    "resnet": Family(32, _resnet, (32, 4), channels=3),
    "r3gan": Family(32, _r3gan, R3GAN_BATCH, channels=3),
    "stylegan2": Family(32, _stylegan2, (32, 4), channels=3),
    "patch": Family(32, _patch, (64, 8), channels=3),
    "latent-kl": Family(32, _latent_kl, (64, 8), channels=3),
    "latent-vq": Family(32, _latent_vq, (64, 8), channels=3),
    "in-latents": Family(8, _in_latents, (64, 16), channels=4, of_latents=True),
    "fastgan": Family(64, _fastgan, (16, 4), channels=3, cosine=0.9),
}


class Model:
    """A family on a device. Each row gets one."""

    def __init__(self, family: Family, device: torch.device, seconds: float) -> None:
        self.family = family
        self.device = device
        self.seconds = seconds
        """Length of a timed block."""
        small = device.type == "cpu"
        self.batch = family.batch[small]
        shape = family.side, family.side, family.channels
        random_store = _random_latents if family.of_latents else _random_store
        self.store = random_store(shape, 8 * self.batch, 2 * self.batch)
        training = {
            "images": ENDLESS,
            "global_batch_size": self.batch,
            "group_size": self.batch,
            "ema_half_life_images": 10 * self.batch,
        }
        given = {
            "data": _images(family.side, family.channels),
            "training": training,
            **family.experiment(small),
        }
        classes = self.store.class_names
        self.experiment = Experiment.of(given).resolved(self.store.image_shape, classes)

    def run(
        self, device: torch.device | None = None, record: Recorder | None = None, **training: Any
    ) -> Run:
        """A new run from the start. training: changed fields of the `training` section."""
        changes = {f"training__{name}": value for name, value in training.items()}
        this = self.experiment.with_fields(**changes)
        return Run(this, self.store, device or self.device, record)

    @cached_property
    def gradient_bound(self) -> float:
        """1e-3, or four times the error of the CPU's own float32 gradient if that is more. Where a
        ReLU's input is nearly 0, rounding decides. For DCGAN at width 64 the error is 5e-4."""
        rounded, exact = (self.run(CPU, precision=p).gradients() for p in ("fp32", "fp64"))
        return max(1e-3, 4 * relative_difference(rounded, exact))

    @cached_property
    def trained(self) -> tuple[Run, Run]:
        """A run after 20 steps on the device, and its copy on the CPU, made by a checkpoint."""
        there, here = self.run(), self.run(CPU)
        there.steps(STEPS)
        copy_state(there, here)
        return there, here


class Run:
    """A state, its step and its images."""

    def __init__(
        self, this: Experiment, store: Store, device: torch.device, record: Recorder | None
    ) -> None:
        self.experiment = this
        self.store = store
        self.world = World(device=device)
        self.objective = build_objective(this)
        self.state = State.build(this, self.objective, self.world)
        self.meter = Meter(this.training.global_batch_size, self.world)
        self.step = Step(this, self.objective, self.state, self.world, self.meter, record)
        self._feed = build_feed(this, self.objective, store, self.world)

    def steps(self, count: int) -> Run:
        """Trains for `count` steps, on the images of the data path."""
        first = self.state.step
        for images, labels in self._feed.steps(first, first + count):
            self.step(images, labels)
        return self

    def batches(self, steps: int) -> list[tuple[Tensor, Tensor | None]]:
        """Images and labels of the first steps, on the device."""
        return list(self._feed.steps(0, steps))

    def on_one_batch(self) -> Callable[[int], None]:
        """Returns a function that trains for a number of steps on one batch on the device."""
        (batch,) = self.batches(1)

        def steps(count: int) -> None:
            for _ in range(count):
                self.step(*batch)
            self.meter.report()

        return steps

    def pipeline(self) -> Pipeline:
        """A pipeline that uses the averages."""
        return Pipeline(self.experiment, self.objective, self.state.ema)

    def weights(self) -> dict[str, Tensor]:
        """Each network and each average as one vector, buffers included: float64 (D,)."""
        parts = self.tensors()
        del parts["moments"]
        return {name: _flat(tensors.values()) for name, tensors in parts.items() if tensors}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the networks, their averages and the moments, on the CPU."""
        state = self.state
        parts = {name: network.state_dict() for name, network in state.networks.items()}
        parts |= {f"ema {name}": network.state_dict() for name, network in state.ema.items()}
        return {
            part: {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            for part, tensors in {**parts, "moments": state.moments()}.items()
        }

    def gradients(self, steps: int = 1) -> dict[str, Tensor]:
        """Gradients of the last of `steps` steps, by phase: float64 (D,), on the CPU. The steps do
        not move the weights, so these stay initial."""
        found: dict[str, Tensor] = {}

        def keep(phase: str, parameters: Sequence[nn.Parameter], now: Any) -> None:
            del now
            found[phase] = _flat([p.grad for p in parameters if p.grad is not None])

        for phase, optimizer in self.state.optimizers.items():
            optimizer.step = partial(keep, phase, optimizer.parameters)  # pyright: ignore
        self.steps(steps)
        for optimizer in self.state.optimizers.values():
            del optimizer.step  # the class has the real one
        return found


def copy_state(run: Run, other: Run) -> None:
    """Copies the state of a run to another run, on any device, by a checkpoint."""
    with TemporaryDirectory() as folder:
        run.state.save(Path(folder), run.experiment)
        other.state.load(Path(folder))


def _random_store(image_shape: tuple[int, int, int], count: int, held_out: int) -> Store:
    """Images (H, W, C) of a fixed seed, in memory."""
    generator = torch.Generator().manual_seed(1)

    def split(size: int) -> Split:
        images = torch.randint(0, 256, (size, *image_shape), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, 10, (size,), generator=generator))

    names = tuple("0123456789")
    return Store(split(count), split(held_out), names, skipped=0, path=Path(), label_count=10)


def _random_latents(shape: tuple[int, int, int], count: int, held_out: int) -> Store:
    """Means and deviations of latents (h, w, c) of a fixed seed, in memory."""
    height, width, channels = shape
    names = ("mean", "std", "mean_flipped", "std_flipped")
    moments = Moments((channels, height, width), names)
    generator = torch.Generator().manual_seed(1)

    def split(size: int) -> Split:
        maps = torch.randn(size, len(names), *shape, generator=generator)
        maps[:, 1::2].abs_()
        labels = torch.randint(0, 10, (size,), generator=generator)
        return Split(maps.flatten(1, 2).half(), labels)

    classes = tuple("0123456789")
    whole = Store(split(count), split(held_out), classes, skipped=0, path=Path(), label_count=10)
    return whole.with_moments(moments)


# Measuring


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """float64 (D,), on the CPU."""
    return torch.cat([tensor.detach().to("cpu", torch.float64).flatten() for tensor in tensors])


def _tensors(numbers: Mapping[str, float]) -> dict[str, Tensor]:
    """Each number as a vector (1,)."""
    return {name: torch.tensor([number], dtype=torch.float64) for name, number in numbers.items()}


def relative_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest ‖a - b‖/‖b‖ of vectors (D,) by name; NaN if there is one."""
    found = [(ours[n] - b).norm() / b.norm().clamp(min=1e-300) for n, b in theirs.items()]
    return float(torch.stack(found).max())


def _timed(run: Callable[[int], None], steps: int, device: torch.device) -> float:
    """Seconds of `steps` steps."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run(steps)
    wait()
    return time.perf_counter() - start


def _speeds(model: Model, *runs: Callable[[int], None], rounds: int = 5) -> list[list[float]]:
    """Images/s of each, by round. Rounds are interleaved; a block takes `model.seconds`."""
    counts: list[int] = []
    for run in runs:
        run(8)  # more than a recorder takes to warm up
        steps, seconds = 4, 0.0
        while seconds < model.seconds / 4:
            steps *= 2
            seconds = _timed(run, steps, model.device)
        counts.append(max(1, round(steps * model.seconds / seconds)))
    by_round = [
        [
            n * model.batch / _timed(run, n, model.device)
            for run, n in zip(runs, counts, strict=True)
        ]
        for _ in range(rounds)
    ]
    return [list(speeds) for speeds in zip(*by_round, strict=True)]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of one speed divided by another."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


@cache
def _bf16_peak(device: torch.device) -> float:
    """FLOP/s of a large matrix product in bf16: the best of ten."""
    side = 8192 if device.type == "cuda" else 512
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(matrix, matrix)

    products(3)
    return 2 * side**3 * 5 / min(_timed(products, 5, device) for _ in range(10))


@contextmanager
def _without_tf32() -> Generator[None]:
    """Computes products and convolutions in float32's 24 bits. A GPU could otherwise use 11 of them
    (TF32)."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@contextmanager
def _deterministic() -> Generator[None]:
    """Sums in a fixed order. Turns off torch's filling of new memory, which only exposes code that
    reads it."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


@contextmanager
def _no_waiting(device: torch.device) -> Generator[None]:
    """Raises if the host would wait for a GPU, e.g. to read a number or in a blocking copy. It uses
    torch's sync debug mode, which by its documentation misses some waits."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Replayed:
    """Records a program as a CUDA graph. The first two steps run eagerly. The third is captured. A
    capture computes nothing, so the third step is then replayed, like all that follow.

    The warm-up runs on another stream, as torch's notes on CUDA graphs ask. The capture uses that
    same stream, so what autograd stores about streams fits the graph.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._stream = torch.cuda.Stream()
        self._runs = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self._given: tuple[Tensor, Tensor | None] | None = None
        """Images and labels, in the memory from which the graph reads them."""

    def __call__(self, images: Tensor, labels: Tensor | None) -> None:
        self._runs += 1
        if self._runs <= 2:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._program(images, labels)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self.graph is None or self._given is None:
            self._given = images.clone(), None if labels is None else labels.clone()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self._stream):
                self._program(*self._given)
        own_images, own_labels = self._given
        own_images.copy_(images)
        if own_labels is not None and labels is not None:
            own_labels.copy_(labels)
        self.graph.replay()


# Rows


@dataclass(frozen=True)
class Found:
    """What a check measured, and the bounds of a pass."""

    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        high = self.at_most is None or self.value <= self.at_most
        return high and (self.at_least is None or self.value >= self.at_least)

    @property
    def bound(self) -> str:
        """The bound as text; empty if there is none."""
        if self.at_most is not None:
            return f"≤ {self.at_most:,.4g}"
        return "" if self.at_least is None else f"≥ {self.at_least:,.4g}"


class NotApplicable(Exception):
    """The check has nothing to check here. The message says why."""


Check = Callable[[Model], Found]
CHECKS: dict[str, tuple[Check, float]] = {}
"""By row: its check, and the seconds that the check may take for a family on a GPU."""


def _row(name: str, seconds: float) -> Callable[[Check], Check]:
    def registered(check: Check) -> Check:
        CHECKS[name] = check, seconds
        return check

    return registered


@_row("fp64", seconds=20)
def fp64(model: Model) -> Found:
    """20 steps in float64, compared with the CPU's."""
    there, here = (model.run(d, precision="fp64").steps(STEPS) for d in (model.device, CPU))
    return Found(relative_difference(there.weights(), here.weights()), "‖Δw‖/‖w‖", at_most=1e-6)


@_row("gradients", seconds=5)
def gradients(model: Model) -> Found:
    """Gradients of the first step in float32, compared with the CPU's."""
    with _without_tf32():
        there, here = (model.run(device).gradients() for device in (model.device, CPU))
    return Found(relative_difference(there, here), "‖Δg‖/‖g‖", at_most=model.gradient_bound)


@_row("resume", seconds=15)
def resume(model: Model) -> Found:
    """A run that is stopped half-way, saved and loaded, compared with a run in one go; the cost of
    determinism."""
    with _deterministic():
        whole, half, again = (model.run() for _ in range(3))
        whole.steps(STEPS)
        half.steps(STEPS // 2)
        copy_state(half, again)
        again.steps(STEPS // 2)
    ours, theirs = again.tensors(), whole.tensors()
    names = [(part, name) for part in theirs for name in theirs[part]]
    differing = [f"{p} {n}" for p, n in names if not torch.equal(ours[p][n], theirs[p][n])]
    bare = model.run().on_one_batch()

    def fixed(steps: int) -> None:
        with _deterministic():
            bare(steps)

    slow, fast = _speeds(model, fixed, bare, rounds=3)
    note = f"deterministic {median(slow):,.0f} images/s, else {median(fast):,.0f}"
    note += f"; first {differing[0]}" if differing else ""
    return Found(len(differing), f"of {len(names)} tensors differ", at_most=0, note=note)


@_row("compiled", seconds=45)
def compiled(model: Model) -> Found:
    """Gradients of the sixth step, which on a GPU is a replayed CUDA graph, compared with eager
    ones.

    It does not compare weights after Adam's steps. Adam divides a gradient by its size, so rounding
    moves a weight with a gradient near 0 by a whole step (1.6e-3 of DCGAN's weights after 6 steps).
    """
    eager, graph = model.run(), model.run(compile=True)
    with _without_tf32():  # also for the speed: the compiler starts again if the flag changes
        try:
            found = graph.gradients(6)
        except Refused as refused:
            reason = _lacks(model.device) or model.family.uncompilable
            if reason:
                raise NotApplicable(reason) from refused
            raise
        expected = eager.gradients(6)
        buffers = relative_difference(graph.weights(), eager.weights())
        slow, fast = _speeds(model, eager.on_one_batch(), graph.on_one_batch(), rounds=3)
    assert buffers <= 1e-4, f"buffers differ by {buffers:.2g}"
    note = f"{median(fast):,.0f} images/s, eager {median(slow):,.0f}"
    return Found(
        relative_difference(found, expected), "‖Δg‖/‖g‖", at_most=model.gradient_bound, note=note
    )


def _lacks(device: torch.device) -> str:
    """What the compiler needs and this machine lacks; empty if nothing."""
    import torch._dynamo

    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        return f"torch {torch.__version__} cannot trace gradients"
    if device.type == "cuda" and find_spec("triton") is None:
        return "triton is not installed"
    variable, usual = ("CC", "gcc clang cc") if device.type == "cuda" else ("CXX", "g++ clang++")
    wanted = os.environ.get(variable, usual).split()
    return "" if any(map(shutil.which, wanted)) else f"no compiler: none of {', '.join(wanted)}"


@_row("bf16", seconds=5)
def bf16(model: Model) -> Found:
    """The smallest cosine between a phase's gradient in bf16 and in float32."""
    with _without_tf32():
        exact, rounded = model.run().gradients(), model.run(precision="bf16").gradients()
    cosines = [torch.cosine_similarity(exact[p], rounded[p], dim=0) for p in exact]
    note = f"‖Δg‖/‖g‖ {relative_difference(rounded, exact):.2g}"
    return Found(
        float(torch.stack(cosines).min()), "cosine", at_least=model.family.cosine, note=note
    )


@_row("no-sync", seconds=5)
def no_sync(model: Model) -> Found:
    """For every kind of block, also the EMA's: 10 steps across a block's end, in torch's sync debug
    mode."""
    run = model.run()
    batches, ends = cycle(run.batches(4)), _ends_of_blocks(run)
    for end in ends:
        run.state.step = end - 5
        for number in range(13):
            with _no_waiting(model.device) if number >= 3 else nullcontext():
                run.step(*next(batches))
    if model.device.type != "cuda":
        raise NotApplicable("nothing waits on a CPU")
    try:
        with _no_waiting(model.device):
            torch.zeros((), device=model.device).item()
    except RuntimeError:
        note = f"across steps {', '.join(map(str, ends))}"
        return Found(10 * len(ends), "steps without a wait", note=note)
    raise AssertionError("torch does not notice that the host waits")


def _ends_of_blocks(run: Run) -> list[int]:
    """Steps, from 5 up, at which noise of a phase or weights of the EMA are computed for a new
    block."""
    training = run.experiment.training
    lengths = {128 * training.ema_every_steps}
    for phase in run.objective.phases():
        noise = declared(phase.noise, run.state.networks)
        lengths.add(phase.every * Tape.length_for(noise, training.global_batch_size))
    return sorted(-(-5 // length) * length for length in lengths)


@_row("memory", seconds=3)
def memory(model: Model) -> Found:
    """Peak memory of 10 steps, including weights and optimisers."""
    if model.device.type != "cuda":
        import resource

        model.run().steps(10)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Found(peak / 2**30, "GiB", note="of this process so far")
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    model.run().steps(10)
    peak = torch.cuda.max_memory_allocated(model.device) - before
    return Found(peak / 2**30, "GiB")


@_row("speed", seconds=10)
def speed(model: Model) -> Found:
    """In float32, with torch's default for TF32, for the plain loop too."""
    return _speed(model, "fp32", nullcontext)


@_row("speed-bf16", seconds=10)
def speed_bf16(model: Model) -> Found:
    """In bf16, by autocast."""
    if model.device.type != "cuda":
        raise NotApplicable("for a GPU")
    return _speed(model, "bf16", partial(torch.autocast, model.device.type, torch.bfloat16))


SLOWEST = 0.5
"""If a GPU's step is below this share of the plain loop's speed, something is wrong with it."""


def _speed(model: Model, precision: str, autocast: Autocast) -> Found:
    """Images/s of a step on one batch on the device."""
    run = model.run(precision=precision)
    ours = run.on_one_batch()
    ours(8)
    flops = flops_of(lambda: ours(8)) / (8 * model.batch)
    peak = _bf16_peak(model.device)
    contestants = [ours]
    if model.family.plain is not None:
        step = model.family.plain(_plain_networks(run), autocast)
        ((images, _),) = run.batches(1)

        def plain(steps: int) -> None:
            for _ in range(steps):
                step(images)

        contestants.append(plain)
    speeds = _speeds(model, *contestants)
    now = median(speeds[0])
    note = f"{now * flops / peak:.1%} of {peak / 1e12:,.3g} TFLOP/s"
    if len(speeds) == 1:
        return Found(now, "images/s", note=note)
    ratio = _ratio(*speeds)
    note = f"{ratio:.2f} x plain loop, {note}"
    slowest = SLOWEST * now / ratio if model.device.type == "cuda" else None
    return Found(now, "images/s", at_least=slowest, note=note)


def _plain_networks(run: Run) -> Networks:
    """Networks of a run before training, with torch's own BatchNorm."""
    networks = build_networks(run.experiment, run.objective)
    for module in list(networks.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupBatchNorm):
                channels = child.weight.numel()
                plain = nn.BatchNorm2d(channels, eps=child.eps, momentum=child.momentum)
                plain.load_state_dict(child.state_dict(), strict=False)
                setattr(module, name, plain)
    return networks.to(run.world.device).train()


@_row("replay", seconds=10)
def replay(model: Model) -> Found:
    """20 steps in float64, most of them replayed, and their reports, compared with eager ones."""
    if model.device.type != "cuda":
        raise NotApplicable("CUDA graphs need a GPU")
    recorders: list[Replayed] = []

    def record(program: Program) -> Program:
        recorders.append(Replayed(program))
        return recorders[-1]

    both, every = (record, None), {"ema_every_steps": 2}  # so that both programs run often enough
    with _deterministic():
        runs = [model.run(record=r, precision="fp64", **every).steps(STEPS) for r in both]
    found, expected = ({**run.weights(), **_tensors(run.meter.report())} for run in runs)
    assert recorders and all(recorder.graph is not None for recorder in recorders)
    apart, count = relative_difference(found, expected), len(recorders)
    fast, slow = _speeds(model, *(model.run(record=r, **every).on_one_batch() for r in both))
    note = f"{count} graphs, {median(fast):,.0f} images/s, {_ratio(fast, slow):.2f} x eager"
    return Found(apart, "‖Δw‖/‖w‖", at_most=1e-6, note=note + ("" if apart else "; bit for bit"))


@_row("sampling", seconds=4)
def sampling(model: Model) -> Found:
    """64 samples; a grey level is 4e-3."""
    with _without_tf32():
        there, here = (run.pipeline().sample(64, seed=0) for run in model.trained)
    return Found(float((there - here).abs().max()), "max |Δx|", at_most=1e-4)


@_row("evaluation", seconds=4)
def evaluation(model: Model) -> Found:
    """The objective's own scores of held-out images."""
    if not isinstance(model.trained[0].objective, Evaluates):
        raise NotApplicable("the objective has no scores")
    with _without_tf32():
        there, here = (
            held_out_scores(r.experiment, r.objective, r.state, r.store.held_out, r.world)
            for r in model.trained
        )
    apart = relative_difference(_tensors(there), _tensors(here))
    return Found(apart, "relative", at_most=1e-5, note=", ".join(here))


@_row("export", seconds=14)
def exported(model: Model) -> Found:
    """Files written from the device: programs run on the CPU, weights on the device."""
    there, here = model.trained
    with TemporaryDirectory() as work, _without_tf32():
        folder = export(
            there.pipeline(), Path(work) / "model", formats=["safetensors", "torch"]
        ).path
        loaded = Pipeline.from_pretrained(folder, device=model.device)
        pairs = [(loaded.sample(16, seed=0), here.pipeline().sample(16, seed=0))]
        programs, _ = programs_of(here.pipeline())
        for program in programs:
            run = torch.export.load(folder / f"{program.name}.pt2").module()
            for given, expected in zip(program.probes, program.expected, strict=True):
                found = run(*given)
                found = (found,) if isinstance(found, Tensor) else found
                pairs += zip(found, expected, strict=True)
    apart = [(a - b).detach().abs().max() / b.abs().max().clamp(1.0) for a, b in pairs]
    note = f"config, model, {', '.join(program.name for program in programs)}"
    return Found(float(torch.stack(apart).max()), "max |Δ|", at_most=TOLERANCE, note=note)


# The table


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    row: str
    family: str
    verdict: Literal["passed", "failed", "n/a"]
    seconds: float
    budget_seconds: float
    value: float | None = None
    unit: str = ""
    bound: str = ""
    note: str = ""

    def __str__(self) -> str:
        number = "" if self.value is None else f"{self.value:,.4g} {self.unit}"
        over = self.seconds > self.budget_seconds
        note = f"OVER its {self.budget_seconds:g} s. {self.note}" if over else self.note
        return _line(
            self.row, self.family, self.verdict, number, self.bound, f"{self.seconds:.1f}", note
        )


def _line(*cells: str) -> str:
    widths = (11, 10, 7, 25, 11, 6, 0)
    return "  ".join(cell.ljust(n) for cell, n in zip(cells, widths, strict=True)).rstrip()


def checked(name: str, family: str, model: Callable[[], Model]) -> Row:
    """A row, even if its check raises."""
    check, budget = CHECKS[name]
    start = time.perf_counter()

    def row(verdict: Literal["passed", "failed", "n/a"], **more: Any) -> Row:
        return Row(name, family, verdict, time.perf_counter() - start, budget, **more)

    try:
        found = check(model())
    except NotApplicable as reason:
        return row("n/a", note=str(reason))
    except Exception:
        traceback.print_exc()
        return row("failed", note=traceback.format_exc().strip().splitlines()[-1])
    return row(
        "passed" if found.passed else "failed",
        value=found.value,
        unit=found.unit,
        bound=found.bound,
        note=found.note,
    )


def environment(device: torch.device) -> dict[str, str]:
    """Hardware and versions."""
    found = {"device": device.type, "threads": str(torch.get_num_threads())}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"], found["cudnn"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
    found |= {"python": platform.python_version(), "torch": torch.__version__}
    return {**found, "ray_gen": ray_gen.__version__}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, writes the JSON if asked to, and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=tuple(CHECKS), nargs="+", help="some of the rows")
    parser.add_argument("--family", choices=tuple(FAMILIES), nargs="+", help="some of the models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--seconds", type=float, help="of a timed block (1; on a CPU 0.1)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; use --device cpu")
    if options.seconds is not None and options.seconds <= 0:
        parser.error("--seconds must be positive")
    device = torch.device(options.device)
    seconds = options.seconds or (0.1 if device.type == "cpu" else 1.0)
    found = environment(device)
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    print("\n" + _line("row", "family", "verdict", "number", "bound", "s", "note"), flush=True)
    rows: list[Row] = []
    for family in options.family or FAMILIES:
        model = cache(partial(Model, FAMILIES[family], device, seconds))
        for name in options.only or CHECKS:
            rows.append(checked(name, family, model))
            print(rows[-1], flush=True)
    counts = {v: sum(row.verdict == v for row in rows) for v in ("passed", "failed", "n/a")}
    total = sum(row.seconds for row in rows)
    print("\n" + ", ".join(f"{count} {v}" for v, count in counts.items()), f"in {total:.0f} s")
    budget = sum(row.budget_seconds for row in rows)
    if device.type == "cuda" and total > budget:
        print(f"OVER the {budget:g} s of these rows")
    if options.json is not None:
        result = {"environment": found, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
