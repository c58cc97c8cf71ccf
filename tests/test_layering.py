"""The rooms of the house. Imports between files point only downwards, and never in a circle."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_gen"

# From the ground up. A room is a folder or a file, by its dotted name below ray_gen; what stands
# here by a longer name is a room of its own. A file imports from its own room and from lower
# floors.
FLOORS: list[set[str]] = [
    {"errors", "version", "core", "distributed", "pixels", "precision", "temporary"},
    {"noise", "losses", "phase_sums", "storage", "weights"},
    {"backbones", "vit"},
    {"augment", "bottlenecks", "sampling", "perceptual", "runs.manifest", "settings"},
    {"objectives", "networks", "data", "evaluation", "runs.names", "runs.captions"},
    {"experiment", "runs.pictures"},
    {"recipes", "searches", "training"},
    {"runs"},
    {"pipeline"},
    {"evaluation.extractors.run", "evaluation.evaluator", "evaluators"},
    {"evaluation.request"},
    {"launch"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What a room may import besides ray_gen and the standard library.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "temporary": set(),
    "core": {"torch"},
    "distributed": {"torch"},
    "pixels": {"torch"},
    "precision": {"torch"},
    "noise": {"torch"},
    "losses": {"torch"},
    "phase_sums": {"torch"},
    "weights": {"torch", "safetensors"},
    "backbones": {"torch", "torchvision"},
    "vit": {"torch"},
    "perceptual": {"torch"},
    "augment": {"torch"},
    "bottlenecks": {"torch"},
    "sampling": {"torch"},
    "storage": {"pyarrow"},
    "objectives": {"torch"},
    "networks": {"torch"},
    "data": {
        *(
            "torch",
            "torchvision",
            "numpy",
            "pyarrow",
            "PIL",
            "pillow_heif",
            "pillow_jxl",
            "tifffile",
        ),
        "huggingface_hub",
    },
    "settings": {"pydantic"},
    "experiment": {"pydantic", "pydantic_core", "yaml"},
    "recipes": set(),
    "searches": {"plotly", "optuna"},
    "training": {"torch", "safetensors"},
    "runs.manifest": set(),
    "runs.captions": {"numpy", "PIL"},
    "runs.pictures": {"torch", "numpy", "PIL", "av"},
    "runs.names": set(),
    "runs": {"torch", "numpy", "wandb", "mlflow"},
    "pipeline": {
        *("torch", "PIL", "safetensors", "sklearn"),
        *("onnx", "onnxruntime", "huggingface_hub", "diffusers"),
    },
    "evaluation": {"torch", "numpy", "safetensors", "pydantic"},
    "evaluation.extractors.run": {"torch"},
    "evaluators": set(),
    "evaluation.evaluator": {"torch"},
    "evaluation.request": {"pydantic"},
    "launch": {"ray", "torch", "optuna", "rich", "pandas", "plotly", "IPython"},
    "cli": {"click", "rich", "tensorboard"},
    "__main__": set(),
}
# torchvision takes seconds to import, so only these files know it.
OF_TORCHVISION = {"data.sources.torchvision", "backbones"}

# What runs in a step on the device.
IN_A_STEP = {
    *("training.step", "training.block", "training.foreach", "training.gradients"),
    *("training.optimizers", "losses", "augment", "noise", "pixels", "core"),
    *("phase_sums", "precision", "vit"),
    *("objectives", "networks", "perceptual", "bottlenecks"),
}
WAITS = {"item", "tolist", "cpu", "numpy", "synchronize", "nonzero", "is_nonzero"}
"""Methods that wait for the device."""
CONVERSIONS = {"float", "bool", "int"}
"""Of a tensor they wait for the device, too. Of a number of the host a step needs none."""

# A family of models is known to its objective, its settings, its networks and losses.
OF_FAMILIES = {"objectives", "networks", "losses", "augment", "recipes", "experiment.objectives"}
OF_FAMILIES |= {"experiment.gan", "experiment.vae_gan", "experiment.latent_autoencoder"}
OF_FAMILIES |= {"experiment.elsewhere"}  # what others call them


def name_of(file: Path) -> str:
    """Dotted, below ray_gen."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py")) if name_of(file)}


