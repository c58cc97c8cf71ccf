"""What the settings of all objectives have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from ray_gen.experiment.distances import distances_in
from ray_gen.experiment.networks import NetworkSettings
from ray_gen.experiment.schedules import CountSteps
from ray_gen.settings import Component

MinOrMax = Literal["min", "max"]


class ObjectiveSettings(Component):
    """Settings that all objectives share, and facts about an objective before it is built."""

    network_names: ClassVar[tuple[str, ...] | None] = None
    """Keys that `networks` must have. None if only the objective's class knows them."""
    forms: ClassVar[Mapping[str, str]] = {}
    """Form of the signature of networks (`ray_gen.core.Signature.form`), where it decides which
    sizes of images they can have: "map_to_map" for an encoder to a map."""
    phase_names: ClassVar[tuple[str, ...] | None] = None
    """Keys that `optimizers` must have. None if only the objective's class knows them."""
    evaluated: ClassVar[Mapping[str, MinOrMax | None] | None] = {}
    """Its held-out scores, each with its better direction: "min", "max", or None for neither.
    The whole mapping is None if only the objective's class knows them."""
    title: ClassVar[str] = "Model with a custom objective"
    """Its name in a model card."""
    has_likelihood: ClassVar[bool] = False
    """Whether it gives a bound on log p(x): `ray_gen.core.Bounds`."""
    has_prior: ClassVar[bool] = True
    """Whether it can make samples: False for an autoencoder without a distribution of latents."""
    knows_opacity: ClassVar[bool] = False
    """Whether its class takes `opacity`: whether the last channel of images is opacity."""
    knows_levels: ClassVar[bool] = False
    """Whether its class takes `levels`: how many values a channel of an image can have."""
    at_rest: ClassVar[str | None] = None
    """The reason to print when its own stopping rule ends a run. None if it has no such rule."""
    parts_of_weights: ClassVar[Mapping[str, str]] = {}
    """Weights whose losses need parts of a model that it has only if the weight is not 0 at the
    start of a run: their names, and the parts in words."""

    conditional: bool = False
    """Give the labels to all networks."""

    @property
    def held_out_scores(self) -> Mapping[str, MinOrMax | None] | None:
        """`evaluated`, with those that depend on other fields. `checkpoints.best` can use them. A
        search takes the first one by default."""
        return self.evaluated

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the objective's class. `label_count` replaces `conditional`. A
        distance becomes the arguments of `perceptual.distance_of`."""
        given = {
            name: value.at(0) if isinstance(value, CountSteps) else value
            for name, value in super().arguments().items()
            if name != "conditional"
        }
        for name, distance in distances_in(self).items():
            given[name] = {**distance.arguments(), "field": f"objective.{name}"}
        return given

    def absolute(self) -> Self:
        """The settings with absolute paths."""
        changes = {
            name: of.absolute(f"objective.{name}") for name, of in distances_in(self).items()
        }
        return self.model_copy(update=changes) if changes else self

    def advice(
        self, images: int, starts_from_a_run: bool, of_latents: bool = False
    ) -> Iterator[str]:
        """Sentences for a user whose data have so many training images: what to expect of so few or
        so many, and what to set instead. starts_from_a_run: as `training.start_from` says.
        of_latents: the data are latents, which have no colours."""
        yield from ()

    def advice_on_pixels(self, channels: int, grey: float) -> Iterator[str]:
        """The same, for images with so many channels, of whose values the share `grey` is neither
        nearly black nor nearly white."""
        yield from ()

    def unused(self) -> tuple[str, ...]:
        """Names in `network_names` and `phase_names` that a model of these settings does not have.
        The experiment may still name them."""
        return ()

    def stop_problem(self) -> str | None:
        """Why `training.stop_at_equilibrium` cannot end a run of this objective. None if it can."""
        kind = getattr(self, "kind", "custom")
        return f"a {kind} objective has no equilibrium" if self.at_rest is None else None

    def told(self, image_shape: tuple[int, int, int], images: int) -> Mapping[str, str]:
        """What else `train --check` says: lines by their first word. image_shape: (channels,
        height, width) of the images. images: of the training."""
        del image_shape, images
        return {}

    def network_problems(self, networks: Mapping[str, NetworkSettings]) -> Iterator[str]:
        """Problems of networks that cannot be trained with this objective."""
        yield from ()

    def freeze_problems(self, frozen: Collection[str]) -> Iterator[str]:
        """Problems of an objective of whose networks `training.freeze` names these."""
        yield from ()

    def lacks_parts(self, later: ObjectiveSettings) -> Iterator[tuple[str, str]]:
        """Each weight that is 0 in this objective, with which a run began, and not in a later one
        of the same run; and the parts that the run lacks for it."""
        for name, parts in self.parts_of_weights.items():
            if getattr(self, name) == 0.0 and getattr(later, name) != 0.0:
                yield name, parts
