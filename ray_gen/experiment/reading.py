"""An experiment as plain Python: reads and writes YAML, and sets fields by dotted path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from ray_gen.experiment.data import Data, DataSettings, from_short_form
from ray_gen.experiment.fields import kinds_at
from ray_gen.experiment.refusals import problems_of
from ray_gen.experiment.start import of_source
from ray_gen.settings import ExperimentError, Settings, absolute_path

Changes = Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""New values of fields: {"training.images": 1000}, {"training": {"images": 1000}}, or
["training.images=1000"]."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: 1e-4 is a number, where YAML 1.1 reads a string."""


class Dumper(yaml.SafeDumper):
    """Quotes a string that `_Loader` would read as a number."""


for _side in (_Loader, Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def parse_yaml(text: str, source: str = "the text") -> Any:
    """YAML to plain Python. source: the file or the assignment that the text is from. Raises
    ExperimentError with the source, line and column of the mistake."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ExperimentError([f"{source}: is not YAML: {problem}{where}"]) from None


def unshared(tree: Any) -> Any:
    """A deep copy. YAML aliases share one object. In the copy each place has its own object, so an
    assignment changes only one place."""
    if isinstance(tree, dict):
        return {key: unshared(value) for key, value in tree.items()}
    return [unshared(value) for value in tree] if isinstance(tree, list) else tree


class _DataAlone(Settings):
    data: Data


def data_settings(source: str, assignments: Sequence[str] = ()) -> DataSettings:
    """The `data` settings, from a short form, a path, a URI or a mapping in YAML ({kind: …}), and
    from `data.path=value` assignments, with absolute paths.

    Raises ExperimentError.
    """
    given: dict[str, Any] = {
        "data": parse_yaml(source, source) if source.startswith("{") else source
    }
    for assignment in assignments:
        apply_override(given, assignment, _DataAlone)
    return data_of(given["data"]).with_places(absolute_path)


def data_of(value: Any) -> DataSettings:
    """The `data` settings from their short form or mapping. Raises ExperimentError."""
    given = {"data": value}
    try:
        return _DataAlone.model_validate(given).data
    except ValidationError as error:
        raise ExperimentError(problems_of(error, _DataAlone, given)) from None


def apply_override(given: Any, assignment: str, model: type[Settings]) -> None:
    """Set one field in a plain mapping from `path=value`; the value is YAML. model: its settings
    class."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise ExperimentError(
            [f"{assignment!r} is not of the form path=value, e.g. training.images=100000"]
        )
    set_field(given, path, parse_yaml(text, assignment), model)


def apply_changes(given: Any, changes: Changes, model: type[Settings]) -> list[str]:
    """Make changes in a plain mapping, in their order. Returns the dotted paths of the fields that
    they set. model: its settings class.

    A mapping inside a mapping changes the fields that it names and keeps the others. With a `kind`
    it takes the whole place instead. Raises TypeError for a change of another type.
    """
    paths: list[str] = []
    for change in [changes] if isinstance(changes, (str, Mapping)) else changes:
        if isinstance(change, str):
            apply_override(given, change, model)
            paths.append(change.partition("=")[0])
            continue
        if not isinstance(change, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"changes: {change!r} is neither 'path=value' nor a mapping; `recipe` takes each "
                'change as an argument of its own: recipe(NAME, "seed=1", "training.images=1000")'
            )
        for path, value in _fields_in(given, change):
            set_field(given, path, value, model)
            paths.append(path)
    return paths


def _fields_in(
    given: Any, changes: Mapping[str, Any], around: str = ""
) -> Iterator[tuple[str, Any]]:
    """(dotted path, plain value) of each change. given: the plain mapping as it is now."""
    for key, value in changes.items():
        path = f"{around}{key}"
        if isinstance(value, Mapping) and "kind" not in value and _has_fields(given, path):
            yield from _fields_in(given, value, f"{path}.")
        else:
            yield path, _plain(value)


def _has_fields(given: Any, path: str) -> bool:
    """Whether a mapping of fields stands at a dotted path. A range of a search is a value."""
    if path == "data":
        return True  # also as a short form
    here = given
    for part in _keys(path):
        here = here.get(part) if isinstance(here, dict) else None
    return isinstance(here, dict) and not path.startswith("search.space.")


def _plain(value: Any) -> Any:
    """A value from Python as YAML would give it. Paths become text."""
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def set_field(given: Any, path: str, value: Any, model: type[Settings]) -> None:
    """Set one field in a plain mapping by its dotted path. model: its settings class."""
    *parents, last = _keys(path)
    here = given
    for position, part in enumerate(parents):
        if isinstance(here, dict) and isinstance(here.get(part), str):
            if part == "data":
                here[part] = from_short_form(here[part])
            elif parents[: position + 1] == ["training", "start_from"]:
                here[part] = of_source(here[part])
        if isinstance(here, list):
            child = here[_number(part, here, path)]
            if isinstance(child, str) and parents[:position] == ["data", "sources"]:
                child = here[int(part)] = from_short_form(child)
            elif isinstance(child, str) and child in kinds_at(parents[: position + 1], model):
                child = here[int(part)] = {"kind": child}
        else:
            child = here.get(part) if isinstance(here, dict) else None
            if isinstance(child, str) and child in kinds_at(parents[: position + 1], model):
                here[part] = child = {"kind": child}  # pyright: ignore[reportArgumentType]
            if child is None and isinstance(here, dict):
                child = here[part] = {}
        if not isinstance(child, (dict, list)):
            before = ".".join(parents[: position + 1])
            raise ExperimentError([f"{path}: {before} is {child!r} and has no fields"])
        here = child
    if isinstance(here, list):
        here[_number(last, here, path)] = value
        return
    if last == "kind":
        _drop_fields_of_another_kind(here, value, kinds_at(parents, model))
    here[last] = value


def _number(part: str, items: list[Any], path: str) -> int:
    """A part of a dotted path as the number of an item of a list."""
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    raise ExperimentError(
        [f"{path}: {part!r} is no item of a list of {len(items)}; items are numbered from 0"]
    )


def _keys(path: str) -> list[str]:
    """The keys of a dotted path. Each key of `search.space` is a dotted path itself."""
    prefix = "search.space."
    return ["search", "space", path[len(prefix) :]] if path.startswith(prefix) else path.split(".")


def _drop_fields_of_another_kind(
    here: dict[str, Any], kind: Any, kinds: dict[str, type[Settings]]
) -> None:
    """Remove the fields of the old kind that the new `kind` does not have. Validation refuses
    fields that neither kind has."""
    old, new = kinds.get(str(here.get("kind"))), kinds.get(str(kind))
    if old is not None and new is not None:
        for name in old.model_fields.keys() - new.model_fields.keys():
            here.pop(name, None)
