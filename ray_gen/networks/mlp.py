"""Fully connected networks: anything to anything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_gen.core import Shape, Signature
from ray_gen.networks.labels import LabelVector
from ray_gen.networks.spectral_norm import with_spectral_norm

_ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.2, inplace=True),
    "tanh": nn.Tanh,
}


def _layers(sizes: Sequence[int], activation: str, initial_weights: str) -> nn.Sequential:
    """Linear layers with an activation between each two."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        if initial_weights == "glorot":
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class Mlp(nn.Module):
    """Any inputs to any outputs, flattened: the label's vector and the conditions join the input.

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
    ) -> None:
        super().__init__()
        self._outputs = signature.outputs
        self._conditions = tuple(signature.conditions)
        self._tanh = signature.activation == "tanh"
        self.label = LabelVector(signature.label_count, label_size)
        inputs = math.prod(signature.input) + self.label.added
        inputs += sum(math.prod(shape) for shape in signature.conditions.values())
        shapes = _by_name(signature.outputs).values()
        sizes = [inputs, *hidden_sizes, sum(math.prod(shape) for shape in shapes)]
        self.layers = _layers(sizes, activation, initial_weights)
        if spectral_norm:
            with_spectral_norm(self.layers)

    def forward(
        self, x: Tensor, labels: Tensor | None = None, **conditions: Tensor
    ) -> Tensor | dict[str, Tensor]:
        """x: (N, *input); labels: int64 (N,) or None; conditions: (N, *shape) each, by name."""
        more = [conditions[name].flatten(1) for name in self._conditions]
        joined = self.label(x.flatten(1), labels)
        out = self.layers(torch.cat([joined, *more], dim=1) if more else joined)
        out = torch.tanh(out) if self._tanh else out
        if not isinstance(self._outputs, Mapping):
            return out.view(-1, *self._outputs)
        parts = out.split([math.prod(shape) for shape in self._outputs.values()], dim=1)
        named = zip(self._outputs.items(), parts, strict=True)
        return {name: part.reshape(-1, *shape) for (name, shape), part in named}


def _by_name(outputs: Shape | Mapping[str, Shape]) -> Mapping[str, Shape]:
    return outputs if isinstance(outputs, Mapping) else {"": outputs}
