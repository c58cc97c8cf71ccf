"""The base of all settings: frozen, typed, and with errors that name the field's dotted path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ray_gen.errors import Refused
from ray_gen.storage import without_credentials


class ExperimentError(Refused):
    """An experiment that is not valid. Each problem names the dotted field and the remedy."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[type[ExperimentError], tuple[list[str]]]:
        return type(self), (self.problems,)  # a worker sends this error to the driver


@dataclass(frozen=True)
class Told:
    """What readers are told of a type, as a part of its Annotated."""

    words: str | None = None
    """The type in words: "64 or 96x160". None: as its parts are told."""
    unit: str | None = None
    """The unit of its numbers, where the name of the field does not end with it."""


Location = Annotated[str, AfterValidator(without_credentials), Told("path or URI")]
"""A path or a URI. It must not hold credentials: the experiment file records it."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Told("SHA-256")]


def or_its_kind(kinds: Any) -> BeforeValidator:
    """Takes a kind alone, too: `adam` for {kind: adam}. kinds: the union of settings classes."""
    return BeforeValidator(_of_its_kind, json_schema_input_type=kinds | str)


def _of_its_kind(given: Any) -> Any:
    return {"kind": given} if isinstance(given, str) else given


def without_place(path: str) -> str:
    """For others: of a local path only its last part, of a URI no user and no query."""
    if "://" not in path:
        return PurePath(path).name
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def absolute_path(path: str) -> str:
    """A local path as an absolute path, also from `~`. A URI stays as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


class Settings(BaseModel):
    """A part of an experiment. Unknown keys are refused. Its fields cannot change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Component(Settings):
    """Settings that name the class they build. `targets` holds "module:Name" strings. They are
    imported only when the class is built.

    The class takes all fields except `kind` as keyword arguments.
    """

    targets: ClassVar[Mapping[str, str]] = {}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the class that these settings build."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}


def free(default: Any, *, but: str | None = None, **constraints: Any) -> Any:
    """A field that a resumed run may change. All other fields identify the run.

    but: the exception. A resumed run may not change the field from or to this value.
    """
    exception = {} if but is None else {"but": but}
    return Field(default, json_schema_extra={"free": True, **exception}, **constraints)


def live(default: Any, **constraints: Any) -> Any:
    """An identity field that may change at a recorded image count: see `Experiment.lineage`."""
    return Field(default, json_schema_extra={"live": True}, **constraints)


def is_marked(settings: Settings, path: str, mark: str) -> bool:
    """Whether the field at a dotted path, or a field around it, has the mark "free" or "live"."""
    here: Any = settings
    for part in path.split("."):
        if isinstance(here, Settings):
            info = type(here).model_fields.get(part)
            extra = info.json_schema_extra if info is not None else None
            if isinstance(extra, dict) and extra.get(mark):
                return True
            here = getattr(here, part, None)
        elif isinstance(here, tuple) and part.isdecimal():
            here = dict(enumerate(here)).get(int(part))
        else:
            here = here.get(part) if isinstance(here, dict) else None
    return False


def differences(ours: Settings, theirs: Settings, path: str = "") -> Iterator[str]:
    """The identity fields that differ between two settings, as "path: OURS here, THEIRS there"."""
    if type(ours) is not type(theirs):
        yield f"{path or 'kind'}: {_short(ours)} here, {_short(theirs)} there"
        return
    for name, info in type(ours).model_fields.items():
        extra = info.json_schema_extra
        here, there = getattr(ours, name), getattr(theirs, name)
        if isinstance(extra, dict) and extra.get("free"):
            but = extra.get("but")
            if but is None or but not in (here, there):
                continue
        yield from _value_differences(here, there, f"{path}.{name}" if path else name)


def _value_differences(here: Any, there: Any, path: str) -> Iterator[str]:
    if isinstance(here, Settings) and isinstance(there, Settings):
        yield from differences(here, there, path)
    elif isinstance(here, dict) and isinstance(there, dict):
        for key in dict.fromkeys((*here, *there)):
            ours, theirs = here.get(key, _NOTHING), there.get(key, _NOTHING)
            yield from _value_differences(ours, theirs, f"{path}.{key}")
    elif isinstance(here, tuple) and isinstance(there, tuple) and _hold_settings(here, there):
        for number, (ours, theirs) in enumerate(zip(here, there, strict=True)):
            yield from _value_differences(ours, theirs, f"{path}.{number}")
    elif here != there:
        yield f"{path}: {_short(here)} here, {_short(there)} there"


def _hold_settings(here: tuple[Any, ...], there: tuple[Any, ...]) -> bool:
    """Whether two tuples of one length hold settings, which are compared field by field."""
    return len(here) == len(there) and all(isinstance(item, Settings) for item in (*here, *there))


class _Nothing:
    """Stands for a key that is missing on one side."""

    def __repr__(self) -> str:
        return "not"


_NOTHING = _Nothing()


def _short(value: Any) -> str:
    text = (
        getattr(value, "kind", type(value).__name__) if isinstance(value, Settings) else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."
