"""A small classifier of images, and its last hidden layer as features for metrics.

Metrics on features of ImageNet say little about small pictures of another kind. `fit` trains a
classifier on the training images of a folder, with as many images of each class; `Classifier` is
then an extractor: `--features custom:_classifier:Classifier` with the option `weights`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_gen.evaluation.extractors import Features

FEATURES = 128


class Classifier(nn.Module):
    """uint8 images (N, 3, side, side) to features (N, 128) and class scores.

    weights: a file that `fit` wrote. It holds the number of classes and the side.
    """

    def __init__(self, weights: str | None = None, *, classes: int = 0, side: int = 0) -> None:
        super().__init__()
        found = {} if weights is None else load_file(weights)
        if found:
            classes, side = found["head.bias"].numel(), int(found["side"])
        layers: list[nn.Module] = []
        channels = 3
        for width in (32, 64, 128):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.register_buffer("side", torch.tensor(side))
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(channels * 16, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, classes)
        self.resizing = f"bilinear to {side} x {side}, antialiased"
        if found:
            self.load_state_dict(found)

    def forward(self, images: Tensor) -> Features:
        """images: uint8 (N, 3, H, W), of any size."""
        side = int(self.side)  # pyright: ignore
        x = images.float() / 127.5 - 1.0
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        features = self.hidden(self.layers(x))
        return Features(features, self.head(features))


@dataclass(frozen=True)
class Fitted:
    """What came of a training."""

    accuracy: float
    """Share of the test images whose class was found."""
    balanced: float
    """The same, as the mean over the classes."""


def fit(folder: Path, file: Path, *, side: int, epochs: int = 12, seed: int = 0) -> Fitted:
    """Trains a classifier on `folder`/train and writes it to `file`; tests it on `folder`/test.

    Each epoch shows every class as often as the mean class has images. Images are moved by up to an
    eighth of the side. One-cycle rate, Adam, batches of 128.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    names = sorted(path.name for path in (folder / "train").iterdir())
    train, test = (_images(folder / split, names, side) for split in ("train", "test"))
    model = Classifier(classes=len(names), side=side).to(memory_format=torch.channels_last)
    counts = torch.bincount(train[1], minlength=len(names))
    weights = 1.0 / counts[train[1]].double()
    batches = math.ceil(len(train[1]) / 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        model.train()
        for _ in range(batches):
            chosen = torch.multinomial(weights, 128, replacement=True, generator=generator)
            images = _moved(train[0][chosen], generator)
            loss = F.cross_entropy(_scores(model, images), train[1][chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        found = torch.cat([_scores(model, part).argmax(1) for part in test[0].split(256)])
    right = (found == test[1]).double()
    of_classes = [right[test[1] == n].mean() for n in range(len(names)) if (test[1] == n).any()]
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, file)
    return Fitted(float(right.mean()), float(torch.stack(of_classes).mean()))


def _scores(model: Classifier, images: Tensor) -> Tensor:
    scores = model(images).logits
    assert scores is not None
    return scores


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its side, filled by its edge, and mirrored or not."""
    reach = images.shape[-1] // 8
    padded = F.pad(images.float(), (reach,) * 4, mode="replicate").to(torch.uint8)
    size = images.shape[-1]
    places = torch.randint(2 * reach + 1, (len(images), 2), generator=generator)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    parts: Iterator[Tensor] = (
        image[:, row : row + size, column : column + size]
        for image, (row, column) in zip(padded, places.tolist(), strict=True)
    )
    moved = torch.stack(list(parts))
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


def _images(folder: Path, names: list[str], side: int) -> tuple[Tensor, Tensor]:
    """uint8 (N, 3, side, side), and the number of each image's class, int64 (N,)."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as image:
                small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                images.append(np.asarray(small))
                labels.append(number)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)
