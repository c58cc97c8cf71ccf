"""Decides when D(x) and D(G(z)) have settled at the equilibrium of their game, and when D has won
it."""

from __future__ import annotations

from collections.abc import Mapping

from ray_gen.core import STOPPED, Window

WON = 1e-6
"""Largest distance of D(x) from 1 and of D(G(z)) from 0, or of D's loss from 0, when D has won."""
WON_IMAGES = 50_000
"""Images over which D must have won in every report."""


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


def wins(metrics: Mapping[str, float], *, has_probability: bool) -> bool:
    """Whether a report says that D has won: D(x) is 1 and D(G(z)) is 0, or, for a loss without
    such probabilities, D's loss is at its least value, 0: no image gives D a gradient."""
    if has_probability:
        real, fake = metrics.get("discriminator/real", 0.0), metrics.get("discriminator/fake", 1.0)
        return real >= 1.0 - WON and fake <= WON
    return metrics.get("loss/discriminator", 1.0) <= WON


def note_win(memory: dict[str, float], won: bool, before: int) -> None:
    """Remembers since how many images D has won in every report. before: images seen when the
    report begins."""
    if won:
        memory.setdefault("won_since", before)
    else:
        memory.pop("won_since", None)


def won(memory: Mapping[str, float], images: int, *, has_probability: bool) -> str | None:
    """The words, if D has won for WON_IMAGES."""
    since = memory.get("won_since")
    if since is None or images - since < WON_IMAGES:
        return None
    what = "D(x) is 1 and D(G(z)) is 0" if has_probability else "the discriminator's loss is 0"
    return (
        f"{what}, to within {WON:g}, since {since:,.0f} images: the discriminator tells all images "
        "apart, and the generator learns nothing from it"
    )
