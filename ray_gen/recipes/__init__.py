"""Experiments by name: complete ones, as YAML files beside this one, and families for any data
(`families`). Each begins with its claim: a comment that says what it is and what was measured."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.manual import commented, schema_line
from ray_gen.experiment.reading import Changes
from ray_gen.recipes.families import FAMILIES, family_text
from ray_gen.storage import Folder


def names() -> list[str]:
    """The names of the recipes in the package."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name_or_file: str, changes: Changes = (), *, data_needed: bool = True) -> str:
    """The YAML of a recipe, or of the user's own file (a path or a URI). A family's YAML follows
    from the changes, and holds them; `data_needed`: see `family_text`."""
    if name_or_file in FAMILIES:
        return family_text(name_or_file, changes, data_needed=data_needed)
    if name_or_file in names():
        return (resources.files(__name__) / f"{name_or_file}.yaml").read_text(encoding="utf-8")
    if "://" in name_or_file:
        file = Folder(name_or_file)
        try:
            return file.parent.read_bytes(file.name).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ExperimentError([f"{name_or_file}: cannot be read: {error}"]) from None
    path = Path(name_or_file).expanduser()
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExperimentError([f"{path}: cannot be read: {error}"]) from None
    known = [*FAMILIES, *names()]
    near = difflib.get_close_matches(name_or_file, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f": {', '.join(known)}"
    raise ExperimentError(
        [f"{name_or_file} is neither a file nor a recipe (see `ray-gen recipes`){hint}"]
    )


def to_copy(name_or_file: str, full: bool = False, changes: Changes = ()) -> str:
    """The YAML of a recipe or file, to copy and edit. Editors find its schema by the first line.

    full: with every field and a comment on each. changes: of a family, whose numbers follow them.
    """
    if changes and name_or_file not in FAMILIES:
        raise ExperimentError(
            [
                f"{name_or_file}: is a complete recipe, which is printed as it is; give changes to "
                f"`ray-gen train {name_or_file}`, or to a family: {', '.join(FAMILIES)}"
            ]
        )
    text = recipe_text(name_or_file, changes, data_needed=False)
    if full:
        text = f"{_head(text)}{commented(Experiment.from_yaml(text, source=name_or_file))}"
    return text if "yaml-language-server:" in text else schema_line() + text


def _head(text: str) -> str:
    """The comment at the head of a file."""
    lines = text.splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def claim(name: str) -> str:
    """The comment at the head of a recipe: what it is and what was measured."""
    if name in FAMILIES:
        return FAMILIES[name].claim
    head = _head(recipe_text(name)).splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in head)


def recipe(name_or_file: str | os.PathLike[str], *changes: str | Mapping[str, Any]) -> Experiment:
    """The experiment of a recipe or file, with changes of its fields.

        ray_gen.recipe("vae-mnist5k", "training.images=1000", "seed=1")
        ray_gen.recipe("dcgan", "data=folder:~/images", "data.image_size=64")
        ray_gen.recipe("my.yaml", {"training": {"images": 1000}, "objective.latent_size": 8})

    name_or_file: a name (`ray-gen recipes` lists all), a path or a URI. The name of a family gives
    numbers that follow from the size of the images and the amount of training. changes:
    assignments, whose values are YAML, or mappings by dotted path or nested. A mapping inside a
    mapping changes only the fields that it names; with a `kind` it takes the whole place. Raises
    ExperimentError, or TypeError for a change of another type.
    """
    return as_experiment(name_or_file, changes)


def as_experiment(given: Experiment | str | os.PathLike[str], changes: Changes = ()) -> Experiment:
    """The experiment that a user means: an Experiment, or a recipe's name, a path or a URI, with
    changes. Raises ExperimentError, or TypeError for another type."""
    if isinstance(given, Experiment):
        return given.changed(changes) if changes else given
    if isinstance(given, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        name = os.fspath(given)
        return Experiment.from_yaml(recipe_text(name, changes), changes, name)
    raise TypeError(
        f"experiment: {given!r} is none; give the name of a recipe, a file, or what "
        "ray_gen.recipe returns"
    )
