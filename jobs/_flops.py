"""Floating point operations of whatever runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper


def flops_of(run: Callable[[], object]) -> float:
    """Floating point operations of matrix products and convolutions while `run` runs. A product and
    a sum count as two.

    torch's own `FlopCounterMode` raises if a gradient is asked for at the input of a module, as in
    WGAN-GP, and takes the weight gradient of a convolution in groups for one without groups.
    """
    with _Flops() as counter:
        run()
    return counter.total


class _Flops(TorchDispatchMode):
    """Adds up torch's formulas of the operators that run, gradients included."""

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _of_convolution_backward(
    gradient: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    *others: Any,
    **more: Any,
) -> int:
    """Each gradient, of the input and of the weight, costs as much as the forward pass. All
    arguments are those of the operator, with shapes for tensors."""
    del more
    transposed, wanted = others[4], others[7]
    places = math.prod(x[2:]) if transposed else math.prod(gradient[2:])
    return 2 * x[0] * places * math.prod(weight) * (wanted[0] + wanted[1])


_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten.convolution_backward: shape_wrapper(_of_convolution_backward),
}
