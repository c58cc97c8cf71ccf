"""The fields of an experiment for readers: a listing, FIELDS.md, a JSON schema, and an experiment
as YAML with comments. The texts are the docstrings of the fields: see `fields`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ray_gen.experiment.experiment import Experiment
from ray_gen.experiment.fields import (
    Field,
    Mark,
    Models,
    common_base,
    either,
    fields_of,
    first_sentence,
    models_in,
    paragraph,
    tag_of,
)
from ray_gen.experiment.reading import Dumper
from ray_gen.experiment.refusals import no_such_field
from ray_gen.experiment.schedules import AnySchedule
from ray_gen.settings import ExperimentError, Settings

SCHEMA = Path(__file__).with_name("schema.json")
"""The file that `schema` made."""

MARKS = (
    "identity: another value makes another run. free: a resumed run may change it. live: it may "
    "change during a run, by a schedule or by population based training."
)

_WIDTH = 100


@dataclass(frozen=True)
class Kind:
    """One of the kinds of settings that may stand in a place."""

    path: str
    name: str
    text: str
    """The docstring of its class, in one paragraph."""


Item = Field | Kind


def listing(path: str = "") -> tuple[list[Item], list[Item]]:
    """What stands at a dotted path of an experiment, and everything below it.

    In a path, the name of a kind takes only this kind: objective.vae. Raises ExperimentError.
    """
    here: list[Item] = []
    models: Models = (Experiment,)
    at, mark, named = "", "identity", True
    for part in path.split(".") if path else ():
        kinds = {tag_of(model): model for model in models}
        if len(models) > 1 and part in kinds:
            models = (kinds[part],)
            here = [_kind(at, models[0])]
            continue
        if not named or (at.endswith(".N") and part.isdecimal()):
            at, named = f"{at.rpartition('.')[0]}.{part}", True
            continue
        fields = [
            field
            for model in models
            for field in (*_kind_field(models, at, mark), *fields_of(model, at, mark))
            if field.path.rpartition(".")[2] == part
        ]
        if not fields:
            raise ExperimentError([f"{path}: {no_such_field(path, Experiment, {})}"])
        here = list(dict.fromkeys(fields))
        models = tuple(dict.fromkeys(m for f in fields for m in f.below or f.all_below))
        at, mark, named = fields[0].inside, fields[0].mark, not fields[0].inside.endswith(".NAME")
    return here, list(_below(models, at, mark))


def _below(models: Models, path: str, mark: Mark) -> Iterator[Item]:
    """The fields of the settings that may stand at a path, and those below them."""
    if not models:
        return
    shared: list[Field] = list(_kind_field(models, path, mark))
    if len(models) > 1:
        shared += fields_of(common_base(models), path, mark)
        yield from _with_below(shared)
    for model in models:
        if len(models) > 1:
            yield _kind(path, model)
        yield from _with_below([f for f in fields_of(model, path, mark) if f not in shared])


def _with_below(fields: Sequence[Field]) -> Iterator[Item]:
    for field in fields:
        yield field
        yield from _below(field.below, field.inside, field.mark)


def _kind_field(models: Models, path: str, mark: Mark) -> Iterator[Field]:
    """The field that chooses one of several kinds."""
    kinds = [kind for model in models if (kind := tag_of(model))]
    if len(kinds) > 1:
        where = f"{path}.kind" if path else "kind"
        text = "Which of the kinds below it is: it decides which other fields there are."
        yield Field(where, either(kinds), "required", None, mark, text, where, (), ())


def _kind(path: str, model: type[Settings]) -> Kind:
    return Kind(path, tag_of(model) or model.__name__, paragraph(model.__doc__))


def schedules(path: str = "FIELD") -> list[Item]:
    """The kinds of schedules and their fields."""
    return list(_below(tuple(models_in(AnySchedule)), path, "live"))


def markdown() -> str:
    """All fields, as FIELDS.md."""
    head = (
        "# The fields of an experiment\n\n"
        "Made by `ray-gen fields --markdown` from the docstrings below the fields. Set a field in "
        "the experiment's file, or by its dotted path on the command line: `ray-gen train RECIPE "
        "training.images=1000000`. NAME stands for a name that the objective gives, N for the "
        f"number of an item.\n\n{MARKS}\n"
    )
    plain: list[Item] = [f for f in fields_of(Experiment) if not f.below]
    parts = [head, _table(plain)]
    for field in fields_of(Experiment):
        if field.below:
            parts.append(f"## `{field.path}`\n\n{_cell(field.text)}\n")
            parts.append(_tables(list(_below(field.below, field.inside, field.mark))))
    parts.append("## A schedule\n\nFor each field whose type is “… or a schedule”.\n")
    parts.append(_tables(schedules()))
    return "\n".join(parts)


def _tables(items: list[Item]) -> str:
    """Tables of fields, with a heading before those of each kind."""
    parts: list[str] = []
    rows: list[Item] = []
    for item in [*items, None]:
        if isinstance(item, Field):
            rows.append(item)
            continue
        if rows:
            parts.append(_table(rows))
        rows = []
        if item is not None:
            parts.append(f"### `{item.path}`: `kind: {item.name}`\n\n{_cell(item.text)}\n")
    return "\n".join(parts)


def _table(fields: Sequence[Item]) -> str:
    rows = [
        f"| `{f.path}` | {_cell(f.type)}{f' [{f.unit}]' if f.unit else ''} | "
        f"{'required' if f.default == 'required' else f'`{f.default}`' if f.default else ''} | "
        f"{f.change} | {_cell(f.text)} |\n"
        for f in fields
        if isinstance(f, Field)
    ]
    return "| field | type | default | | meaning |\n|---|---|---|---|---|\n" + "".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment's file. Descriptions are the docstrings of the fields."""
    found = Experiment.model_json_schema()
    for model in _settings_below(Experiment, set()):
        told = found if model is Experiment else found["$defs"].get(model.__name__)
        if told is None:
            continue
        told["description"] = paragraph(model.__doc__)
        for field in fields_of(model):
            told["properties"][field.path]["description"] = field.text
        if tag_of(model):
            told["properties"]["kind"]["description"] = told["description"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _settings_below(model: type[Settings], seen: set[type[Settings]]) -> set[type[Settings]]:
    """All classes of settings that an experiment may hold."""
    if model not in seen:
        seen.add(model)
        for info in model.model_fields.values():
            for inner in models_in(info.annotation):
                _settings_below(inner, seen)
    return seen


def schema_line() -> str:
    """The comment by which editors find the schema of a YAML file."""
    return f"# yaml-language-server: $schema={SCHEMA.as_uri()}\n"


def commented(experiment: Experiment) -> str:
    """The complete YAML of an experiment, with a comment on each field."""
    return "".join(_yaml(experiment, experiment.model_dump(mode="json"), "identity", ""))


def explained(tree: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """The YAML of a plain mapping, with a comment above each field that has a reason. reasons: by
    dotted path."""
    return "".join(_explained(tree, reasons, "", ""))


def _explained(
    tree: Mapping[str, Any], reasons: Mapping[str, str], path: str, indent: str
) -> Iterator[str]:
    for key, value in tree.items():
        here = f"{path}.{key}" if path else str(key)
        if here in reasons:
            yield from _comment(reasons[here], indent)
        below = any(reason.startswith(f"{here}.") for reason in reasons)
        if isinstance(value, Mapping) and (
            below or any(isinstance(v, dict) for v in value.values())
        ):
            yield f"{indent}{flow(key)}:\n"
            yield from _explained(value, reasons, here, f"{indent}  ")
        else:
            yield f"{indent}{flow(key)}: {flow(value)}\n"


def brief_yaml(experiment: Experiment) -> str:
    """The YAML of an experiment without the fields that have their default. It reads as the same
    experiment."""
    given = _without_defaults(experiment, experiment.model_dump(mode="json"))
    return yaml.dump(
        given,
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )


def _without_defaults(value: Any, plain: Any) -> Any:
    """value: settings, or what holds some. plain: the same as `Experiment.to_yaml` has it."""
    if isinstance(value, Settings) and isinstance(plain, dict):
        told = {"kind": plain["kind"]} if "kind" in plain else {}
        for name, info in type(value).model_fields.items():
            inner, default = getattr(value, name), info.get_default(call_default_factory=True)
            # Data with a digest but without `rules` were read by the first rules.
            kept = info.is_required() or inner != default or name == "rules"
            if name in plain and kept:
                told[name] = _without_defaults(inner, plain[name])
        return told
    if isinstance(value, dict) and isinstance(plain, dict):
        return {name: _without_defaults(inner, plain[name]) for name, inner in value.items()}
    if isinstance(value, tuple) and isinstance(plain, list):
        return [_without_defaults(*pair) for pair in zip(value, plain, strict=True)]
    return plain


def _yaml(settings: Settings, plain: dict[str, Any], mark: Mark, indent: str) -> Iterator[str]:
    """The lines of some settings. plain: the same as a mapping, as in `Experiment.to_yaml`."""
    model = type(settings)
    kind = tag_of(model)
    if kind is not None and "kind" in plain:
        yield from _comment(first_sentence(paragraph(model.__doc__)), indent)
        yield f"{indent}kind: {kind}\n"
    for field in fields_of(model, "", mark):
        if field.path not in plain:
            continue
        yield from _comment(f"{field.meaning} ({field.facts})", indent)
        value, text = getattr(settings, field.path), plain[field.path]
        yield from _yaml_of(field.path, value, text, field.mark, indent)


def _yaml_of(key: str, value: Any, plain: Any, mark: Mark, indent: str) -> Iterator[str]:
    within = indent + "  "
    if isinstance(value, Settings) and isinstance(plain, dict):
        yield f"{indent}{flow(key)}:\n"
        yield from _yaml(value, plain, mark, within)
    elif isinstance(value, dict) and any(isinstance(v, Settings) for v in value.values()):
        yield f"{indent}{flow(key)}:\n"
        for name, inner in value.items():
            yield from _yaml_of(name, inner, plain[name], mark, within)
    else:
        yield f"{indent}{flow(key)}: {flow(plain)}\n"


def flow(plain: Any) -> str:
    """YAML in one line that `parse_yaml` reads as the same."""
    text = yaml.dump(
        plain,
        Dumper=Dumper,
        default_flow_style=True,
        width=10**6,
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, indent: str) -> Iterator[str]:
    lines = textwrap.wrap(
        text, _WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False
    )
    yield from (f"{indent}# {line}\n" for line in lines)