def lies_in(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def room_of(name: str) -> str:
    """The longest name of a room that the file lies in."""
    rooms = [room for room in FLOOR if lies_in(name, {room})]
    assert rooms, f"{name} lies in no room: give it a floor in FLOORS"
    return max(rooms, key=len)


@cache
def nodes_of(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text)))


def imported(text: str) -> Iterator[str]:
    """Every module that a file imports anywhere, also in functions and for type checkers."""
    for node in nodes_of(text):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            module = node.module or ""
            for alias in node.names:  # from ray_gen.training import foreach
                whole = f"{module}.{alias.name}"
                yield whole if whole.removeprefix("ray_gen.") in FILES else module


def ours(text: str) -> set[str]:
    """Files of ray_gen that a file imports."""
    found = {m.removeprefix("ray_gen.") for m in imported(text) if m.startswith("ray_gen.")}
    return found & FILES.keys()


def foreign(text: str) -> set[str]:
    tops = {module.partition(".")[0] for module in imported(text)}
    return tops - set(sys.stdlib_module_names) - {"ray_gen"}


def upward(name: str, text: str) -> list[str]:
    """The imports of a file that do not point downwards."""
    here = room_of(name)
    found = sorted(ours(text) - {name})
    return [m for m in found if room_of(m) != here and FLOOR[room_of(m)] >= FLOOR[here]]


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle of imports, or None."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def other_names(text: str) -> dict[str, str]:
    """What the names in a file stand for, where they were given another name."""
    found: dict[str, str] = {}
    for node in nodes_of(text):
        if isinstance(node, ast.ImportFrom):
            found |= {a.asname: a.name for a in node.names if a.asname is not None}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            found |= {t.id: node.value.id for t in node.targets if isinstance(t, ast.Name)}
    return found


def called(text: str) -> set[str]:
    """Names of the methods and of the functions that a file calls."""
    nodes = [n.func for n in nodes_of(text) if isinstance(n, ast.Call)]
    others = other_names(text)
    return {
        *(n.attr for n in nodes if isinstance(n, ast.Attribute)),
        *(others.get(n.id, n.id) for n in nodes if isinstance(n, ast.Name)),
    }


def waits_for_the_device(text: str) -> set[str]:
    """What a file calls that may wait. `x.float()` converts on the device; `float(x)` waits."""
    nodes = [n.func for n in nodes_of(text) if isinstance(n, ast.Call)]
    others = other_names(text)
    methods = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    names = {others.get(n.id, n.id) for n in nodes if isinstance(n, ast.Name)}
    return methods & WAITS | names & (WAITS | CONVERSIONS)


@cache
def text_of(name: str) -> str:
    return FILES[name].read_text(encoding="utf-8")


# One test looks at all files: a test for each would take longer to call than to run.


def test_imports_point_downwards() -> None:
    found = {name: upward(name, text_of(name)) for name in FILES}
    assert not {name: modules for name, modules in found.items() if modules}


def graph_of_imports() -> dict[str, set[str]]:
    """Files by what must be imported before them: also packages, before what lies in them."""
    graph: dict[str, set[str]] = {}
    for name in FILES:
        found = ours(text_of(name))
        above = {m[:i] for m in found for i, letter in enumerate(m) if letter == "."}
        graph[name] = {m for m in found | above if not lies_in(name, {m})}
    return graph


def test_no_circle_of_imports() -> None:
    assert not circle(graph_of_imports())


def test_every_room_that_has_a_floor_is_there() -> None:
    for room in (*FLOOR, *MAY_IMPORT, *OF_TORCHVISION, *IN_A_STEP, *OF_FAMILIES):
        assert any(lies_in(name, {room}) for name in FILES), f"there is no {room}"
    assert MAY_IMPORT.keys() == FLOOR.keys()


def test_other_peoples_libraries_stay_in_their_rooms() -> None:
    for name in FILES:
        found = foreign(text_of(name))
        assert found <= MAY_IMPORT[room_of(name)], name
        if name not in OF_TORCHVISION:
            assert "torchvision" not in found, name


