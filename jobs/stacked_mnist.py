"""Modes that a GAN finds of StackedMNIST: three random digits as red, green and blue (Metz et al.
2017, 3.3.1; Srivastava et al. 2017).

    python jobs/stacked_mnist.py data DEST                  # stacks.zip, digits.safetensors
    python jobs/stacked_mnist.py modes DEST RUN... [--count 26000]

There are 1,000 modes. `data` writes 25,600 stacks of the built-in training digits, 28 x 28, and
trains a classifier of single digits; its accuracy on the held-out digits is printed. `modes` draws
images of each run, names the three digits of each, and prints how many modes occur, and the reverse
KL divergence of the modes from the uniform distribution in nats. The real stacks, of as many draws,
are the first row: what a perfect model would reach.

Fewer digits than in the papers (4,000 of 60,000), so numbers are comparable only with each other.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# A script sees only its own folder; without this it would measure an installed version.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ray_gen
from ray_gen.data import Split, Store
from ray_gen.training.sources import open_data

STACKS = 25_600
MODES = 1_000


class Digits(nn.Sequential):
    """Grey images (N, 1, 28, 28) in [0, 1] to scores of ten digits."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 49, 128), nn.ReLU()),
            *(nn.Dropout(0.3), nn.Linear(128, 10)),
        )


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out digits: uint8 (N, 28, 28), and their numbers, int64 (N,)."""
    experiment = ray_gen.recipe("vae-mnist5k")
    store: Store = open_data(experiment)
    return _part(store.train), _part(store.held_out)


def _part(split: Split) -> tuple[Tensor, Tensor]:
    assert split.labels is not None
    return split.images_NHWC[..., 0].clone(), split.labels.clone()


def write(dest: Path) -> None:
    """The stacks, and the classifier."""
    dest.mkdir(parents=True, exist_ok=True)
    (images, labels), (others, theirs) = _digits()
    model = _fitted(images, labels)
    with torch.no_grad():
        found = model(others[:, None].float() / 255).argmax(1)
    print(f"digits: {float((found == theirs).double().mean()):.4f} of {len(theirs)} held-out named")
    save_file(model.state_dict(), dest / "digits.safetensors")
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(images), (STACKS, 3), generator=generator)
    with zipfile.ZipFile(dest / "stacks.zip", "w") as archive:
        for number, row in enumerate(chosen):
            file = io.BytesIO()
            Image.fromarray(images[row].permute(1, 2, 0).numpy()).save(file, "png")
            archive.writestr(f"{number:05}.png", file.getvalue())


def _fitted(images: Tensor, labels: Tensor) -> Digits:
    """A classifier of digits, moved by up to two pixels. AdamW, one-cycle rate, batches of 64."""
    torch.manual_seed(0)
    model, epochs = Digits(), 30
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = epochs * math.ceil(len(images) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            down, right = torch.randint(-2, 3, (2,)).tolist()
            batch = images[chosen, None].float().div(255).roll((down, right), (2, 3))
            loss = F.cross_entropy(model(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def counts(model: Digits, images: Tensor) -> Tensor:
    """How often each of the 1,000 modes occurs: int64 (1000,). images: (N, 3, H, W) in [0, 1],
    of 28 pixels, or of 32 with an edge of 2."""
    edge = (images.shape[-1] - 28) // 2
    inner = images[..., edge : edge + 28, edge : edge + 28]
    found = [model(part.flatten(0, 1)[:, None]).argmax(1) for part in inner.split(512)]
    hundreds, tens, ones = torch.cat(found).view(-1, 3).unbind(1)
    return torch.bincount(100 * hundreds + 10 * tens + ones, minlength=MODES)


def reverse_kl(found: Tensor) -> float:
    """KL(modes of the samples ‖ uniform) in nats."""
    share = found.double() / found.sum()
    return float(torch.special.xlogy(share, share).sum()) + math.log(MODES)


def modes(dest: Path, runs: list[str], count: int) -> None:
    """Prints a table."""
    model = Digits()
    model.load_state_dict(load_file(dest / "digits.safetensors"))
    model.eval()
    print("| run | modes | reverse KL (nats) |\n|-|-|-|")
    with zipfile.ZipFile(dest / "stacks.zip") as archive:
        real = [
            np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()
        ]
    drawn = torch.from_numpy(np.stack(real)).permute(0, 3, 1, 2).float() / 255
    _print("real stacks", counts(model, drawn))
    for run in runs:
        _print(run, counts(model, ray_gen.load(run).sample(count)))


def _print(name: str, found: Tensor) -> None:
    print(f"| {name} | {int((found > 0).sum())} | {reverse_kl(found):.3f} |", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("data")
    one.add_argument("dest", type=Path)
    one = commands.add_parser("modes")
    one.add_argument("dest", type=Path)
    one.add_argument("runs", nargs="+")
    one.add_argument("--count", type=int, default=26_000)
    given = parser.parse_args()
    if given.command == "data":
        write(given.dest)
    else:
        modes(given.dest, given.runs, given.count)


if __name__ == "__main__":
    main()
