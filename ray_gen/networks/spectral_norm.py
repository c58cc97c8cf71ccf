"""Spectral normalisation. Its power iteration runs once per phase, not in every forward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ray_gen.core import PhaseModule


class SpectralNorm(PhaseModule):
    """W / σ(W), with the largest singular value σ (Miyato et al. 2018, eq. 8 and algorithm 1).

    torch's own version iterates in every forward pass in training mode, also while another network
    is updated. So micro-batches and workers would change the result.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, out_axis: int) -> None:
        super().__init__()
        self._out_axis = out_axis
        rows, columns = self._matrix(weight).shape
        left, right = weight.new_empty(rows).normal_(), weight.new_empty(columns).normal_()
        self.register_buffer("left", F.normalize(left, dim=0))
        self.register_buffer("right", F.normalize(right, dim=0))
        for _ in range(15):  # a random start comes within about 1 % of σ
            self.begin_phase(weight)

    def _matrix(self, weight: Tensor) -> Tensor:
        """The weight as (outputs, everything else)."""
        return weight.movedim(self._out_axis, 0).flatten(1)

    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight, of the same shape."""
        with torch.autocast(weight.device.type, enabled=False):  # on a GPU, mv would be 16 bits
            # `left` and `right` may be an EMA: an average of unit vectors is shorter than 1.
            left, right = F.normalize(self.left, dim=0), F.normalize(self.right, dim=0)
            sigma = torch.dot(left, torch.mv(self._matrix(weight), right))
        return weight / sigma

    @torch.no_grad()
    def begin_phase(self, original: Tensor | None = None) -> None:
        """One power iteration on the weight."""
        assert original is not None
        matrix = self._matrix(original)
        self.left.copy_(F.normalize(torch.mv(matrix, self.right), dim=0))
        self.right.copy_(F.normalize(torch.mv(matrix.t(), self.left), dim=0))


def with_spectral_norm(module: nn.Module) -> nn.Module:
    """Normalise the weight of every linear and (transposed) convolutional layer in a module."""
    for layer in list(module.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            out_axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            norm = SpectralNorm(layer.weight, out_axis)
            parametrize.register_parametrization(layer, "weight", norm)
    return module