def test_nothing_is_imported_by_a_name_that_no_import_shows() -> None:
    """But what settings build, and what a package gives when it is first asked for."""
    free = {name for name in FILES if lies_in(name, {"experiment"})} | {"training.build", "launch"}
    for name in FILES.keys() - free:
        for node in nodes_of(text_of(name)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                module = node.value.removeprefix("ray_gen.").partition(":")[0]
                shown = not node.value.startswith("ray_gen.") or module not in FILES
                assert shown, f"{name}: {node.value}"


def test_the_package_itself_imports_nothing_when_imported() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    modules = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert modules <= {"__future__", "importlib", "typing"}


def test_settings_name_what_builds_them_and_that_exists() -> None:
    """As strings, so that no import shows it."""
    import importlib

    from ray_gen.settings import Component

    def below(kind: type[Component]) -> Iterator[type[Component]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    targets = {target for kind in below(Component) for target in kind.targets.values()}
    assert len(targets) > 8
    for target in targets:
        module, _, name = target.partition(":")
        assert hasattr(importlib.import_module(module), name), target


def test_only_the_step_runs_a_backward_pass() -> None:
    found = {name: called(text_of(name)) for name in FILES}
    # A projection descends to latents and leaves the networks as they are.
    of_backward = {name for name, names in found.items() if "backward" in names}
    assert of_backward == {"training.step", "pipeline.projection"}
    # The others are penalties on the discriminator's gradient, and the adaptive weight of a loss.
    of_grad = {name for name, names in found.items() if "grad" in names}
    assert of_grad == {"training.step", "losses", "networks.measured"}


def test_nothing_in_a_step_waits_for_the_device() -> None:
    found = {n: waits_for_the_device(text_of(n)) for n in FILES if lies_in(n, IN_A_STEP)}
    assert not {name: waits for name, waits in found.items() if waits}


def test_no_file_above_the_objectives_knows_a_family() -> None:
    family = re.compile(r"(?i)\bgan\b|hinge|GanObjective|VaeObjective")
    above = [name for name in FILES if not lies_in(name, OF_FAMILIES)]
    assert not [name for name in above if family.search(text_of(name))]


def test_all_but_launch_works_where_ray_and_torchvision_are_not_installed() -> None:
    modules = [
        f"ray_gen.{name}"
        for name, file in FILES.items()
        if not lies_in(name, {"launch", "__main__"}) and file.name != "__init__.py"
    ]
    # These choose between Ray and no Ray, or are part of a run without it.
    without = ("evaluate", "driver", "alone", "place", "worker", "claim", "progress", "signals")
    without += ("memory",)
    modules += [f"ray_gen.launch.{name}" for name in without]
    code = (
        "import sys, importlib\n"
        "sys.modules.update(dict.fromkeys(['ray', 'torchvision', 'tensorboard', 'pythae']))\n"
        f"for module in {modules}: importlib.import_module(module)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


@pytest.mark.parametrize("name", ["train", "search", "evaluate"])
def test_jobs_are_thin(name: str) -> None:
    text = (ROOT / "jobs" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert not foreign(text) & {"torch", "torchvision"}


# What the checks above see, shown on files that are wrong.


@pytest.mark.parametrize(
    "text",
    [
        "import ray_gen.training.loop",
        "from ray_gen.training import loop",
        "def later():\n    from ray_gen.training.loop import train",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ray_gen.cli import main",
        "from ray_gen.networks.mlp import Mlp",  # a neighbour on the same floor
    ],
)
def test_an_arrow_upwards_or_to_a_neighbour_is_seen(text: str) -> None:
    assert upward("objectives.vae", text)


def test_a_circle_inside_a_room_is_seen() -> None:
    graph = graph_of_imports()
    graph["training.block"] |= {"training.step"}
    found = circle(graph)
    assert found is not None and {"training.block", "training.step"} <= {*found}


def test_a_file_without_a_floor_is_seen() -> None:
    with pytest.raises(AssertionError, match="attic lies in no room"):
        room_of("attic")


@pytest.mark.parametrize(
    "text",
    [
        *("x.item()", "float(x)", "bool(x.any())", "int(x)", "read = float\nread(x)"),
        "from torch import nonzero\nnonzero(x)",
        "from torch import nonzero as places\nplaces(x)",
    ],
)
def test_a_wait_for_the_device_is_seen(text: str) -> None:
    assert waits_for_the_device(text)


@pytest.mark.parametrize("name", ["grad", "grad as slope"])
def test_an_imported_grad_is_seen(name: str) -> None:
    call = name.rpartition(" ")[2]
    assert "grad" in called(f"from torch.autograd import {name}\n{call}(y, x)")
