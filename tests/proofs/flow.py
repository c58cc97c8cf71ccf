"""Flow matching (Lipman et al. 2023) on straight paths (rectified flow, Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ray_gen import losses
from ray_gen.core import Batch, Losses, Networks, Noise, Objective, Phase, Shape, Signature, Term

if TYPE_CHECKING:
    from ray_gen.experiment import Experiment


class Flow(Objective):
    """min_v E ‖v(x_t, t) - (x - ε)‖², x_t = (1 - t) ε + t x, t ~ U[0, 1), ε ~ N(0, I) (Lipman et
    al. 2023, eq. 23 with σ_min = 0; Liu et al. 2023, eq. 1). Images are in [-1, 1]."""

    image_range = (-1.0, 1.0)
    sampled_from = ("velocity",)

    def __init__(
        self, *, image_shape: Shape, label_count: int | None, steps: int = 8, solver: str = "heun"
    ) -> None:
        if solver not in ("euler", "heun"):
            raise ValueError(f"solver: {solver} is neither euler nor heun")
        self._v = Signature(image_shape, image_shape, label_count, conditions={"time": (1,)})
        self._steps, self._heun = steps, solver == "heun"
        self.latents = {"z": Noise(image_shape)}

    def networks(self) -> Mapping[str, Signature]:
        """v: an image and a time to an image."""
        return {"velocity": self._v}

    def phases(self) -> Sequence[Phase]:
        """One, of one term."""
        noise = {"t": Noise((), "uniform"), "epsilon": self.latents["z"]}
        return [Phase("velocity", ("velocity",), (Term("flow", self._loss),), noise)]

    def _loss(self, networks: Networks, batch: Batch) -> Losses:
        x, epsilon, t = batch.images, batch.noise["epsilon"], batch.noise["t"][:, None]  # (N, 1)
        x_t = epsilon.lerp(x, t[..., None, None])  # (N, C, H, W)
        velocity = networks["velocity"](x_t, batch.labels, time=t).to(x.dtype)
        return Losses({"flow": losses.squared_error(velocity, x - epsilon)})

    def sample(
        self,
        networks: Networks,
        latents: Mapping[str, Tensor],
        labels: Tensor | None,
        noise: Mapping[str, Tensor],
    ) -> Tensor:
        """x at t = 1 of dx/dt = v(x, t) from x = z at t = 0, in equal steps. The last is always
        Euler's, since no velocity is learned at t = 1 (as in Karras et al. 2022, algorithm 1)."""

        def v(x: Tensor, i: int) -> Tensor:
            time = x.new_full((x.shape[0], 1), i / self._steps)  # an export keeps no `len(x)` open
            return networks["velocity"](x, labels, time=time)

        x, dt = latents["z"], 1.0 / self._steps  # (N, C, H, W)
        for i in range(self._steps):
            slope = v(x, i)
            if self._heun and i + 1 < self._steps:
                slope = 0.5 * (slope + v(x + dt * slope, i + 1))
            x = x + dt * slope
        return x.float().add(1.0).mul(0.5).clamp(0.0, 1.0)


def experiment(*overrides: str) -> Experiment:
    """A small one."""
    from tests.helpers import ADAM, TRAINING, experiment

    flow = {"kind": "custom", "target": "tests.proofs.flow:Flow", "options": {"steps": 2}}
    network = {"kind": "mlp", "hidden_sizes": [32]}
    parts = {"objective": flow, "networks": {"velocity": network}}
    return experiment({**parts, "optimizers": {"velocity": ADAM}, "training": TRAINING}, *overrides)
