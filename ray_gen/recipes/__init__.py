"""Complete experiments by name, as YAML files beside this one. Each begins with its claim: a
comment that says what it is and what was measured."""

from __future__ import annotations

import difflib
import itertools
from importlib import resources
from pathlib import Path

from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.manual import commented, schema_line
from ray_gen.storage import Folder


def names() -> list[str]:
    """The names of the recipes in the package."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name_or_file: str) -> str:
    """The YAML of a recipe, or of the user's own file (a path or a URI)."""
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
    near = difflib.get_close_matches(name_or_file, names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else f": {', '.join(names())}"
    raise ExperimentError(
        [f"{name_or_file} is neither a file nor a recipe (see `ray-gen recipes`){hint}"]
    )


def to_copy(name_or_file: str, full: bool = False) -> str:
    """The YAML of a recipe or file, to copy and edit. Editors find its schema by the first line.

    full: with every field and a comment on each.
    """
    text = recipe_text(name_or_file)
    if full:
        text = f"{_head(text)}{commented(Experiment.from_yaml(text, source=name_or_file))}"
    return text if "yaml-language-server:" in text else schema_line() + text


def _head(text: str) -> str:
    """The comment at the head of a file."""
    lines = text.splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def claim(name: str) -> str:
    """The comment at the head of a recipe: what it is and what was measured."""
    head = _head(recipe_text(name)).splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in head)


def recipe(name_or_file: str, *overrides: str) -> Experiment:
    """The experiment of a recipe or file, changed by `path=value` assignments."""
    return Experiment.from_yaml(recipe_text(name_or_file), overrides, name_or_file)
