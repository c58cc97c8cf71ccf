"""Decides when D(x) and D(G(z)) have settled at the equilibrium of their game."""

from __future__ import annotations

from collections.abc import Mapping

from ray_gen.core import STOPPED, Window


def watch(memory: dict[str, float], metrics: Mapping[str, float], steps: int) -> None:
    """Adds a report, means over `steps` steps, to the sums that `settled` judges next.

    The memory holds sums over steps, so an extra report, at a checkpoint or a requested stop,
    changes only the rounding.
    """
    for name, mean in (
        ("steps", 1.0),
        ("real", metrics["discriminator/real"]),
        ("fake", metrics["discriminator/fake"]),
    ):
        memory[name] = memory.get(name, 0.0) + steps * mean


def settled(memory: dict[str, float], images: int, window: Window, optimum: float) -> bool:
    """Whether D(x) and D(G(z)) have left their optimum once and then stayed at it for a window.

    Both must leave first, because an untrained pair starts at ½. Judges the means since the last
    call.
    """
    steps = memory.pop("steps")
    values = {name: memory.pop(name) / steps for name in ("real", "fake")}
    for name, value in values.items():
        # Between ½ and the optimum, D has learnt only the smoothing and nothing about images.
        if not optimum - window.tolerance <= value <= 0.5 + window.tolerance:
            memory[f"{name}_left"] = 1
    inside = all(abs(value - optimum) <= window.tolerance for value in values.values())
    if not inside or not (memory.get("real_left") and memory.get("fake_left")):
        memory.pop("since", None)
        return False
    if images - memory.setdefault("since", images) < window.window_images:
        return False
    memory[STOPPED] = images
    return True
