"""What the fields of an experiment are, in words: type, default, unit, meaning.

The docstring below a field is the only description of it. Everything that describes fields comes
from here: `ray-gen fields`, the comments of `ray-gen recipes --full`, the schema, the hints of
refusals.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from ray_gen.settings import Settings, Told

Mark = Literal["identity", "free", "live"]
Models = tuple[type[Settings], ...]

_UNITS = {"images": "images", "seconds": "seconds", "steps": "steps"}
"""Units by the last word of a field's name."""


@dataclass(frozen=True)
class Field:
    """A field at a place of the experiment."""

    path: str
    """Dotted. NAME stands for a key that the user chooses, N for the number of an item."""
    type: str
    """In words: "whole number > 0", "fp32, bf16 or fp64"."""
    default: str | None
    """As YAML. "required" if there is none. None: it has fields with defaults of their own."""
    unit: str | None
    mark: Mark
    """identity: another value is another run. free: a resumed run may change it. live: it may
    change during a run."""
    text: str
    """The whole docstring, in one paragraph."""
    inside: str
    """Path of what stands in it: its own, or with NAME or N for what the user chooses."""
    below: Models
    """The classes of settings that may stand there: several if it has kinds. Without those of a
    type that has words of its own, such as schedules."""
    all_below: Models
    """The same, with those of a type that has words of its own."""
    but: str | None = None
    """The value from and to which a resumed run may not change it, although it is free."""

    @property
    def meaning(self) -> str:
        """The first sentence of its docstring."""
        return first_sentence(self.text)

    @property
    def facts(self) -> str:
        """Type, unit, default and mark in one line."""
        unit = f" [{self.unit}]" if self.unit else ""
        default = f"default {self.default}" if self.default != "required" else "required"
        return "; ".join((self.type + unit, *([default] if self.default else []), self.change))

    @property
    def change(self) -> str:
        """Its mark, with the exception."""
        return self.mark + (f", but not from or to {self.but}" if self.but else "")


def first_sentence(text: str) -> str:
    """The first sentence of a paragraph."""
    return re.split(r"(?<=\.)(?<!e\.g\.)(?<!et al\.)(?<!eq\.)\s", text, maxsplit=1)[0]


def paragraph(text: str | None) -> str:
    """A docstring in one line, for readers of YAML: its first paragraph, with null for None."""
    first = (text or "").strip().partition("\n\n")[0]
    return re.sub(r"\bNone\b", "null", " ".join(first.split()))


def tag_of(model: type[Settings]) -> str | None:
    """The kind that a class of settings stands for. None: it is the only class in its place."""
    info = model.model_fields.get("kind")
    kinds = get_args(info.annotation) if info is not None else ()
    return kinds[0] if len(kinds) == 1 else None


