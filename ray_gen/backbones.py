"""Classifiers of torchvision by name, with weights that were read as nothing but tensors.

torchvision takes seconds to import, so functions import it.
"""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_gen.errors import Refused
from ray_gen.weights import digest_of, downloaded, misfit, read_weights

_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")


@dataclass(frozen=True)
class Classifier:
    """A classifier with its weights, in eval mode on the CPU, and the images that it was made
    for."""

    network: nn.Module
    """(N, 3, size, size), standardised, to logits (N, K)."""
    last: str
    """The path of its last linear layer, whose input are its features."""
    size: int
    """Side of the images in pixels."""
    mode: str
    """Interpolation to this size: "bilinear" or "bicubic"."""
    mean: Sequence[float]
    std: Sequence[float]
    """Of its images in [0, 1], for each channel."""
    digest: str
    source: str
    """The name of torchvision's weights, or "from a file"."""

    @property
    def last_layer(self) -> nn.Linear:
        """The last linear layer."""
        found = self.network.get_submodule(self.last)
        assert isinstance(found, nn.Linear)
        return found


def classifier(backbone: str, weights: str | None, *, field: str, weights_field: str) -> Classifier:
    """A classifier of `torchvision.models`, e.g. resnet50, vit_b_16, convnext_tiny.

    weights: a file with its state dict, for any number of classes. None: torchvision's default
    weights are downloaded on first use. field, weights_field: settings, for messages. Raises
    Refused.
    """
    preset = _preset(backbone, field)
    if weights is None:
        tensors = read_weights(downloaded(preset.url, weights_field), weights_field)
        source = str(preset).rpartition(".")[2]
    else:
        tensors = read_weights(Path(weights).expanduser(), weights_field)
        source = "from a file"
    recipe = preset.transforms()
    size: int = recipe.crop_size[0]
    network, last = _filled(backbone, tensors, size, field, weights_field)
    mode: str = recipe.interpolation.value
    digest = digest_of(tensors)
    return Classifier(network, last, size, mode, recipe.mean, recipe.std, digest, source)


def _preset(backbone: str, field: str) -> Any:
    """The default weights of a backbone, as torchvision describes them."""
    try:
        from torchvision import models
    except ImportError as error:
        raise Refused(f"{field}: torchvision cannot be imported ({error})") from error
    known = models.list_models(module=models)
    if backbone not in known:
        near = difflib.get_close_matches(backbone, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
        raise Refused(f"{field}: torchvision has no classifier {backbone!r}{hint}")
    weights = models.get_model_weights(backbone)
    return weights.DEFAULT  # pyright: ignore


def _filled(
    backbone: str, tensors: Mapping[str, Tensor], side: int, field: str, weights_field: str
) -> tuple[nn.Module, str]:
    """The network with its weights, and the path of its last linear layer. side: of the images, in
    pixels."""
    # torchvision's published densenets still have old names. Its mnasnets need a version.
    renamed = {_OLD_NAME.sub(r"\1\2.", name): tensor for name, tensor in tensors.items()}
    state = OrderedDict(renamed)
    state._metadata = getattr(tensors, "_metadata", {"": {"version": 2}})  # pyright: ignore

    with torch.random.fork_rng(devices=[]):
        network = _built(backbone, side, 1000)
        name, last = _last_linear(network, backbone, field)
        classes = len(state.get(f"{name}.weight", last.weight))
        if classes != 1000:
            network = _built(backbone, side, classes)
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise misfit(error, f"torchvision's {backbone}", weights_field) from error
    return network.float().eval().requires_grad_(False), name


def _built(backbone: str, side: int, classes: int) -> nn.Module:
    """The untrained network, built as torchvision does for its published weights."""
    from torchvision import models

    options: dict[str, Any] = {}
    if backbone in ("googlenet", "inception_v3"):  # their initialisation takes half a minute
        options = {"transform_input": True, "init_weights": False}
    elif backbone.startswith("vit_"):
        options = {"image_size": side}
    return models.get_model(backbone, weights=None, num_classes=classes, **options)


def _last_linear(network: nn.Module, backbone: str, field: str) -> tuple[str, nn.Linear]:
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise Refused(f"{field}: {backbone} ends in no linear layer; choose e.g. resnet50")
    return layers[-1]
