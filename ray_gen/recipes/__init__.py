"""Complete experiments by name, as YAML files beside this one. Each begins with its claim: a
comment that says what it is and what was measured."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from ray_gen.experiment import Experiment, ExperimentError
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


def claim(name: str) -> str:
    """The comment at the head of a recipe: what it is and what was measured."""
    lines = recipe_text(name).splitlines()
    head = lines[: next((n for n, line in enumerate(lines) if not line.startswith("#")), 0)]
    return "\n".join(line.removeprefix("#").strip() for line in head)


def recipe(name_or_file: str, *overrides: str) -> Experiment:
    """The experiment of a recipe or file, changed by `path=value` assignments."""
    return Experiment.from_yaml(recipe_text(name_or_file), overrides)
