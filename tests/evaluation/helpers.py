"""Images in memory, small extractors, and evaluation in several real processes (gloo)."""

from __future__ import annotations

import hashlib
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.distributed import World
from ray_gen.evaluation.comparison import Comparison
from ray_gen.evaluation.extractors import Extractor, Features
from ray_gen.evaluation.images import Images
from ray_gen.evaluation.metric import Given
from ray_gen.evaluation.progress import Progress, silent
from ray_gen.evaluation.scores import Score
from ray_gen.experiment.evaluation import Evaluation


class Made:
    """A set of images in memory. `taken` counts the images that were taken."""

    def __init__(self, pixels: Tensor, digest: str | None = None, **description: Any) -> None:
        self.pixels = pixels
        self.digest = digest
        self.description = description
        self.taken = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Sequence[int]) -> Tensor:
        self.taken += len(indices)
        return self.pixels[torch.tensor(list(indices))]


def pictures(count: int, seed: int, shape: tuple[int, int, int] = (3, 16, 16)) -> Tensor:
    """Random blobs of colour with noise, uint8 (N, C, H, W). The contrast grows with the seed."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.randn(count, shape[0], 3, 3, generator=generator) * (0.2 + 0.02 * seed)
    smooth = F.interpolate(blobs, shape[1:], mode="bilinear") + 0.5
    noisy = smooth + 0.03 * torch.randn(count, *shape, generator=generator)
    return noisy.clamp(0, 1).mul(255).round().to(torch.uint8)


class Tiny(nn.Module):
    """A fixed random network of 16 features and 10 logits."""

    channels = 3
    name = "tiny"
    resizing = "none"
    digest = "of the seed"

    def __init__(self, size: int = 16, stretch: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("kernel", torch.randn(size, 3, 4, 4, generator=generator))
        self.register_buffer("head", torch.randn(size, 10, generator=generator))
        self.stretch, self.offset = stretch, offset

    def forward(self, images: Tensor) -> Features:
        values = F.conv2d(images.float() / 255 - 0.5, self.kernel, stride=4)
        vectors = values.relu().mean((2, 3)) * self.stretch + self.offset
        return Features(vectors, vectors @ self.head)


def inception_weights(path: Path) -> Path:
    """Random weights of torch-fidelity's InceptionV3, in its own format. With He's initialisation
    images still differ after 94 layers."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(3)
    network = _unfilled(inception.FeatureExtractorInceptionV3, inception)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.normal_(network.fc.weight, std=0.1)
    torch.save(network.state_dict(), path)
    return path


def _unfilled(build: Any, module: Any) -> Any:
    """The network with torch's initial weights. It loads no weights file."""
    load, module.load_state_dict_from_url = module.load_state_dict_from_url, lambda *a, **k: {}
    fill, build.load_state_dict = build.load_state_dict, lambda self, state: None
    try:
        return build("inception", ["2048", "logits_unbiased"])
    finally:
        module.load_state_dict_from_url = load
        build.load_state_dict = fill


def measured(
    metrics: Sequence[str],
    generated: Images,
    reference: Images,
    *,
    extractor: Extractor | None = None,
    training: Images | None = None,
    held_out: Images | None = None,
    world: World,
    opacity: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    cache_folder: Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> list[Score]:
    """Scores of the generated images against the reference. settings: fields of `evaluation`."""
    others = {"training": training, "held_out": held_out}
    sets = {"generated": generated, "reference": reference}
    sets |= {name: images for name, images in others.items() if images is not None}
    given = Given(
        world,
        sets,
        extractor=extractor,
        opacity=opacity,
        batch_size=batch_size,
        seed=seed,
        cache_folder=cache_folder,
        progress=progress,
    )
    checked = Evaluation.model_validate({"metrics": tuple(metrics), **settings})
    return list(Comparison(metrics, checked, given).scores())


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def by_workers(count: int, work: Callable[[World], Any], folder: Path) -> list[Any]:
    """The result of `work` in each of `count` processes, connected by gloo: numbers, tensors and
    containers of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch_fidelity", "tests.evaluation.helpers"])
    processes = [
        context.Process(target=_worker, args=(rank, count, port, work, folder))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.is_alive():
            process.kill()
    failures = [path.read_text() for path in folder.glob("failed-*")]
    assert not failures, failures[0]
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(count)]


def _worker(rank: int, count: int, port: int, work: Callable[[World], Any], folder: Path) -> None:
    try:
        torch.set_num_threads(1)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=count)
        torch.save(work(World.joined(torch.device("cpu"))), folder / f"result-{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"failed-{rank}").write_text(traceback.format_exc())
        raise


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
