"""A network of others that does not learn."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network whose tensors are buffers: in no checkpoint, unknown to optimisers, on the device
    and in the type of the module around it. It stays in eval mode.

    The network itself is changed. Its BatchNorm layers become fixed scales, so that no group of
    images normalises them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = _with_fixed_norms(network)
        for module in self.network.modules():
            for name, tensor in [*module.named_parameters(recurse=False)]:
                delattr(module, name)
                module.register_buffer(name, tensor.detach(), persistent=False)
            for name, tensor in [*module.named_buffers(recurse=False)]:
                module.register_buffer(name, tensor, persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stays in eval mode: dropout and the like are off."""
        return super().train(False)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """A call of the network."""
        return self.network(*arguments, **options)


class _FixedNorm(nn.Module):
    """A BatchNorm layer as it is after training: (x - mean) / std · weight + bias."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        assert layer.running_mean is not None and layer.running_var is not None
        self.register_buffer("mean", layer.running_mean)
        self.register_buffer("variance", layer.running_var)
        for name in ("weight", "bias"):
            tensor: Tensor | None = getattr(layer, name)
            self.register_buffer(name, None if tensor is None else tensor.detach())
        self._eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.mean, self.variance, self.weight, self.bias, training=False, eps=self._eps
        )


def _with_fixed_norms(network: nn.Module) -> nn.Module:
    if isinstance(network, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return _FixedNorm(network)
    for name, child in network.named_children():
        fixed = _with_fixed_norms(child)
        if fixed is not child:
            setattr(network, name, fixed)
    return network
