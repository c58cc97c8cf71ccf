"""torch's optimisers, through their functional forms: a phase's moments are plain tensors by name.

Constructing a torch.optim class imports torch's compiler. It would cost every worker and every
trial of a search 3 to 5 s. The hooks of torch.optim take 2 % of a small VAE's step.

A learning rate that changes reaches the fused kernels as a tensor. The kernels take β2 and the
weight decay only as Python floats. If a schedule changes one of these, this file computes the
update itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from ray_gen.core import Number
from ray_gen.experiment.optimizers import Adam, AdamW, Optimizer, Sgd
from ray_gen.training import foreach
from ray_gen.training.schedule import learning_rate


class PhaseOptimizer:
    """Updates the parameters of one phase, with fused kernels where possible."""

    def __init__(self, settings: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self.settings = settings
        self.parameters = list(parameters.values())
        self._names = list(parameters)
        kinds = ("momentum",) if isinstance(settings, Sgd) else ("exp_avg", "exp_avg_sq")
        # Moments have their parameters' strides (channels-last included): fused kernels read both
        # together, in memory order.
        self._moments = {kind: [torch.zeros_like(p) for p in self.parameters] for kind in kinds}
        self._steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def numbers(self) -> dict[str, Number]:
        """The numbers that `step` takes, and `clip_norm` if gradients are clipped."""
        settings = self.settings
        numbers: dict[str, Number] = {"learning_rate": learning_rate(settings)}
        if settings.clip_norm is not None:
            numbers["clip_norm"] = settings.clip_norm
        if not isinstance(settings, Sgd):
            numbers["beta2"] = settings.betas[1]
        if not isinstance(settings, Adam):
            numbers["weight_decay"] = settings.weight_decay
        return numbers

    @torch.no_grad()
    def step(self, now: Mapping[str, float | Tensor]) -> None:
        """One update. Every parameter must have a `grad`.

        now: the value of each of the `numbers`: a float if it never changes, else a 0-dimensional
        float64 tensor on the device.
        """
        if not self.parameters:
            return
        gradients: list[Tensor] = [p.grad for p in self.parameters if p.grad is not None]
        parameters: list[Tensor] = [*self.parameters]
        settings, rate = self.settings, now["learning_rate"]
        decay = now.get("weight_decay", 0.0)
        if settings.kind == "sgd":
            if isinstance(decay, Tensor):  # L2: the gradient of decay/2 ‖w‖²
                weights = foreach.mul(parameters, _as(decay, parameters[0].dtype))
                gradients = list(foreach.add(gradients, weights))
            rate = _for_kernel(rate)
            sgd(
                parameters,
                gradients,
                [*self._moments["momentum"]],
                fused=True,
                weight_decay=0.0 if isinstance(decay, Tensor) else decay,
                momentum=settings.momentum,
                lr=rate,  # pyright: ignore[reportArgumentType]
                dampening=0.0,
                nesterov=settings.nesterov,
                maximize=False,
            )
            return
        beta2 = now["beta2"]
        if isinstance(beta2, Tensor) or isinstance(decay, Tensor):
            self._adam_with_tensors(gradients, rate, beta2, decay)
            return
        rate = _for_kernel(rate)
        (adamw if settings.kind == "adamw" else adam)(
            parameters,
            gradients,
            self._moments["exp_avg"],
            self._moments["exp_avg_sq"],
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            beta1=settings.betas[0],
            beta2=beta2,
            lr=rate,
            weight_decay=decay,
            eps=settings.eps,
            maximize=False,
        )

    def _adam_with_tensors(
        self,
        gradients: list[Tensor],
        rate: float | Tensor,
        beta2: float | Tensor,
        decay: float | Tensor,
    ) -> None:
        """Adam (Kingma and Ba 2015, algorithm 1) with decoupled decay (Loshchilov and Hutter 2019).
        β2 may change: both moments are corrected by the present β, as in torch's Adam after a
        change of its betas."""
        settings = self.settings
        assert isinstance(settings, (Adam, AdamW))
        parameters: list[Tensor] = [*self.parameters]
        like, beta1 = parameters[0], settings.betas[0]
        means, squares = self._moments["exp_avg"], self._moments["exp_avg_sq"]
        foreach.add_(self._steps, 1.0)
        count = self._steps[0].double()  # equal for all parameters
        b2, learning_rate = (_tensor(value, like) for value in (beta2, rate))
        foreach.mul_(parameters, (1.0 - learning_rate * _tensor(decay, like)).to(like.dtype))
        foreach.lerp_(means, gradients, 1.0 - beta1)
        foreach.mul_(squares, b2.to(like.dtype))
        new = foreach.mul(gradients, gradients)
        foreach.mul_(new, (1.0 - b2).to(like.dtype))
        foreach.add_(squares, new)
        scales = foreach.sqrt(squares)
        foreach.mul_(scales, (1.0 - b2**count).rsqrt().to(like.dtype))
        foreach.add_(scales, settings.eps)
        moves = foreach.div(means, scales)
        foreach.mul_(moves, (-learning_rate / (1.0 - beta1**count)).to(like.dtype))
        foreach.add_(parameters, moves)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds, by `parameter/moment`."""
        found = {
            f"{name}/{kind}": moment
            for kind, moments in self._moments.items()
            for name, moment in zip(self._names, moments, strict=True)
        }
        steps = zip(self._names, self._steps, strict=True)
        return {**found, **{f"{name}/step": step for name, step in steps}}


def clip_(gradients: list[Tensor], largest: float | Tensor) -> None:
    """Scale gradients down, in place, until their common norm is at most `largest`, like torch's
    `clip_grad_norm_`."""
    norm = nn.utils.get_total_norm(gradients)
    factor = (_as(largest, norm.dtype) / (norm + 1e-6)).clamp(max=1.0)
    foreach.mul_(gradients, factor)


def _for_kernel(rate: float | Tensor) -> float | Tensor:
    """The rate in the type that fused kernels read: float32 on a GPU, float64 on a CPU."""
    on_gpu = isinstance(rate, Tensor) and rate.device.type == "cuda"
    return rate.float() if on_gpu else rate  # pyright: ignore


def _as(value: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return value.to(dtype) if isinstance(value, Tensor) else value


def _tensor(value: float | Tensor, like: Tensor) -> Tensor:
    """The value in float64, on the device of `like`."""
    if isinstance(value, Tensor):
        return value.double()
    return torch.full((), value, dtype=torch.float64, device=like.device)  # a fill, not a copy
