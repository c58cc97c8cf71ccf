"""Where operations run in 16 bits: what autocast asks for, and parts of a network without it. And
how they run in all 32.

Autocast decides by the operation. A network that decides by itself turns autocast off inside and
casts between its parts; weights are cast where they are used.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

_HAS_NO_AUTOCAST = {"meta"}


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type that autocast asks for where x is: bfloat16 in training with `training.precision`
    bf16, except in terms that need full precision. None without autocast."""
    kind = x.device.type
    if kind in _HAS_NO_AUTOCAST or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, operations have the types of their inputs."""
    if autocast_type(x) is None:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def full_precision(device: torch.device) -> Generator[None]:
    """Convolutions and products without TF32, convolutions with fixed algorithms. TF32 would change
    features by 1e-3."""
    if device.type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "ieee"
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        products.fp32_precision = before
