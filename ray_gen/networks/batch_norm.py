"""Batch normalisation over groups of the global batch: the number of workers does not change the
result."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.phase_sums import PhaseSums


class GroupBatchNorm(PhaseSums):
    """BatchNorm (Ioffe and Szegedy 2015) over groups of consecutive images ("ghost" batches, Hoffer
    et al. 2017).

    In training each group is normalised by its own mean and variance, for any number of groups on a
    rank or in a micro-batch. Running statistics move once in each phase that updates the network,
    towards the mean over all groups of all ranks.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, plain: nn.BatchNorm1d | nn.BatchNorm2d, group_size: int) -> None:
        if plain.running_mean is None or plain.running_var is None:
            raise ValueError(
                "a BatchNorm without running statistics cannot be used after training; set "
                "track_running_stats to True"
            )
        super().__init__(2 * plain.running_mean.numel())
        self.group_size = group_size
        self.eps = plain.eps
        self.momentum = 0.1 if plain.momentum is None else plain.momentum
        self.weight = plain.weight
        self.bias = plain.bias
        self.register_buffer("running_mean", plain.running_mean)
        self.register_buffer("running_var", plain.running_var)
        self._sums = self._sums.to(plain.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape. In training N is a multiple of `group_size`."""
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        groups = [self._normalised(group) for group in x.split(self.group_size)]
        return groups[0] if len(groups) == 1 else torch.cat(groups)

    def _normalised(self, group: Tensor) -> Tensor:
        if not self.collecting:
            return F.batch_norm(group, None, None, self.weight, self.bias, True, eps=self.eps)
        # With momentum 1, torch writes the group's own mean and unbiased variance. It multiplies
        # the old values by 0, so they must be finite: a NaN would remain.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        normalised = F.batch_norm(
            group, mean, variance, self.weight, self.bias, True, momentum=1.0, eps=self.eps
        )
        self.add(torch.cat([mean, variance]), 1)
        return normalised

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """The running statistics, towards the mean over the groups that were seen."""
        mean, variance = (sums / count).chunk(2)
        return {
            "running_mean": self.running_mean.lerp(mean, self.momentum),
            "running_var": self.running_var.lerp(variance, self.momentum),
        }


def with_group_batch_norm(module: nn.Module, group_size: int) -> nn.Module:
    """Replace every BatchNorm1d and BatchNorm2d in a module, also inside users' own classes."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return GroupBatchNorm(module, group_size)
    for name, child in module.named_children():
        replaced = with_group_batch_norm(child, group_size)
        if replaced is not child:
            setattr(module, name, replaced)
    return module
