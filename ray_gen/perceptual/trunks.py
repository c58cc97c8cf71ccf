"""The convolutions of torchvision's VGG16, AlexNet and SqueezeNet 1.1, without their classifiers.

The layers have the numbers and names that they have in torchvision, so that its state dicts fit.
torchvision itself takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Trunk:
    """A network whose features are compared, after some of its ReLUs."""

    build: Callable[[], list[nn.Module]]
    """Makes the layers up to the last one whose output is a feature."""
    ends: tuple[int, ...]
    """Numbers of the layers whose outputs are features (Zhang et al. 2018, as their code)."""
    channels: tuple[int, ...]
    """Of these features."""
    least_side: int
    """Pixels of the smallest side that leaves one position to the last feature."""
    url: str
    """Where torchvision publishes its weights. The name holds the beginning of their SHA-256."""
    torchvision: str
    """Its name in torchvision.models."""

    def network(self) -> Features:
        """The network with tensors that hold no numbers yet."""
        with torch.device("meta"):
            return Features(self.build(), self.ends)


class Features(nn.Module):
    """Layers in a row, as `features` of torchvision's classifiers."""

    def __init__(self, layers: list[nn.Module], ends: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.ModuleList(layers)
        self._ends = ends

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to the outputs (N, D, h, w) of the layers `ends`."""
        found: list[Tensor] = []
        for number, layer in enumerate(self.features):
            images = layer(images)
            if number in self._ends:
                found.append(images)
        return found


class Fire(nn.Module):
    """Iandola et al. 2016, SqueezeNet, figure 1."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        """expanded: channels of each of the two convolutions whose outputs are joined."""
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, 2 · expanded, h, w)."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


def _vgg16() -> list[nn.Module]:
    """Blocks of 2, 2, 3, 3 and 3 convolutions (Simonyan and Zisserman 2015, configuration D)."""
    layers: list[nn.Module] = []
    inputs = 3
    for count, outputs in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(count):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
    return layers


def _alexnet() -> list[nn.Module]:
    """Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"."""
    return [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]


def _squeezenet() -> list[nn.Module]:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return [
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool()),
        *(Fire(64, 16, 64), Fire(128, 16, 64), pool()),
        *(Fire(128, 32, 128), Fire(256, 32, 128), pool()),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    ]


_URL = "https://download.pytorch.org/models/"

TRUNKS: Mapping[str, Trunk] = {
    "vgg": Trunk(
        _vgg16,
        (3, 8, 15, 22, 29),
        (64, 128, 256, 512, 512),
        16,
        f"{_URL}vgg16-397923af.pth",
        "vgg16",
    ),
    "alex": Trunk(
        _alexnet,
        (1, 4, 7, 9, 11),
        (64, 192, 384, 256, 256),
        31,
        f"{_URL}alexnet-owt-7be5be79.pth",
        "alexnet",
    ),
    "squeeze": Trunk(
        _squeezenet,
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        17,
        f"{_URL}squeezenet1_1-b8a52dc0.pth",
        "squeezenet1_1",
    ),
}
"""By the names that LPIPS gives them."""
