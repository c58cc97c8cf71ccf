"""When D(x) and D(G(z)) have come to rest at the equilibrium of their game."""

from __future__ import annotations

from collections.abc import Mapping

from ray_gen.core import STOPPED, Window


def watch(memory: dict[str, float], metrics: Mapping[str, float], steps: int) -> None:
    """Adds a report, means over so many steps, to what `settled` judges next.

    Sums over steps: reports in between, of a checkpoint or of a run that was asked to stop, change
    nothing but how they are rounded.
    """
    for name, mean in (
        ("steps", 1.0),
        ("real", metrics["discriminator/real"]),
        ("fake", metrics["discriminator/fake"]),
    ):
        memory[name] = memory.get(name, 0.0) + steps * mean


def settled(memory: dict[str, float], images: int, window: Window, optimum: float) -> bool:
    """Whether D(x) and D(G(z)) have left their optimum once and then stayed at it for a window.

    An untrained pair starts at ½, so both have to leave first. Asked of the means since it was last
    asked.
    """
    steps = memory.pop("steps")
    values = {name: memory.pop(name) / steps for name in ("real", "fake")}
    for name, value in values.items():
        # The way from ½ to the optimum is a discriminator that learns the smoothing and no image.
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
