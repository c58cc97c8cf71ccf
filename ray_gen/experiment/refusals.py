"""Why an experiment is refused, as sentences: the dotted path, what is wrong, what to write
instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from ray_gen.experiment.data import short_form_of
from ray_gen.experiment.elsewhere import called_here, kind_here
from ray_gen.experiment.fields import below, either, kinds_at, paths, shown, tag_of
from ray_gen.settings import Settings

SCHEDULES = ("constant", "linear", "cosine", "steps")
"""Kinds of schedules (schedules.py). A schedule is a number that changes with the images seen."""

_MOST_SIBLINGS = 16
"""More fields than these are not listed in an error."""


def problems_of(error: ValidationError, root: type[Settings], given: Any) -> list[str]:
    """pydantic's errors as sentences. Each begins with the dotted path of the field.

    given: the mapping that was validated as `root`.
    """
    unspaced = list(_unspaced(given, []))
    if unspaced:  # other errors follow from these
        return unspaced
    return [_sentence(entry, root, given) for entry in error.errors()]


def no_such_field(path: str, root: type[Settings], given: Any, value: Any = None) -> str:
    """What to say of a dotted path to no field, without the path.

    value: what was to be assigned.
    """
    return _no_such_field(path.split("."), root, given, value)


def misnamed(section: str, name: str, owner: str, known: Iterable[str]) -> str:
    """The message for a network or an optimiser that the objective does not have."""
    near = _near(name, list(known))
    there = f"did you mean {either([f'{section}.{n}' for n in near])}?" if near else None
    there = there or f"it has {', '.join(f'{section}.{n}' for n in known)}"
    return f"{section}.{name}: {owner} has no such part; {there}"


def _sentence(entry: Any, root: type[Settings], given: Any) -> str:
    parts = _without_tags(entry["loc"], given)
    path = ".".join(parts)
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{path}: {_no_such_field(parts, root, given, entry['input'])}"
    if kind == "missing":
        infos = [m.model_fields.get(parts[-1]) for m in _models_at(parts[:-1], root, given)]
        examples = [example for info in infos if info for example in info.examples or ()]
        example = f"; e.g. {path}={shown(examples[0])}" if examples else ""
        example = _as_short_form(parts, given) or example
        return f"{path}: is required and was not given{example}"
    if kind == "union_tag_invalid":
        tag = str(context.get("tag"))
        known = _tags(context)
        near = difflib.get_close_matches(tag, known, n=1)
        hint = kind_here(f"{path}.kind", tag) or (f"did you mean {near[0]}?" if near else "")
        hint = f"; {hint}" if hint else ""
        return f"{path}.kind: {tag!r} is not one of {', '.join(known)}{hint}"
    if kind == "union_tag_not_found":
        keys = entry["input"] if isinstance(entry["input"], Mapping) else ()
        for key in (key for key in keys if _one_letter_apart(str(key), "kind")):
            return f"{path}.{key}: there is no such field; did you mean {path}.kind?"
        kinds = kinds_at(parts, root)
        which = f"; it is one of {', '.join(sorted(kinds))}" if kinds else ""
        return f"{path}.kind: is required and was not given{which}"
    if kind == "value_error":
        message = str(context.get("error", entry["msg"]))
        inner = message.partition(": ")[0].isidentifier()  # a field inside the validated value
        return f"{path}{'.' if inner else ': '}{message}" if path else message
    if kind == "model_attributes_type" and (kinds := sorted(kinds_at(parts, root))):
        return f"{path}: is one of {', '.join(kinds)}, not {entry['input']!r}"
    if kind == "model_type" and path:
        fields = [f"{path}.{name}" for name in _names_in(_models_at(parts, root, given))]
        return f"{path}: takes no value; set its fields: {_listed(fields, path)}"
    if isinstance(entry["input"], dict) and entry["input"].get("kind") in SCHEDULES:
        return f"{path}: takes no schedule"
    told = f"{path}: {entry['msg'][0].lower()}{entry['msg'][1:]}, not {entry['input']!r}"
    if kind == "literal_error":
        known = [w.strip("'") for w in str(context["expected"]).replace(" or ", ", ").split(", ")]
        apart = [value for value in known if _one_letter_apart(str(entry["input"]), value)]
        here = kind_here(path, str(entry["input"]))
        told += f"; did you mean {either(apart)}?" if apart else f"; {here}" if here else ""
    return told


def _as_short_form(parts: list[str], given: Any) -> str | None:
    """How to name data whose place is missing. parts: the path of the missing field."""
    *above, field = parts
    if above[:1] != ["data"] or field not in ("path", "dataset"):
        return None
    here = given
    for part in above:
        here = _item(here, part)
    form = short_form_of(str(_item(here, "kind")))
    return None if form is None else f"; write {'.'.join(above)}={form}"


def _unspaced(here: Any, parts: list[str]) -> Iterator[str]:
    """A sentence for each {a:1} in a mapping: to YAML this is the key "a:1" without a value."""
    if not isinstance(here, (Mapping, list, tuple)):
        return
    for key, value in here.items() if isinstance(here, Mapping) else enumerate(here):
        yield from _unspaced(value, [*parts, str(key)])
        if value is None and isinstance(key, str) and ":" in key:
            name, _, rest = key.partition(":")
            told = f"{key!r} is a name without a value, because YAML needs a space after a colon"
            yield f"{'.'.join(parts) or name}: {told}; write {{{name}: {rest}}}"


def _tags(context: Mapping[str, Any]) -> list[str]:
    return [tag.strip(" '") for tag in str(context.get("expected_tags", "")).split(",")]


def _no_such_field(parts: list[str], root: type[Settings], given: Any, value: Any) -> str:
    *above, key = parts
    models = _models_at(above, root, given)
    siblings = sorted(_names_in(models))
    around = "".join(f"{part}." for part in above)
    apart = [name for name in siblings if _one_letter_apart(key, name)]
    if apart:
        return f"there is no such field; did you mean {either([around + n for n in apart])}?"
    kinds = kinds_at(above, root)
    others = [kind for kind in sorted(kinds) if key in kinds[kind].model_fields]
    if others and len(models) == 1:
        kind, having = tag_of(*models), ", ".join(others)
        return f"there is no such field in kind {kind}; these kinds have it: {having}"
    known = list(dict.fromkeys(paths(root, given)))
    told = called_here(".".join(parts), known, value, given)
    if told:
        return f"there is no such field; {told}"
    meant = [path for path in known if path.rpartition(".")[2] == key]  # at another level
    meant = meant or [around + name for name in difflib.get_close_matches(key, siblings, n=1)]
    meant = meant or [path for path in known if _one_letter_apart(path.rpartition(".")[2], key)]
    if meant:
        return f"there is no such field; did you mean {either(meant[:3])}?"
    there = f"; there are: {_listed(siblings, '.'.join(above))}" if siblings else ""
    return f"there is no such field{there}"


def _names_in(models: Iterable[type[Settings]]) -> list[str]:
    """The names of the fields of some classes of settings, each once, in their order."""
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _listed(names: list[str], above: str) -> str:
    """Names of fields of the part `above`, or the first ones and where the others are told."""
    more = f", …: see `{f'ray-gen fields {above}'.strip()}`"
    return ", ".join(names[:_MOST_SIBLINGS]) + (more if len(names) > _MOST_SIBLINGS else "")


def _models_at(parts: Iterable[str], root: type[Settings], given: Any) -> set[type[Settings]]:
    """The classes of settings that may stand at a place: one if `given` says its kind there."""
    candidates: set[type[Settings]] = {root}
    here = given
    for part in parts:
        candidates = candidates if part.isdecimal() else below(candidates, part)
        here = _item(here, part)
        kind = here.get("kind") if isinstance(here, Mapping) else None
        candidates = {model for model in candidates if tag_of(model) == kind} or candidates
    return candidates


def _item(here: Any, part: str) -> Any:
    if isinstance(here, Mapping):
        return here.get(part)
    number = int(part) if part.isdecimal() else -1
    return here[number] if isinstance(here, (list, tuple)) and 0 <= number < len(here) else None


def _near(name: str, known: list[str]) -> list[str]:
    """All names that are one letter apart, else the nearest one, if one is near."""
    apart = [other for other in known if _one_letter_apart(name, other)]
    return apart or difflib.get_close_matches(name, known, n=1)


def _one_letter_apart(one: str, other: str) -> bool:
    """Whether one letter is missing, added, another, or in the place of its neighbour."""
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    return max(len(one), len(other)) == 1 or (len(one) == 2 and one == other[::-1])


def _without_tags(location: tuple[Any, ...], given: Any) -> list[str]:
    """A pydantic location without the tags of unions: they are not keys."""
    path: list[str] = []
    here = given
    tagged = False  # whether the tag of the union that holds `here` was passed
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(here, Mapping):
            tag = here.get("kind")
            default = tag is None and part not in here and not last
            if not tagged and (tag == part or default):
                tagged = True
                continue
            here, tagged = here.get(part), False
        elif isinstance(here, (list, tuple)) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        elif isinstance(here, str) and f"{here}:".startswith(f"{part}:"):  # KIND or KIND:VALUE
            here, tagged = {}, True
            continue
        elif not isinstance(part, int):
            # The rest names alternatives of a plain union ("int", "literal[...]"), not fields.
            break
        path.append(str(part))
    return path
