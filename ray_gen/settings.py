"""The base of all settings: frozen, typed, and with errors that name the field's dotted path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ray_gen.errors import Refused
from ray_gen.storage import without_credentials


class ExperimentError(Refused):
    """An experiment that is not valid. Each problem names the dotted field and the remedy."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[type[ExperimentError], tuple[list[str]]]:
        return type(self), (self.problems,)  # a worker sends this error to the driver


Location = Annotated[str, AfterValidator(without_credentials)]
"""A path or a URI. It must not hold credentials: the experiment file records it."""


def absolute_path(path: str) -> str:
    """A local path as an absolute path, also from `~`. A URI stays as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


class Settings(BaseModel):
    """A part of an experiment. Unknown keys are refused. Its fields cannot change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
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
    return Field(default, json_schema_extra={"free": True, "but": but}, **constraints)


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


SCHEDULES = ("constant", "linear", "cosine", "steps")
"""Kinds of schedules (schedules.py). A schedule is a number that changes with the images seen."""


def problems_of(error: ValidationError, root: type[Settings], given: Any) -> list[str]:
    """pydantic's errors as sentences. Each begins with the dotted path of the field."""
    return [_sentence(entry, root, given) for entry in error.errors()]


def _sentence(entry: Any, root: type[Settings], given: Any) -> str:
    path = _dotted(entry["loc"], given)
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(entry["loc"][-1])
        near = difflib.get_close_matches(key, _siblings(entry["loc"], root, given), n=1)
        parent = path.rpartition(".")[0]
        hint = f"; did you mean {parent + '.' if parent else ''}{near[0]}?" if near else ""
        return f"{path}: there is no such field{hint}"
    if kind == "missing":
        return f"{path}: is required and was not given"
    if kind == "union_tag_invalid":
        tag = str(context.get("tag"))
        known = [t.strip(" '") for t in str(context.get("expected_tags", "")).split(",")]
        near = difflib.get_close_matches(tag, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{path}.kind: {tag!r} is not one of {', '.join(known)}{hint}"
    if kind == "union_tag_not_found":
        return f"{path}.kind: is required and was not given"
    if kind == "value_error":
        message = str(context.get("error", entry["msg"]))
        inner = message.partition(": ")[0].isidentifier()  # a field inside the validated value
        return f"{path}{'.' if inner else ': '}{message}" if path else message
    if isinstance(entry["input"], dict) and entry["input"].get("kind") in SCHEDULES:
        return f"{path}: takes no schedule"
    return f"{path}: {entry['msg'][0].lower()}{entry['msg'][1:]}, not {entry['input']!r}"


def _dotted(location: tuple[Any, ...], given: Any) -> str:
    """A pydantic location as a dotted path, without the tags of unions: they are not keys."""
    path: list[str] = []
    here = given
    tagged = False  # whether the tag of the union that holds `here` was passed
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(here, Mapping):
            tag = here.get("kind")
            if not tagged and part not in here and (tag == part or (tag is None and not last)):
                tagged = True
                continue
            here, tagged = here.get(part), False
        elif isinstance(here, (list, tuple)) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        elif isinstance(here, str) and f"{here}:".startswith(f"{part}:"):  # KIND or KIND:VALUE
            here, tagged = {}, True
            continue
        elif here is not None and not isinstance(part, int):
            # The rest names alternatives of a plain union ("int", "literal[...]"), not fields.
            break
        path.append(str(part))
    return ".".join(path)


def _siblings(location: tuple[Any, ...], root: type[Settings], given: Any) -> list[str]:
    """The valid keys at the place of an unknown key."""
    parents = [part for part in location[:-1] if isinstance(part, str)]
    candidates: set[type[Settings]] = {root}
    for part in parents:
        found = {model for model in candidates if _tag(model) == part}
        if found:
            candidates = found
            continue
        candidates = _below(candidates, part)
    return sorted({name for model in candidates for name in model.model_fields})


def kinds_at(path: list[str], root: type[Settings]) -> dict[str, type[Settings]]:
    """The settings classes that are possible at a dotted path, by kind. Classes without a kind are
    left out."""
    candidates: set[type[Settings]] = {root}
    for part in path:
        candidates = _below(candidates, part)
    return {tag: model for model in candidates if (tag := _tag(model)) is not None}


def _below(candidates: set[type[Settings]], part: str) -> set[type[Settings]]:
    """The classes in the field `part` of the candidates. If no candidate has such a field, `part`
    is a key of a mapping, and the result is the candidates themselves."""
    children: set[type[Settings]] = set()
    for model in candidates:
        if part in model.model_fields:
            children |= set(_models_in(model.model_fields[part].annotation))
    return children or candidates


def _tag(model: type[Settings]) -> str | None:
    info = model.model_fields.get("kind")
    return info.default if info is not None else None


def _models_in(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