def models_in(annotation: Any, *, told: bool = True) -> Iterator[type[Settings]]:
    """The classes of settings in a type. told: also those in a type that has words of its own."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        if told or not _words_in(metadata):
            yield from models_in(annotation, told=told)
        return
    for argument in get_args(annotation):
        yield from models_in(argument, told=told)


def kinds_at(path: list[str], root: type[Settings]) -> dict[str, type[Settings]]:
    """The settings classes that are possible at a dotted path, by kind. Classes without a kind are
    left out."""
    candidates: set[type[Settings]] = {root}
    for part in path:
        candidates = below(candidates, part)
    return {tag: model for model in candidates if (tag := tag_of(model)) is not None}


def below(candidates: set[type[Settings]], part: str) -> set[type[Settings]]:
    """The classes in the field `part` of the candidates. If no candidate has such a field, `part`
    is a key of a mapping, and the result is the candidates themselves."""
    children: set[type[Settings]] = set()
    for model in candidates:
        if part in model.model_fields:
            children |= set(models_in(model.model_fields[part].annotation))
    return children or candidates


def fields_of(model: type[Settings], path: str = "", mark: Mark = "identity") -> Iterator[Field]:
    """The fields of a class of settings that stands at a dotted path, without those below them.

    mark: of the field that holds it. All fields below a free one are free.
    """
    for name, info in model.model_fields.items():
        if name == "kind" and tag_of(model) is not None:
            continue  # told with the kinds: `kind_of`
        here = f"{path}.{name}" if path else name
        yield Field(
            path=here,
            type=_type(_whole(info)),
            default=_default(info),
            unit=_unit(name, info),
            mark=mark_of(info) if mark == "identity" else mark,
            but=_extra(info).get("but"),
            text=_text(model, name),
            inside=here + (".NAME" if _holds_names(info) else ".N" if _holds_items(info) else ""),
            below=tuple(models_in(_whole(info), told=False)),
            all_below=tuple(models_in(_whole(info))),
        )


def common_base(models: Models) -> type[Settings]:
    """The class with the fields that all kinds in a place share."""
    return next(m for m in models[0].__mro__ if all(issubclass(model, m) for model in models))


def mark_of(info: FieldInfo) -> Mark:
    """Whether a field alone, without those around it, identifies a run, is free, or is live."""
    extra = _extra(info)
    return "live" if extra.get("live") else "free" if extra.get("free") else "identity"


def _extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def shown(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(
        to_jsonable_python(value), default_flow_style=True, width=10**6, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def paths(model: type[Settings], given: Any, above: str = "") -> Iterator[str]:
    """The dotted paths of all fields of an experiment at hand: of the kinds that `given` names."""
    for name, info in model.model_fields.items():
        path = f"{above}{name}"
        yield path
        here = given.get(name) if isinstance(given, Mapping) else None
        models = tuple(models_in(_whole(info), told=False))
        if _holds_names(info):
            for key, value in here.items() if isinstance(here, Mapping) else [("NAME", None)]:
                yield f"{path}.{key}"
                yield from _paths_of_kind(models, value, f"{path}.{key}.")
        elif not _holds_items(info):
            yield from _paths_of_kind(models, here, f"{path}.")


def _paths_of_kind(models: Models, given: Any, above: str) -> Iterator[str]:
    """Of the kind that `given` names, also in short form (KIND:VALUE). If it names none, of
    all kinds."""
    kind = given.get("kind") if isinstance(given, Mapping) else str(given).partition(":")[0]
    named = [model for model in models if tag_of(model) == kind]
    for model in named or models:
        yield from paths(model, given, above)


def _holds_names(info: FieldInfo) -> bool:
    return any(get_origin(part) is dict for part in _alternatives(info.annotation))


def _holds_items(info: FieldInfo) -> bool:
    """Whether settings stand in a list."""
    lists = (p for p in _alternatives(info.annotation) if get_origin(p) is tuple)
    return any(any(models_in(part)) for part in lists)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, without Annotated. A type alone is one."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(a for part in get_args(annotation) for a in _alternatives(part))
    return (annotation,)


def _whole(info: FieldInfo) -> Any:
    """The type of a field with its metadata, which pydantic takes apart."""
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _words_in(metadata: Any) -> str | None:
    return next((m.words for m in metadata if isinstance(m, Told) and m.words), None)


def _unit(name: str, info: FieldInfo) -> str | None:
    told = next((unit for unit in _units_in(_whole(info))), None)
    return told or _UNITS.get(name.rpartition("_")[2])


def _units_in(annotation: Any) -> Iterator[str]:
    for part in get_args(annotation):
        if isinstance(part, Told) and part.unit:
            yield part.unit
        yield from _units_in(part)


def _text(model: type[Settings], name: str) -> str:
    """The docstring below a field. If there is none: that of the field it replaces, else that of
    the class that stands in it."""
    for base in model.__mro__:
        info = base.model_fields.get(name) if issubclass(base, Settings) else None
        if info is not None and info.description:
            return paragraph(info.description)
    models = tuple(models_in(model.model_fields[name].annotation))
    return paragraph(models[0].__doc__) if len(models) == 1 else ""


def _default(info: FieldInfo) -> str | None:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, Settings):
        kind = tag_of(type(value))
        return f"{{kind: {kind}}}" if kind else None
    return shown(value)


_PLAIN: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "any value",
}
_LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _type(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type in words."""
    words = _words_in(metadata)
    if words:
        return words
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        return _type(annotation, (*more, *metadata))
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _type_of_union(arguments)
    if origin is Literal:
        return either([shown(value) for value in arguments])
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type(arguments[0])}"
        return f"[{', '.join(map(_type, arguments))}]"
    if origin is dict:
        return f"{{name: {_type(arguments[1])}}}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "the fields below"
    limits = [
        f"{sign} {limit:g}"
        for part in _flat(metadata)
        for name, sign in _LIMITS.items()
        if (limit := getattr(part, name, None)) is not None
    ]
    return " ".join((_PLAIN[annotation], " and ".join(limits))).strip()


def _flat(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for part in metadata:
        yield from _flat(tuple(part.metadata)) if isinstance(part, FieldInfo) else (part,)


def _type_of_union(arguments: tuple[Any, ...]) -> str:
    """Alternatives in words. Classes of settings are told together: their kinds, if they have."""
    models = [model for argument in arguments for model in models_in(argument, told=False)]
    tags = [tag for model in models if (tag := tag_of(model))]
    words: list[str] = []
    for argument in arguments:
        if get_origin(argument) is Literal:
            words += map(shown, get_args(argument))
        elif argument is bool:
            words += ("true", "false")
        elif tags and isinstance(argument, type) and issubclass(argument, Settings):
            words.append(f"one of the kinds {either(tags)}")
        else:
            words.append(_type(argument))
    return either(list(dict.fromkeys(words)))


def either(words: Sequence[str]) -> str:
    """Words as "a, b or c"."""
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]
