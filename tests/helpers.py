"""Small experiments and data, and training in one or several real processes (gloo)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from ray_gen.core import Objective, Phase
from ray_gen.data import Split, Store
from ray_gen.distributed import World
from ray_gen.experiment import Experiment
from ray_gen.training.build import build_objective
from ray_gen.training.loop import Report, build_feed, train
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Step

CLASSES = tuple("0123456789")

ADAM = {"kind": "adam", "learning_rate": 1e-3}
TRAINING = {
    "images": 24 * 20,
    "global_batch_size": 24,
    "group_size": 6,
    "ema_half_life_images": 100,
    "ema_every_steps": 2,
    "report_every_images": 24 * 10,
    "checkpoint_every_images": 24 * 10,
}


def some_of(names: Iterable[str], *quick: str) -> list[Any]:
    """All names as parameters of a test. Those that are not `quick` are marked `slow`."""
    slow = pytest.mark.slow
    names = list(names)
    assert set(quick) <= set(names)
    return [pytest.param(name, marks=[] if name in quick else [slow]) for name in names]


def experiment(base: dict[str, Any], *overrides: str, side: int = 8) -> Experiment:
    """A resolved experiment from a mapping and `path=value` assignments."""
    import yaml

    text = yaml.safe_dump({"data": {"kind": "mnist5k", "image_size": side}, **base})
    return Experiment.from_yaml(text, overrides).resolved((1, side, side), CLASSES)


def vae(*overrides: str, kind: str = "mlp") -> Experiment:
    """A small VAE."""
    network = {"kind": kind, "hidden_sizes": [32]} if kind == "mlp" else {"kind": kind, "width": 8}
    return experiment(
        {
            "networks": {"encoder": network, "decoder": network},
            "objective": {"kind": "vae", "latent_size": 5},
            "optimizers": {"autoencoder": ADAM},
            "training": TRAINING,
        },
        *overrides,
    )


def gan(*overrides: str, kind: str = "mlp") -> Experiment:
    """A small GAN."""
    network = {"kind": kind, "hidden_sizes": [32]} if kind == "mlp" else {"kind": kind, "width": 8}
    return experiment(
        {
            "networks": {"generator": network, "discriminator": network},
            "objective": {"kind": "gan", "latent_size": 5},
            "optimizers": {"generator": ADAM, "discriminator": ADAM},
            "training": TRAINING,
        },
        *overrides,
    )


def larsen(*overrides: str, kind: str = "mlp") -> Experiment:
    """A small VAE-GAN, as the package has it."""
    network = {"kind": kind, "hidden_sizes": [32]} if kind == "mlp" else {"kind": kind, "width": 8}
    return experiment(
        {
            "networks": dict.fromkeys(("encoder", "decoder", "discriminator"), network),
            "objective": {"kind": "vae_gan", "latent_size": 5},
            "optimizers": {"discriminator": ADAM, "autoencoder": ADAM},
            "training": TRAINING,
        },
        *overrides,
    )


STYLEGAN2 = tuple(
    f"networks.{name}={{kind: stylegan2, channel_base: 32, channel_max: 4, style_size: 6, "
    "mapping_layers: 1, deviation_group: 3}"
    for name in ("generator", "discriminator")
)
"""Makes the small GAN one with styles."""


def vae_gan(*overrides: str) -> Experiment:
    """A small VAE-GAN, an objective of the tests' own."""
    body = {"kind": "dcgan", "width": 4}
    features = {
        "kind": "custom",
        "target": "tests.custom_objectives:FeatureDiscriminator",
        "options": {"width": 4},
    }
    return _custom(
        "VaeGan", {"encoder": body, "decoder": body, "discriminator": features}, *overrides
    )


def relativistic(*overrides: str) -> Experiment:
    """A small relativistic GAN with R1 and R2, an objective of the tests' own."""
    body = {"kind": "dcgan", "width": 8}
    bare = {**body, "batch_norm": False}
    return _custom("RelativisticGan", {"generator": body, "discriminator": bare}, *overrides)


def _custom(name: str, networks: dict[str, Any], *overrides: str) -> Experiment:
    """An experiment with an objective of the tests' own, which has a phase for each network."""
    return experiment(
        {
            "networks": networks,
            "objective": {
                "kind": "custom",
                "target": f"tests.custom_objectives:{name}",
                "options": {"latent_size": 5, "gamma": 0.5},
            },
            "optimizers": dict.fromkeys(networks, ADAM),
            "training": TRAINING,
        },
        *overrides,
    )


def latent_autoencoder(*overrides: str, images: int = 8) -> Experiment:
    """A small latent autoencoder with a discriminator of patches."""
    network = {"kind": "conv", "width": 8}
    patches = {"kind": "patch", "width": 8, "layers": 1}
    return experiment(
        {
            "networks": {"encoder": network, "decoder": network, "discriminator": patches},
            "objective": {
                "kind": "latent_autoencoder",
                "latent_channels": 2,
                "downsampling": 2,
                "bottleneck": {"kind": "kl", "weight": 0.01},
                "adversarial_weight": 0.1,
            },
            "optimizers": {"autoencoder": ADAM, "discriminator": ADAM},
            "training": TRAINING,
        },
        *overrides,
        side=images,
    )


