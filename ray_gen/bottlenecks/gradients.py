"""How a gradient at a code passes to the encoding that became it: pure functions.

Encodings z and codes e: (N, D, ...), vectors along the second axis. The results equal e, up to
rounding, and send no gradient to e.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_LENGTH = 1e-6
"""Shorter encodings or codes have no direction that could be turned."""


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """z + sg(e - z): the encoding gets the gradient of the code (van den Oord et al. 2017,
    section 3.2)."""
    return z + (e - z).detach()


def rotated(z: Tensor, e: Tensor) -> Tensor:
    """sg(‖e‖ / ‖z‖ R) z, with the rotation R that turns z to the direction of e in their plane: the
    angle between a gradient and a code is then that between what z gets and z.

    Fifty et al. 2024 ("Restructuring vector quantization with the rotation trick"), section 4:
    R = I - 2 r rᵀ + 2 ê ẑᵀ, with ẑ = z / ‖z‖, ê = e / ‖e‖ and r = (ẑ + ê) / ‖ẑ + ê‖. The gradient
    grows like 1 / ‖z‖. Where z or e is shorter than 1e-6, it passes straight through.
    """
    with torch.no_grad():
        z_length, e_length = (x.norm(dim=1, keepdim=True) for x in (z, e))
        z_unit, e_unit = F.normalize(z, dim=1), F.normalize(e, dim=1)
        r = F.normalize(z_unit + e_unit, dim=1)
        ratio = e_length / z_length.clamp(min=_LEAST_LENGTH)
        turns = torch.minimum(z_length, e_length) >= _LEAST_LENGTH
    along_r = (z * r).sum(1, keepdim=True)
    along_z = (z * z_unit).sum(1, keepdim=True)
    turned = ratio * (z - 2.0 * along_r * r + 2.0 * along_z * e_unit)
    return torch.where(turns, turned, straight_through(z, e))
