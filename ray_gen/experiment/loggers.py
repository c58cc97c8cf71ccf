"""`loggers`: where the numbers and pictures of a run go while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator

from ray_gen.settings import Component, absolute_path, free, or_its_kind
from ray_gen.storage import is_secret, server_without_credentials, without_credentials

_SQLITE = "sqlite:///"


class LoggerSettings(Component):
    """Settings that all loggers share, and facts about a logger before it is built."""

    package: ClassVar[str | None] = None
    """The package that the logger needs. `pip install 'ray_gen[PACKAGE]'` installs it."""
    of_files: ClassVar[bool] = False
    """Whether the logger only writes files of the run folder. Then it is called in the thread of
    training, and its errors are those of the storage. All others have a thread of their own."""

    @property
    def key(self) -> str:
        """The name of the logger in messages and in `loggers.json`."""
        return str(getattr(self, "kind", "custom"))

    def absolute(self) -> Self:
        """The settings with absolute paths."""
        return self


class TensorBoardLogger(LoggerSettings):
    """Event files in `tensorboard/` of the run folder: see `ray-gen tensorboard`."""

    targets: ClassVar[Mapping[str, str]] = {
        "logger": "ray_gen.runs.loggers.tensorboard:TensorBoard"
    }
    of_files: ClassVar[bool] = True
    kind: Literal["tensorboard"] = "tensorboard"


class CsvLogger(LoggerSettings):
    """`metrics.csv` in the run folder: a row for each report, a column for each number."""

    targets: ClassVar[Mapping[str, str]] = {"logger": "ray_gen.runs.loggers.csv:Csv"}
    of_files: ClassVar[bool] = True
    kind: Literal["csv"] = "csv"


class WandbLogger(LoggerSettings):
    """A run of Weights & Biases. The key comes from the environment of the machines
    ($WANDB_API_KEY) or from `wandb login`."""

    targets: ClassVar[Mapping[str, str]] = {"logger": "ray_gen.runs.loggers.wandb:Wandb"}
    package: ClassVar[str | None] = "wandb"
    kind: Literal["wandb"] = "wandb"
    project: str = free("ray_gen", min_length=1)
    """The project that holds the run."""
    entity: str | None = free(None)
    """The user or the team that owns the project. None: your default entity."""
    mode: Literal["online", "offline"] | None = free(None)
    """Whether the run is sent to the server. offline: write only files in `wandb/` of the run
    folder; `wandb sync` sends them later. None: $WANDB_MODE, or online."""


class MlflowLogger(LoggerSettings):
    """A run of MLflow. Credentials come from the environment of the machines
    ($MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD, or $MLFLOW_TRACKING_TOKEN)."""

    targets: ClassVar[Mapping[str, str]] = {"logger": "ray_gen.runs.loggers.mlflow:Mlflow"}
    package: ClassVar[str | None] = "mlflow"
    kind: Literal["mlflow"] = "mlflow"
    tracking_uri: Annotated[str, AfterValidator(server_without_credentials)] | None = free(None)
    """The server, or a file: sqlite:///PATH. None: $MLFLOW_TRACKING_URI, or `mlflow.db` beside the
    run folder."""
    experiment: str = free("ray_gen", min_length=1)
    """The experiment of MLflow that holds the run. It is made if it does not exist."""

    def absolute(self) -> Self:
        """The settings with an absolute path, if `tracking_uri` is an SQLite file."""
        path = (self.tracking_uri or "").removeprefix(_SQLITE)
        if not path or path == self.tracking_uri:
            return self
        return self.model_copy(update={"tracking_uri": f"{_SQLITE}{absolute_path(path)}"})


class CustomLogger(LoggerSettings):
    """Your own class with the four methods of `ray_gen.runs.loggers.Logger`, called as
    `Name(**options)`."""

    kind: Literal["custom"] = "custom"
    target: str = Field(pattern=r"^[\w.]+:\w+$")
    """The class, as package.module:Name. The node of the first worker must be able to import
    it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class. No credentials: the experiment is a file of the run."""

    @property
    def key(self) -> str:
        """The name of the logger in messages and in `loggers.json`."""
        return self.target

    def arguments(self) -> dict[str, Any]:
        """The options."""
        return self.options

    @field_validator("options")
    @classmethod
    def _hold_no_credentials(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in _leaves(options):
            if is_secret(name):
                raise ValueError(
                    f"{name} would be written to the run folder; read it from the environment in "
                    "your class instead"
                )
            if isinstance(value, str) and "://" in value:
                scheme = value.partition("://")[0]
                check = server_without_credentials if scheme in _SERVERS else without_credentials
                check(value)
        return options


_SERVERS = ("http", "https")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each plain value in a tree, with the last key before it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value


def _once_each(loggers: tuple[LoggerSettings, ...]) -> tuple[LoggerSettings, ...]:
    keys = [logger.key for logger in loggers]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is there twice; name each logger once")
    return loggers


_Kind = TensorBoardLogger | CsvLogger | WandbLogger | MlflowLogger | CustomLogger
Logger = Annotated[_Kind, Field(discriminator="kind"), or_its_kind(_Kind)]
Loggers = Annotated[tuple[Logger, ...], AfterValidator(_once_each)]