PATIENCE_SECONDS = 300.0
"""Nothing that a test waits for takes this long, however busy the machine is."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Returns when the condition holds. what: for the message if it never does."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s: {what}"
        time.sleep(0.02)


def started(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """A child process that hears Ctrl-C, with pipes for what it prints.

    A shell that starts the tests in the background makes them ignore SIGINT, and a child inherits
    that. It does not inherit a handler: the child begins with the default.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        return subprocess.Popen(command, **{**pipes, **options})
    finally:
        signal.signal(signal.SIGINT, before)


class Only:
    """An objective with some of its phases."""

    def __init__(self, objective: Objective, *phases: str) -> None:
        self._objective = objective
        self._phases = phases

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def phases(self) -> list[Phase]:
        """Those that are named, in their order."""
        return [phase for phase in self._objective.phases() if phase.name in self._phases]


def batches(
    this: Experiment, objective: Objective, store: Store, first: int, last: int
) -> list[tuple[Tensor, Tensor | None]]:
    """Images and labels of whole global batches, of the steps from `first` to `last` - 1."""
    return list(build_feed(this, objective, store, World()).steps(first, last))


def stepped(
    this: Experiment, objective: Objective, store: Store, steps: int, state: State | None = None
) -> tuple[State, Meter]:
    """The state after some steps without a loop around them, and the meter of these steps."""
    state = state or State.build(this, objective, World())
    meter = Meter(this.training.global_batch_size, World())
    step = Step(this, objective, state, World(), meter)
    for images, labels in batches(this, objective, store, state.step, state.step + steps):
        step(images, labels)
    return state, meter


def random_store(side: int, count: int = 72, held_out: int = 24) -> Store:
    """Random grey images in memory."""
    generator = torch.Generator().manual_seed(1)

    def split(size: int) -> Split:
        images = torch.randint(
            0, 256, (size, side, side, 1), dtype=torch.uint8, generator=generator
        )
        return Split(images, torch.randint(0, 10, (size,), generator=generator))

    return Store(split(count), split(held_out), CLASSES, skipped=0, path=Path(), label_count=10)


def trained(
    this: Experiment, store: Store, world: World | None = None, state: State | None = None
) -> tuple[State, list[Report]]:
    """The state after a whole run in this process, and its reports."""
    world = world or World()
    objective = build_objective(this)
    state = state or State.build(this, objective, world)
    return state, list(train(this, objective, state, store, world))


def weights(state: State) -> dict[str, dict[str, Tensor]]:
    """Copies of all tensors of the networks and their averages, by network."""
    found = {}
    profiles = ((f"profile {sigma} ", of) for sigma, of in state.profiles.items())
    for prefix, networks in (("", state.networks), ("ema ", state.ema), *profiles):
        for name, network in networks.items():
            tensors = network.state_dict().items()
            found[prefix + name] = {key: value.detach().clone() for key, value in tensors}
    return found


def largest_difference(ours: Any, theirs: Any) -> float:
    """max |Δw| over all networks."""
    return max(
        float((ours[name][key] - theirs[name][key]).abs().max())
        for name in theirs
        for key in theirs[name]
    )


def relative_difference(ours: Any, theirs: Any) -> float:
    """max over networks of ‖Δw‖ / ‖w‖."""
    ratios = []
    for name in theirs:
        difference = sum(
            float((ours[name][k] - theirs[name][k]).square().sum()) for k in ours[name]
        )
        size = sum(float(theirs[name][k].square().sum()) for k in ours[name])
        ratios.append((difference / max(size, 1e-12)) ** 0.5)
    return max(ratios)


def trained_by_workers(
    count: int,
    experiments: Sequence[Experiment],
    store: Store,
    folder: Path,
    before: Path | None = None,
) -> list[dict[str, dict[str, Tensor]]]:
    """Final weights of each experiment, trained by `count` processes that gloo connects.

    before: a checkpoint to begin from. The last experiment leaves one in `folder`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "ray_gen.training.loop", "tests.helpers"])
    texts = [this.to_yaml() for this in experiments]
    processes = [
        context.Process(target=_worker, args=(rank, count, port, texts, store, folder, before))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.is_alive():
            process.kill()
    failures = [path.read_text() for path in folder.glob(f"failed-{count}-*")]
    assert not failures, failures[0]
    return torch.load(folder / f"weights-{count}.pt", weights_only=True)


def _worker(
    rank: int,
    count: int,
    port: int,
    texts: Sequence[str],
    store: Store,
    folder: Path,
    before: Path | None,
) -> None:
    try:
        torch.set_num_threads(1)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=count)
        world = World.joined(torch.device("cpu"))
        results = []
        for text in texts:
            this, state = Experiment.from_yaml(text), None
            if before is not None:
                state = State.build(this, build_objective(this), world)
                state.load(before)
            state, _ = trained(this, store, world, state)
            results.append(weights(state))
        if rank == 0:
            torch.save(results, folder / f"weights-{count}.pt")
            (folder / "checkpoint").mkdir(exist_ok=True)
            state.save(folder / "checkpoint", this)
        dist.destroy_process_group()
    except BaseException:
        (folder / f"failed-{count}-{rank}").write_text(traceback.format_exc())
        raise
