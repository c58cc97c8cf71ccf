"""Fully connected networks, from any shapes to any shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_gen.core import Signature
from ray_gen.networks.blocks import blocks_of, ends_of, with_features
from ray_gen.networks.labels import LabelVector, without_labels
from ray_gen.networks.spectral_norm import with_spectral_norm

_ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.2, inplace=True),
    "tanh": nn.Tanh,
}


def _layers(sizes: Sequence[int], activation: str, initial_weights: str) -> nn.Sequential:
    """Linear layers, with an activation between each two."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        if initial_weights == "glorot":
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class Mlp(nn.Module):
    """Any inputs to any outputs. Flattens the input and appends the labels and the conditions.

    Several outputs are parts of one last layer.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        initial_weights: str,
        label_size: int,
        spectral_norm: bool,
        labels: str = "concatenated",
    ) -> None:
        super().__init__()
        outputs = signature.outputs
        self._shape = None if isinstance(outputs, Mapping) else outputs
        self._shapes = outputs if isinstance(outputs, Mapping) else {"": outputs}
        self._conditions = tuple(signature.conditions)
        self._tanh = signature.activation == "tanh"
        self._makes_maps = signature.form in ("vector_to_map", "array_to_map")
        seen = without_labels(signature) if labels == "none" else signature
        self.label = LabelVector(seen, label_size)
        inputs = math.prod(signature.input) + self.label.added
        inputs += sum(math.prod(shape) for shape in signature.conditions.values())
        sizes = [inputs, *hidden_sizes, sum(math.prod(shape) for shape in self._shapes.values())]
        self.layers = _layers(sizes, activation, initial_weights)
        if spectral_norm:
            with_spectral_norm(self.layers)

    def blocks_from_image(self) -> list[nn.Module]:
        """See `ray_gen.core.InBlocks`: each layer, from the last one if only the output is a
        map."""
        blocks = blocks_of(self.layers)
        return blocks[::-1] if self._makes_maps else blocks

    def forward(
        self, x: Tensor, labels: Tensor | None = None, **conditions: Tensor
    ) -> Tensor | dict[str, Tensor]:
        """x: (N, *input); labels: see `Signature`; conditions: (N, *shape) each, by name."""
        joined = self.label(x.flatten(1), labels)
        if self._conditions:
            more = [conditions[name].flatten(1) for name in self._conditions]
            joined = torch.cat([joined, *more], dim=1)
        return self._outputs(self.layers(joined))

    def features(
        self, images: Tensor, labels: Tensor | None = None, *, layer: int | None = None
    ) -> tuple[Tensor | dict[str, Tensor], Tensor]:
        """See `ray_gen.core.Featured`: a hidden layer, after its activation."""
        joined = self.label(images.flatten(1), labels)
        out, found = with_features(self.layers, ends_of(self.layers)[:-1], joined, layer)
        return self._outputs(out), found

    def _outputs(self, out: Tensor) -> Tensor | dict[str, Tensor]:
        """The last layer's numbers in the shapes of the signature."""
        if self._tanh:
            out = torch.tanh(out)
        if self._shape is not None:
            return out if len(self._shape) == 1 else out.view(-1, *self._shape)
        parts = out.split([math.prod(shape) for shape in self._shapes.values()], dim=1)
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.reshape(-1, *shape) for (name, shape), part in named}
