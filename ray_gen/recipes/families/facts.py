"""What a family is made from, and how it gives its numbers their reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Facts:
    """What is known of an experiment before its data are read."""

    height: int
    """Of the images, in pixels."""
    width: int
    conditional: bool
    """Whether the networks get labels."""
    images: int
    """`training.images`."""
    batch: int
    """`training.global_batch_size`."""
    latents: bool = False
    """Whether the data are latents of an autoencoder. Their channels are no colours, and a mirrored
    or turned map is not the latent of a mirrored image."""

    @property
    def side(self) -> float:
        """Side of the square with as many pixels: √(height · width)."""
        return math.sqrt(self.height * self.width)

    @property
    def doublings(self) -> int:
        """How often the shorter side is at least twice 32 pixels: 0 below 64, 1 from 64, …"""
        return max(0, int(math.log2(min(self.height, self.width) / 32)))

    def share(self, of_images: float) -> int:
        """A share of `training.images`, in images; at least one step."""
        return max(self.batch, round(self.images * of_images))

    def half_life(self, decay: float) -> int:
        """The half-life in images of an average that decays by this factor at each step."""
        return round(self.batch * math.log(0.5) / math.log(decay))


class Because(NamedTuple):
    """A value, and why it is this one: a sentence."""

    value: Any
    why: str


Tree = Mapping[str, Any]
"""Fields by their names, nested. Leaves are values, some of them `Because`."""


_OF_PICTURES = (
    *("brightness", "contrast", "luma_flip", "hue", "saturation"),
    *("flip", "rotate_90", "rotate"),
)
_SHIFTED = "Only moves and scales: latents have no colours, and cannot be turned like an image."


def diff_augment(facts: Facts, why: str) -> Because:
    """`objective.augment` by DiffAugment. why: the reason for images."""
    if facts.latents:
        return Because(["translation"], _SHIFTED)
    return Because(["color", "translation"], why)


def ada(facts: Facts, **fields: Any) -> dict[str, Any]:
    """`objective.augment` by ADA. fields: for images."""
    if facts.latents:
        fields |= dict.fromkeys(_OF_PICTURES, 0.0)
        fields[_OF_PICTURES[0]] = Because(0.0, _SHIFTED)
    return {"kind": "ada", **fields}


def values_of(tree: Any) -> Any:
    """The plain values of a tree."""
    if isinstance(tree, Because):
        return values_of(tree.value)
    if isinstance(tree, Mapping):
        return {name: values_of(inner) for name, inner in tree.items()}
    return [values_of(inner) for inner in tree] if isinstance(tree, (list, tuple)) else tree


def reasons_of(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, reason) of each value that has one."""
    if isinstance(tree, Because):
        yield path, tree.why
        yield from reasons_of(tree.value, path)
    elif isinstance(tree, Mapping):
        for name, inner in tree.items():
            yield from reasons_of(inner, f"{path}.{name}" if path else name)


def amount(facts: Facts, published: str) -> dict[str, Any]:
    """`training` of all families: how much, and how often it tells of itself. published: what
    training of the publication saw."""
    return {
        "images": Because(
            facts.images,
            "Schedules and intervals are computed from it. Give another to `recipes` or `train`, "
            f"not here. {published}",
        ),
        "global_batch_size": facts.batch,
        "report_every_images": Because(facts.share(1 / 100), "A hundredth of the run."),
        "checkpoint_every_images": Because(facts.share(1 / 20), "A twentieth of the run."),
    }


def falling_adam(facts: Facts, rate: float, betas: list[float]) -> dict[str, Any]:
    """Adam of both networks, whose rate falls linearly to 0 at the end of the run."""
    adam = {
        "kind": "adam",
        "learning_rate": rate,
        "betas": betas,
        "schedule": {"kind": "linear", "horizon_images": facts.images},
    }
    why = "As published; the rate falls to 0 at the end of the run."
    return {"discriminator": adam, "generator": Because(adam, why)}
