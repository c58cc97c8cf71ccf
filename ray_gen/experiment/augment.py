"""`objective.augment` as a mapping: adaptive discriminator augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from ray_gen.experiment.schedules import AdaptiveProbability
from ray_gen.settings import Settings, live

DiffAugment = Literal["color", "translation", "cutout"]

Multiplier = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

_NOT_MULTIPLIERS = ("kind", "p", "target", "ada_images", "max_p", "shared")


class AdaSettings(Settings):
    """Adaptive discriminator augmentation (Karras et al. 2020), for some hundred to 30,000 images.

    The multipliers are 1 for the set "bgc" of that paper: geometry and colour.
    """

    kind: Literal["ada"] = "ada"
    p: AdaptiveProbability = live("adaptive")
    """Probability of each transform for each image. adaptive: it grows while D overfits, by the
    signs of D's logits of real images. A number, or a schedule as in R3GAN, for losses whose D has
    no zero: relativistic and wasserstein."""
    target: Annotated[float, Field(gt=-1, lt=1)] = 0.6
    """Mean sign of D's logits of real images, from -1 to 1, that an adaptive p keeps. Above it, p
    grows."""
    ada_images: PositiveInt = 500_000
    """Images over which an adaptive p grows from 0 to 1 if it only grows. A run of fewer images
    needs less (StyleGAN2-ADA: 100,000 for a run that starts from a trained one)."""
    max_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Largest adaptive p. Above 0.8 the generator begins to make augmented images."""
    shared: bool = False
    """Give a real image and its generated partner the same transforms. For losses that compare the
    two."""
    flip: Multiplier = 1.0
    """Multiplier of p for mirroring at the vertical axis, with a coin. 0 in all multipliers leaves
    a transform out."""
    rotate_90: Multiplier = 1.0
    """Multiplier of p for 0 to 3 quarter turns."""
    shift: Multiplier = 1.0
    """Multiplier of p for a shift by whole pixels, up to 1/8 of each side."""
    scale: Multiplier = 1.0
    """Multiplier of p for a scale of 2^N(0, 0.2²)."""
    rotate: Multiplier = 1.0
    """Multiplier of p for a rotation by any angle."""
    stretch: Multiplier = 1.0
    """Multiplier of p for stretching one axis by 2^N(0, 0.2²) and shrinking the other."""
    fractional_shift: Multiplier = 1.0
    """Multiplier of p for a shift by N(0, 1/8²) sides."""
    brightness: Multiplier = 1.0
    """Multiplier of p for adding N(0, 0.2²), for images in [-1, 1]."""
    contrast: Multiplier = 1.0
    """Multiplier of p for a contrast of 2^N(0, 0.5²)."""
    luma_flip: Multiplier = 1.0
    """Multiplier of p for inverting the luma and keeping the hue, with a coin."""
    hue: Multiplier = 1.0
    """Multiplier of p for turning the hue by any angle. Only images of three colour channels have
    hues."""
    saturation: Multiplier = 1.0
    """Multiplier of p for a saturation of 2^N(0, 1). Grey images have none."""
    filter: Multiplier = 0.0
    """Multiplier of p for amplifying each of four bands of frequencies by 2^N(0, 1)."""
    noise: Multiplier = 0.0
    """Multiplier of p for adding noise to pixels, with a standard deviation of |N(0, 0.1²)|."""
    cutout: Multiplier = 0.0
    """Multiplier of p for a grey rectangle with half the sides of the image."""

    @model_validator(mode="before")
    @classmethod
    def _from_its_kind_alone(cls, given: Any) -> Any:
        return {} if given == "ada" else given

    def multipliers(self) -> dict[str, float]:
        """The multiplier of each transform, by name."""
        names = (name for name in type(self).model_fields if name not in _NOT_MULTIPLIERS)
        return {name: getattr(self, name) for name in names}

    def told(self) -> str:
        """The transforms and the rule of p, in words."""
        count = sum(value > 0 for value in self.multipliers().values())
        if self.p == "adaptive":
            rule = (
                f"adaptive p, from 0 to at most {self.max_p:g}, up or down by 1 in "
                f"{self.ada_images:,} images, so that the mean sign of D's logits of real images "
                f"is {self.target:g}"
            )
        elif isinstance(self.p, (int, float)):
            rule = f"p {self.p:g}"
        else:
            rule = f"p by a schedule, {self.p.at(0):g} at the beginning"
        return f"{count} transforms of ADA, {rule}"

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ray_gen.objectives.augmented:AdaAugmented`."""
        return {
            "p": None if self.p == "adaptive" else self.p,
            "multipliers": self.multipliers(),
            "shared": self.shared,
            "target": self.target,
            "images": self.ada_images,
            "max_p": self.max_p,
        }


def _tag(given: Any) -> Any:
    if isinstance(given, (list, tuple)):
        return "list"
    return given.get("kind", "ada") if isinstance(given, Mapping) else "ada"


Augment = Annotated[
    Annotated[tuple[DiffAugment, ...], Tag("list")] | Annotated[AdaSettings, Tag("ada")],
    Discriminator(_tag),
]
"""Names of DiffAugment, or ADA."""
