"""The whole of a run as one typed, frozen tree, and its YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, PositiveInt, ValidationError

from ray_gen.experiment.data import (
    Data,
    FolderData,
    ParquetData,
    TorchvisionData,
)
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.experiment.networks import Network
from ray_gen.experiment.objectives import Objective
from ray_gen.experiment.optimizers import Optimizer
from ray_gen.experiment.reading import Dumper, apply_override, parse_yaml, set_field, unshared
from ray_gen.experiment.schedules import counts_in
from ray_gen.experiment.search import OFFLINE, Search, better
from ray_gen.experiment.settings import (
    ExperimentError,
    Location,
    Settings,
    free,
    problems_of,
)
from ray_gen.experiment.training import Checkpoints, Training, Workers

AUTO_GROUP_SIZE = 16


class Change(Settings):
    """Fields that have other values from an image count on."""

    images: PositiveInt
    """Before the first step that begins at so many images or more."""
    values: dict[str, Any]
    """By dotted path; only what the maths allows to change while a run goes on."""
    source: str | None = None
    """The trial that population based training took the weights from."""


class Tree(Settings):
    """The fields of an experiment, and copies of it with other values."""

    name: str = free("experiment", min_length=1)
    """What the run is called where no --name is given."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of weights, order, noise, flips and augmentation."""
    data: Data
    networks: dict[str, Network]
    """By the names that the objective uses."""
    objective: Objective
    optimizers: dict[str, Optimizer]
    """By the names of the objective's phases."""
    training: Training
    workers: Workers = free(Workers())
    checkpoints: Checkpoints = free(Checkpoints())
    evaluation: Evaluation = free(Evaluation())
    storage: Location | None = free(None)
    """Folder or URI that holds the run folder. None: $RAY_GEN_STORAGE, else ~/ray_gen_runs."""
    lineage: tuple[Change, ...] = ()
    """What changed while the run went on, in the order of images: population based training
    writes it, and training the experiment anew repeats it."""
    search: Search | None = free(None)
    """What `ray-gen search` varies; `ray-gen train` passes it over."""

    def problems(self) -> Iterator[str]:
        """The checks of several fields together; none here: see `Experiment`."""
        yield from ()

    @classmethod
    def of(cls, given: Any) -> Self:
        """From a mapping; raises ExperimentError with every problem by its dotted path."""
        if not isinstance(given, dict):
            raise ExperimentError(["an experiment is a mapping of fields to values"])
        try:
            experiment = cls.model_validate(given)
        except ValidationError as error:
            raise ExperimentError(problems_of(error, cls, given)) from None
        problems = list(experiment.problems())
        if problems:
            raise ExperimentError(problems)
        return experiment

    @classmethod
    def from_yaml(cls, text: str, overrides: Sequence[str] = ()) -> Self:
        """From YAML and `path=value` assignments, in their order."""
        given = unshared(parse_yaml(text))
        for assignment in overrides if isinstance(given, dict) else ():
            apply_override(given, assignment, cls)
        return cls.of(given)

    def to_yaml(self) -> str:
        """Complete YAML, defaults included."""
        given = self.model_dump(mode="json")
        return yaml.dump(given, Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def with_fields(self, **changes: Any) -> Self:
        """A copy with fields replaced by dotted path (`__` for a dot), checked anew."""
        return self.with_values({name.replace("__", "."): value for name, value in changes.items()})

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy with the fields at these dotted paths replaced, checked anew."""
        given = self.model_dump(mode="json")
        for path, value in values.items():
            set_field(given, path, value, type(self))
        return self.of(given)

    def value_at(self, path: str) -> Any:
        """The plain value of the field at a dotted path."""
        here: Any = self.model_dump(mode="json")
        for part in path.split("."):
            here = here[part]
        return here

    def stages(self) -> list[tuple[int, Self]]:
        """Steps before which settings change, each with the experiment from there on; the first is
        step 0. There is only that one without `lineage` and without whole numbers that change."""
        found = [(0, self)]
        for change in self.lineage:
            found.append((self._step_from(change.images), found[-1][1].with_values(change.values)))
        ends = [*(step for step, _ in found[1:]), self.steps]
        stages: list[tuple[int, Self]] = []
        for (first, stage), end in zip(found, ends, strict=True):
            counts = dict(counts_in(stage))
            begins = {self._step_from(i) for count in counts.values() for i, _ in count.values}
            for step in (first, *sorted(begin for begin in begins if first < begin < end)):
                images = step * self.training.global_batch_size
                values = {path: count.at(images) for path, count in counts.items()}
                # Its lineage, which is dealt with, may change the schedules that values replace.
                known = {**values, "lineage": []}
                stages.append((step, stage.with_values(known) if values else stage))
        return stages

    def _step_from(self, images: int) -> int:
        """The first step that begins at so many images or more."""
        return -(-images // self.training.global_batch_size)

    @property
    def group_size(self) -> int:
        """`training.group_size` as a number."""
        size = self.training.group_size
        if size != "auto":
            return size
        batch = self.training.global_batch_size
        return max(n for n in range(1, min(batch, AUTO_GROUP_SIZE) + 1) if batch % n == 0)

    @property
    def steps(self) -> int:
        """Steps of the whole run: `training.images` in whole global batches."""
        return -(-self.training.images // self.training.global_batch_size)

    @property
    def needs_labels(self) -> bool:
        """Whether the objective gives labels to its networks."""
        return self.objective.conditional

    def absolute(self) -> Self:
        """Relative paths made absolute, against where this process runs."""
        data = self.data
        changes: dict[str, Any] = {}
        if isinstance(data, (FolderData, ParquetData)):
            changes["data__path"] = absolute_path(data.path)
        if isinstance(data, TorchvisionData):
            changes["data__root"] = absolute_path(data.root)
        if self.storage is not None:
            changes["storage"] = absolute_path(self.storage)
        return self.with_fields(**changes)

    def resolved(
        self,
        image_shape: tuple[int, int, int],
        classes: Sequence[str] | None,
        digest: str | None = None,
    ) -> Self:
        """With what only the data knows filled in, and checked against it.

        A digest that was there is of the data of the run that the experiment was copied from, and
        is not checked: whether a run goes on with the same data is asked where its checkpoints are.
        """
        channels, height, width = image_shape
        names = list(classes or ())
        if self.data.classes is not None and list(self.data.classes) != names:
            raise ExperimentError(
                [
                    f"data.classes: the data has {len(names)} classes and the experiment names "
                    f"{len(self.data.classes)}, or in another order; leave the field out to take "
                    "the data's"
                ]
            )
        return self.with_fields(
            data__image_size=[height, width],
            data__channels=channels,
            data__classes=names,
            data__digest=digest,
            training__group_size=self.group_size,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a resolved experiment."""
        size = self.data.height_and_width()
        if size is None or self.data.channels is None:
            raise ExperimentError(["data.image_size and data.channels: not known before the data"])
        return (self.data.channels, *size)

    @property
    def label_count(self) -> int | None:
        """Classes that a resolved experiment's networks are given; None without condition."""
        return len(self.data.classes or ()) if self.needs_labels else None

    def better(self, score: str) -> Literal["min", "max"] | None:
        """Which of two values of a held-out score or metric is the better one; None where nobody
        says."""
        return better(score, self.objective.evaluated)

    @property
    def search_metric(self) -> str:
        """`search.metric`, or what stands for it."""
        assert self.search is not None
        return self.search.metric or next(iter(self.objective.evaluated or ()), OFFLINE)

    @property
    def search_every_images(self) -> int:
        """`search.every_images`, or what stands for it."""
        assert self.search is not None
        return self.search.every_images or -(-self.training.images // 9)


def absolute_path(path: str) -> str:
    """A local path made absolute, `~` included; a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
