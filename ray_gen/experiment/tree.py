"""`Tree`: all settings of a run in one typed, frozen tree, and its YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, PositiveInt, ValidationError
from pydantic_core import to_jsonable_python

from ray_gen.experiment.data import Data
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.experiment.fields import kinds_at
from ray_gen.experiment.loggers import Loggers, TensorBoardLogger
from ray_gen.experiment.networks import Network
from ray_gen.experiment.objective import ObjectiveSettings
from ray_gen.experiment.objectives import Objective
from ray_gen.experiment.optimizers import Optimizer
from ray_gen.experiment.reading import (
    Changes,
    Dumper,
    apply_changes,
    parse_yaml,
    set_field,
    unshared,
)
from ray_gen.experiment.refusals import misnamed, problems_of
from ray_gen.experiment.schedules import counts_in
from ray_gen.experiment.search import OFFLINE, Search, better_of_score
from ray_gen.experiment.training import Checkpoints, Training, Workers
from ray_gen.settings import (
    Digest,
    ExperimentError,
    Location,
    Settings,
    Told,
    absolute_path,
    free,
)

AUTO_GROUP_SIZE = 16

SourceFile = Annotated[str, Field(pattern=r"^([^\W\d]\w*/)*[^\W\d]\w*\.py$"), Told("path")]


class Change(Settings):
    """New values of some fields from a number of images on."""

    images: PositiveInt
    """The change comes before the first step that begins at this number of images or more."""
    values: dict[str, Any]
    """New values of fields by dotted path. Only `live` fields: they may change during a run."""
    source: str | None = None
    """The trial whose weights population based training copied. None: no weights were copied."""


class Tree(Settings):
    """The fields of an experiment, and methods that give copies with other values."""

    name: str = free("experiment", min_length=1)
    """The name of the run if no --name is given."""
    seed: Annotated[int, Told("whole number from 0 to 2^63 - 1")] = Field(0, ge=0, lt=2**63)
    """Seed of weights, order, noise, flips and augmentation."""
    data: Data
    """Where the images come from, and how they are prepared for training."""
    networks: dict[str, Network]
    """The architecture of each network, by the names that the objective uses."""
    objective: Objective
    """What is trained, and by which losses."""
    optimizers: dict[str, Optimizer]
    """The optimiser of each phase of training, by the names that the objective uses."""
    training: Training
    workers: Workers = free(Workers())
    checkpoints: Checkpoints = free(Checkpoints())
    evaluation: Evaluation = free(Evaluation())
    loggers: Loggers = free((TensorBoardLogger(),))
    """Where numbers and pictures go, besides the files of the run folder. A name alone is enough:
    [tensorboard, csv, wandb, mlflow]. The first worker calls the loggers."""
    storage: Location | None = free(None)
    """Folder or URI that holds the run folder. None: $RAY_GEN_STORAGE, else ~/ray_gen_runs."""
    code: dict[SourceFile, Digest] = free({})
    """SHA-256 of each source file of your own classes (kind: custom). Training fills it in, and the
    run folder holds the files in `code/`."""
    lineage: tuple[Change, ...] = ()
    """Changes during the run, in the order of images. Population based training records them here;
    a new training of the experiment repeats them."""
    search: Search | None = free(None)
    """Settings of `ray-gen search`; `ray-gen train` ignores them."""

    def __repr__(self) -> str:
        images = f"{self.training.images:,} images"
        return f"{type(self).__name__}({self.name}: {self.objective.kind}, {images})"

    def problems(self) -> Iterator[str]:
        """The problems of several fields together. None here: see `Experiment`."""
        yield from ()

    @classmethod
    def of(cls, given: Any) -> Self:
        """From a mapping. Raises ExperimentError with all problems; each names its dotted path."""
        if not isinstance(given, dict):
            raise ExperimentError(["an experiment is a mapping of fields to values"])
        strange = dict(cls._not_of_the_objective(given))
        if strange:
            sections = {section for section, _ in strange}
            known = {
                s: {n: v for n, v in given[s].items() if (s, n) not in strange} for s in sections
            }
            given = {**given, **known}
        problems = [*strange.values()]
        try:
            experiment = cls.model_validate(given)
        except ValidationError as error:
            raise ExperimentError([*problems, *problems_of(error, cls, given)]) from None
        problems += experiment.problems()
        if problems:
            raise ExperimentError(problems)
        return experiment

    @classmethod
    def _not_of_the_objective(
        cls, given: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str, str], str]]:
        """((section, name), problem) of each network and optimiser that the objective does not
        have. Their contents say nothing then."""
        objective = given.get("objective")
        kind = str(objective.get("kind") if isinstance(objective, dict) else None)
        settings = kinds_at(["objective"], cls).get(kind)
        if settings is None or not issubclass(settings, ObjectiveSettings):
            return
        wanted = {"networks": settings.network_names, "optimizers": settings.phase_names}
        for section, names in wanted.items():
            there = given.get(section)
            if names is None or not isinstance(there, dict):
                continue
            for name in (name for name in there if name not in names):
                yield (section, name), misnamed(section, str(name), f"the objective {kind}", names)

    @classmethod
    def from_yaml(cls, text: str, changes: Changes = (), source: str = "the experiment") -> Self:
        """From YAML, with changes. source: for messages, where the text is from."""
        given = unshared(parse_yaml(text, source))
        if isinstance(given, dict):
            apply_changes(given, changes, cls)
        return cls.of(given)

    def changed(self, changes: Changes) -> Self:
        """A checked copy with changes: {"training.images": 1000}, {"training": {"images": 1000}},
        or ["training.images=1000"]."""
        given = self.model_dump(mode="json")
        apply_changes(given, changes, type(self))
        return self.of(given)

    def to_yaml(self) -> str:
        """Complete YAML, including defaults."""
        given = self.model_dump(mode="json")
        return yaml.dump(given, Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def with_fields(self, **changes: Any) -> Self:
        """A checked copy with fields replaced by dotted path (`__` for a dot)."""
        return self.with_values({name.replace("__", "."): value for name, value in changes.items()})

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A checked copy with the fields at these dotted paths replaced."""
        given = self.model_dump(mode="json")
        for path, value in values.items():
            set_field(given, path, value, type(self))
        return self.of(given)

    def value_at(self, path: str) -> Any:
        """The plain value of the field at a dotted path."""
        here: Any = self
        for part in path.split("."):
            here = getattr(here, part) if isinstance(here, Settings) else here[part]
        return to_jsonable_python(here)

    def stages(self) -> list[tuple[int, Self]]:
        """Pairs of a step and the experiment from this step on. The first step is 0. Further steps
        come only from `lineage` and from whole numbers that change (`CountSteps`)."""
        found = [(0, self)]
        for change in self.lineage:
            # Without `lineage`: it is already applied, and its checks are those of the beginning.
            stage = found[-1][1].with_values({**change.values, "lineage": []})
            found.append((self._step_from(change.images), stage))
        ends = [*(step for step, _ in found[1:]), self.steps]
        stages: list[tuple[int, Self]] = []
        for (first, stage), end in zip(found, ends, strict=True):
            counts = dict(counts_in(stage))
            begins = {self._step_from(i) for count in counts.values() for i, _ in count.values}
            for step in (first, *sorted(begin for begin in begins if first < begin < end)):
                images = step * self.training.global_batch_size
                values = {path: count.at(images) for path, count in counts.items()}
                # Here its checks would fail if it changes a part of a schedule that `values`
                # replaces by a number.
                known = {**values, "lineage": []}
                stages.append((step, stage.with_values(known) if values else stage))
        return stages

    def _step_from(self, images: int) -> int:
        """The first step that begins at `images` images or more."""
        return -(-images // self.training.global_batch_size)

    @property
    def group_size(self) -> int:
        """`training.group_size` as a number."""
        size = self.training.group_size
        if size != "auto":
            return size
        batch = self.training.global_batch_size
        return max(n for n in range(1, min(batch, AUTO_GROUP_SIZE) + 1) if batch % n == 0)

    def with_group_size(self) -> Self:
        """A copy in which `training.group_size` is a number. It divides the batch by construction,
        so the copy needs no check."""
        training = self.training.model_copy(update={"group_size": self.group_size})
        return self.model_copy(update={"training": training})

    @property
    def steps(self) -> int:
        """Steps of the whole run: `training.images`, rounded up to whole global batches."""
        return -(-self.training.images // self.training.global_batch_size)

    @property
    def needs_labels(self) -> bool:
        """Whether the objective gives labels to its networks."""
        return self.objective.conditional

    def absolute(self) -> Self:
        """A copy with absolute paths. Relative paths start at the working directory of this
        process."""
        data = self.data.with_places(absolute_path)
        changes: dict[str, Any] = {"data": data.model_dump(mode="json")}
        if self.storage is not None:
            changes["storage"] = absolute_path(self.storage)
        changes["objective"] = self.objective.absolute().model_dump(mode="json")
        changes["evaluation"] = self.evaluation.absolute().model_dump(mode="json")
        changes["loggers"] = [logger.absolute().model_dump(mode="json") for logger in self.loggers]
        return self.with_fields(**changes)

    def with_rules_of(self, other: Tree) -> Self:
        """A copy that reads its data by the rules of another experiment, and takes for opacity what
        that one takes."""
        changes: dict[str, Any] = {}
        if self.data.rules != other.data.rules:
            changes["data__rules"] = other.data.rules
        if self.data.opacity == "auto" != other.data.opacity:
            changes["data__opacity"] = other.data.opacity
        return self.with_fields(**changes) if changes else self

    def resolved(
        self,
        image_shape: tuple[int, int, int],
        classes: Sequence[str] | None,
        digest: str | None = None,
        group_size: int | Literal["auto"] | None = None,
        value_range: tuple[float, float] | None = None,
        conditions: Sequence[Mapping[str, Any]] = (),
        opacity: bool = False,
    ) -> Self:
        """A copy with the fields that only the data can give. Checks the class names against the
        data.

        opacity: whether the last channel is opacity, unless `data.opacity` says it.
        value_range: of deep images; None if there are none.
        conditions: the fields of `data.condition_statistics`.
        group_size: None replaces "auto" by a number; a search keeps "auto" for its trials.

        An old digest belongs to the run that this experiment was copied from, so it is not checked
        here. The driver checks that a resumed run has the same data.
        """
        channels, height, width = image_shape
        names = list(classes or ())
        if self.data.classes is not None and list(self.data.classes) != names:
            raise ExperimentError(
                [
                    f"data.classes: the data has other classes ({len(names)}) than the experiment "
                    f"({len(self.data.classes)}), or another order; leave the field out to use the "
                    "data's classes"
                ]
            )
        return self.with_fields(
            data__image_size=[height, width],
            data__channels=channels,
            data__opacity=opacity if self.data.opacity == "auto" else self.data.opacity,
            data__classes=names,
            data__digest=digest,
            data__condition_statistics=list(conditions) or None,
            data__value_range=value_range or self.data.value_range,
            training__group_size=group_size or self.group_size,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a resolved experiment."""
        size = self.data.height_and_width()
        channels = self.data.channels
        if size is None or not isinstance(channels, int):
            raise ExperimentError(["data.image_size, data.channels: the data is not read yet"])
        return (channels, *size)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that a resolved experiment makes: `image_shape`,
        unless its networks see latents."""
        pictures = self.data.pictures
        size, channels = pictures.height_and_width(), pictures.channels
        if size is None or not isinstance(channels, int):
            return self.image_shape
        return (channels, *size)

    @property
    def label_count(self) -> int | None:
        """Number of classes that the networks of a resolved experiment get. None if the objective
        is not conditional."""
        return len(self.data.classes or ()) if self.needs_labels else None

    @property
    def label_numbers(self) -> int:
        """How many numbers the labels of a resolved experiment have besides the class."""
        return len(self.data.condition_statistics or ()) if self.needs_labels else 0

    def better(self, score: str) -> Literal["min", "max"] | None:
        """Whether a lower ("min") or a higher ("max") value of a held-out score or metric is
        better. None if unknown."""
        return better_of_score(score, self.objective.held_out_scores)

    @property
    def search_metric(self) -> str:
        """`search.metric`, or its default."""
        assert self.search is not None
        return self.search.metric or next(iter(self.objective.held_out_scores or ()), OFFLINE)

    @property
    def search_every_images(self) -> int:
        """`search.every_images`, or its default."""
        assert self.search is not None
        return self.search.every_images or -(-self.training.images // 9)
