"""torch's optimisers, through their functional forms: a phase's moments are plain tensors by name.

Constructing a class of torch.optim imports torch's compiler, 3 to 5 s that every worker and every
trial of a search would pay, and its hooks take 2 % of a small VAE's step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from ray_gen.experiment.optimizers import Adam, AdamW, Optimizer, Sgd


class PhaseOptimizer:
    """Updates the parameters of one phase, by the fused kernels."""

    def __init__(self, settings: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self.settings = settings
        self.parameters = list(parameters.values())
        self._names = list(parameters)
        kinds = ("momentum",) if isinstance(settings, Sgd) else ("exp_avg", "exp_avg_sq")
        # Moments have their parameters' strides (channels-last, too): fused kernels walk both at
        # once, as they lie in memory.
        self._moments = {kind: [torch.zeros_like(p) for p in self.parameters] for kind in kinds}
        self._steps = [torch.zeros((), device=p.device) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update by the parameters' `grad`, all of which must be there."""
        gradients: list[Tensor] = [p.grad for p in self.parameters if p.grad is not None]
        parameters: list[Tensor] = [*self.parameters]
        settings = self.settings
        if isinstance(settings, Sgd):
            sgd(
                parameters,
                gradients,
                [*self._moments["momentum"]],
                fused=True,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=settings.nesterov,
                maximize=False,
            )
            return
        assert isinstance(settings, (Adam, AdamW))
        (adamw if isinstance(settings, AdamW) else adam)(
            parameters,
            gradients,
            self._moments["exp_avg"],
            self._moments["exp_avg_sq"],
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            lr=learning_rate,
            weight_decay=settings.weight_decay if isinstance(settings, AdamW) else 0.0,
            eps=settings.eps,
            maximize=False,
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by `parameter/moment`."""
        found = {
            f"{name}/{kind}": moment
            for kind, moments in self._moments.items()
            for name, moment in zip(self._names, moments, strict=True)
        }
        steps = zip(self._names, self._steps, strict=True)
        return {**found, **{f"{name}/step": step for name, step in steps}}
