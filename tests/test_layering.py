"""The rooms of the house, and that imports between them point only downwards."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_gen"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: a room imports from lower floors and from itself, never from its neighbours.
FLOORS = [
    {"errors", "core", "foreach"},
    {"noise", "block", "losses", "distributed", "storage", "pictures", "v0_1"},
    {"augment", "meter", "latent", "sampling"},
    {"objectives", "networks", "data", "evaluators", "mixture"},
    {"experiment"},
    {"schedule", "recipes", "trials"},
    {"optimizers"},
    {"build"},
    {"state", "sources"},
    {"step", "checkpoints"},
    {"loop"},
    {"run", "pipeline", "report"},
    {"evaluation"},
    {"launch", "exporting"},
    {"scoring"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What lies outside of the package and the standard library, where that is settled.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "experiment": {"pydantic", "pydantic_core", "yaml"},
    "recipes": set(),
    "core": {"torch"},
    "noise": {"torch"},
    "block": {"torch"},
    "foreach": {"torch"},
    "sampling": {"torch"},
    "v0_1": {"torch"},
    "losses": {"torch"},
    "augment": {"torch"},
    "latent": {"torch"},
    "mixture": {"torch", "safetensors", "sklearn"},
    "pictures": {"torch", "numpy", "PIL"},
    "pipeline": {"torch", "PIL", "safetensors"},
    "meter": {"torch"},
    "distributed": {"torch"},
    "schedule": set(),
    "trials": set(),
    "objectives": {"torch"},
    "networks": {"torch"},
    "evaluators": {"torch", "torchvision", "numpy", "safetensors"},
    "build": {"torch"},
    "optimizers": {"torch"},
    "state": {"torch", "safetensors"},
    "step": {"torch"},
    "loop": {"torch"},
    "report": {"plotly", "optuna"},
    "exporting": {"torch", "safetensors", "onnx", "onnxruntime", "huggingface_hub"},
    "evaluation": {"torch", "pydantic"},
    "scoring": {"torch", "pydantic"},
    "cli": {"click", "rich"},
}

OF_TORCHVISION = {"data/sources/torchvision.py", "evaluators/extractors/torchvision.py"}


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, also in functions and for type checkers."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            module = node.module or ""
            if module == "ray_gen":  # from ray_gen import losses
                yield from (f"ray_gen.{alias.name}" for alias in node.names)
            else:
                yield module


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def foreign(file: Path) -> set[str]:
    tops = {module.partition(".")[0] for module in imported(file)}
    return tops - set(sys.stdlib_module_names) - {"ray_gen"}


def calls(file: Path) -> set[str]:
    """Names of the methods that a file calls."""
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {
        node.func.attr
        for node in tree
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


INSIDE = [file for file in FILES if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", INSIDE, ids=name_of)
def test_imports_point_downwards(file: Path) -> None:
    here = room_of(file)
    assert here in FLOOR, f"{here} is a room without a floor: give it one in FLOORS"
    for module in imported(file):
        if not module.startswith("ray_gen."):
            continue
        there = module.split(".")[1]
        if there.startswith("__"):  # ray_gen.__version__
            continue
        assert there == here or FLOOR[there] < FLOOR[here], f"{here} imports {module}"


@pytest.mark.parametrize("file", INSIDE, ids=name_of)
def test_other_peoples_libraries_stay_in_their_rooms(file: Path) -> None:
    found, here = foreign(file), room_of(file)
    if here != "launch":
        assert "ray" not in found
    if name_of(file) not in OF_TORCHVISION:
        assert "torchvision" not in found
    if here in MAY_IMPORT:
        assert found <= MAY_IMPORT[here]


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

    from ray_gen.experiment.base import Component

    def below(kind: type[Component]) -> Iterator[type[Component]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    targets = {target for kind in below(Component) for target in kind.targets.values()}
    assert len(targets) > 8
    for target in targets:
        module, _, name = target.partition(":")
        assert hasattr(importlib.import_module(module), name), target


@pytest.mark.parametrize("file", INSIDE, ids=name_of)
def test_only_the_step_runs_a_backward_pass(file: Path) -> None:
    assert ("backward" in calls(file)) == (name_of(file) == "step.py")
    # The other one is the penalty on the discriminator's gradient.
    assert ("grad" in calls(file)) == (name_of(file) in ("step.py", "losses.py"))


IN_A_STEP = {
    *("step", "block", "losses", "augment", "noise", "optimizers", "foreach"),
    *("objectives", "networks", "core"),
}


@pytest.mark.parametrize("file", [f for f in INSIDE if room_of(f) in IN_A_STEP], ids=name_of)
def test_nothing_in_a_step_waits_for_the_device(file: Path) -> None:
    assert not calls(file) & {"item", "tolist", "cpu", "numpy", "synchronize", "nonzero"}


# What a family of models is called stands in its objective, its settings, networks and losses.
OF_FAMILIES = {"objectives", "networks", "losses", "augment", "recipes"}


@pytest.mark.parametrize(
    "file",
    [f for f in INSIDE if room_of(f) not in OF_FAMILIES and f.name != "objectives.py"],
    ids=name_of,
)
def test_no_file_above_the_objectives_knows_a_family(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(?i)\bgan\b|hinge|GanObjective|VaeObjective", text)


def test_all_but_launch_works_where_ray_and_torchvision_are_not_installed() -> None:
    modules = [
        ".".join(("ray_gen", *file.relative_to(PACKAGE).with_suffix("").parts))
        for file in INSIDE
        if room_of(file) not in ("launch", "__main__") and file.name != "__init__.py"
    ]
    code = (
        "import sys, importlib\n"
        "sys.modules.update(dict.fromkeys(['ray', 'torchvision', 'tensorboard', 'pythae']))\n"
        f"for module in {modules}: importlib.import_module(module)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_jobs_are_thin() -> None:
    for name in ("train", "search", "evaluate"):
        job = ROOT / "jobs" / f"{name}.py"
        if job.exists():
            assert len(job.read_text(encoding="utf-8").splitlines()) <= 40
            assert not foreign(job) & {"torch", "torchvision"}
