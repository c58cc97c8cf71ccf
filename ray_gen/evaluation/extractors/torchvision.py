"""Any classifier of torchvision, by name. Its features are the inputs of its last linear layer."""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.evaluation.extractors import WEIGHTS, Features
from ray_gen.pixels import unit
from ray_gen.weights import digest_of, downloaded, misfit, read_weights

_FIELD = "evaluation.features.backbone"
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")


class TorchvisionClassifier:
    """A classifier of `torchvision.models`, e.g. resnet50, vit_b_16, convnext_tiny.

    weights: a file with its state dict, for any number of classes. None: torchvision's default
    weights are downloaded on first use. The whole image, not a crop, is resized to the size of the
    weights' training images, and normalised as they were. Raises Refused.
    """

    channels = 3

    def __init__(self, *, backbone: str, weights: str | None = None, device: torch.device) -> None:
        preset = _preset(backbone)
        if weights is None:
            tensors = read_weights(downloaded(preset.url, WEIGHTS), WEIGHTS)
            source = str(preset).rpartition(".")[2]
        else:
            tensors = read_weights(Path(weights).expanduser(), WEIGHTS)
            source = "from a file"
        recipe = preset.transforms()
        self._size: int = recipe.crop_size[0]
        self._network, last = _filled(backbone, tensors, self._size, device)
        last.register_forward_hook(self._remember)
        self._seen: tuple[Tensor, Tensor] | None = None
        self._mode: str = recipe.interpolation.value
        self._mean = torch.tensor(recipe.mean, device=device)[:, None, None]
        self._std = torch.tensor(recipe.std, device=device)[:, None, None]
        self.name = (
            f"torchvision {backbone} {source}, {last.in_features} features before its logits"
        )
        self.resizing = f"{self._size}x{self._size}, {self._mode}, antialiased"
        self.digest = digest_of(tensors)

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, 3, H, W) to vectors (N, D) and logits (N, K), float32."""
        return Features(*self._both(unit(images)))

    def vectors_of(self, images: Tensor) -> Tensor:
        """Floats (N, 3, H, W) in [0, 1] to vectors (N, D), float32; gradients flow through it."""
        return self._both(images.float())[0]

    def _both(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors and logits of images in [0, 1]."""
        size = (self._size, self._size)
        if values.shape[2:] != size:
            values = F.interpolate(values, size, mode=self._mode, antialias=True).clamp(0, 1)
        self._network((values - self._mean) / self._std)
        assert self._seen is not None
        found = self._seen
        self._seen = None
        return found

    def _remember(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen = inputs[0], output


def _preset(backbone: str) -> Any:
    """The default weights of a backbone, as torchvision describes them."""
    try:
        from torchvision import models
    except ImportError as error:
        raise Refused(f"{_FIELD}: torchvision cannot be imported ({error})") from error
    known = models.list_models(module=models)
    if backbone not in known:
        near = difflib.get_close_matches(backbone, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
        raise Refused(f"{_FIELD}: torchvision has no classifier {backbone!r}{hint}")
    weights = models.get_model_weights(backbone)
    return weights.DEFAULT  # pyright: ignore


def _filled(
    backbone: str, tensors: Mapping[str, Tensor], side: int, device: torch.device
) -> tuple[nn.Module, nn.Linear]:
    """The network with its weights, and its last linear layer. side: of the images, in pixels."""
    # torchvision's published densenets still have old names. Its mnasnets need a version.
    renamed = {_OLD_NAME.sub(r"\1\2.", name): tensor for name, tensor in tensors.items()}
    state = OrderedDict(renamed)
    state._metadata = getattr(tensors, "_metadata", {"": {"version": 2}})  # pyright: ignore

    with torch.random.fork_rng(devices=[]):
        network = _built(backbone, side, 1000)
        name, last = _last_linear(network, backbone)
        classes = len(state.get(f"{name}.weight", last.weight))
        if classes != 1000:
            network = _built(backbone, side, classes)
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise misfit(error, f"torchvision's {backbone}", WEIGHTS) from error
    network = network.float().to(device).eval().requires_grad_(False)
    return network, _last_linear(network, backbone)[1]


def _built(backbone: str, side: int, classes: int) -> nn.Module:
    """The untrained network, built as torchvision does for its published weights."""
    from torchvision import models

    options: dict[str, Any] = {}
    if backbone in ("googlenet", "inception_v3"):  # their initialisation takes half a minute
        options = {"transform_input": True, "init_weights": False}
    elif backbone.startswith("vit_"):
        options = {"image_size": side}
    return models.get_model(backbone, weights=None, num_classes=classes, **options)


def _last_linear(network: nn.Module, backbone: str) -> tuple[str, nn.Linear]:
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise Refused(f"{_FIELD}: {backbone} ends in no linear layer; choose e.g. resnet50")
    return layers[-1]
