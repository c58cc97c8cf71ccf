"""Models that the package does not ship have the properties of those that it ships.

Each is an objective file of 80 lines at most and network files of 120, written against `core`
alone. Without `slow`, every model and every property is seen in some pair; `slow` adds the others.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ray_gen
from ray_gen.core import PhaseModule
from ray_gen.distributed import World
from ray_gen.noise import Tape
from ray_gen.training.build import build_objective
from ray_gen.training.meter import Meter
from ray_gen.training.state import State
from ray_gen.training.step import Program, Step
from tests.helpers import (
    batches,
    largest_difference,
    some_of,
    stepped,
    trained,
    trained_by_workers,
    weights,
)
from tests.programs import eager, replayed, runs_on_meta
from tests.proofs.experiments import FAMILIES

HERE = Path(__file__).parent
FP64 = "training.precision=fp64"
STEPS = 58
"""Of a replayed run."""


def some_families(*quick: str) -> Any:
    """A test of every family. All but the named ones are marked `slow`."""
    return pytest.mark.parametrize("family", some_of(FAMILIES, *quick))


every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def state_of(store_8) -> Callable[..., State]:
    """The state of a family after 20 steps in this process; trained once for each precision."""
    return cache(lambda family, *overrides: trained(FAMILIES[family](*overrides), store_8)[0])


@pytest.fixture(scope="module")
def by_workers(store_8, tmp_path_factory, request) -> Callable[[int], dict[str, Any]]:
    """Weights by family after 20 steps on `count` workers. One set of processes trains all families
    that this session asks for."""
    wanted: dict[int, list[str]] = {}
    for item in request.session.items:
        if getattr(item, "function", None) is test_workers_do_not_change_the_result:
            wanted.setdefault(item.callspec.params["count"], []).append(
                item.callspec.params["family"]
            )

    def of(count: int) -> dict[str, Any]:
        runs = [FAMILIES[family](FP64) for family in wanted[count]]
        found = trained_by_workers(count, runs, store_8, tmp_path_factory.mktemp("workers"))
        return dict(zip(wanted[count], found, strict=True))

    return cache(of)


# Training


QUICK = {2: ("vq_vae",), 3: ("latent_autoencoder", "flow")}


@pytest.mark.parametrize(
    ("count", "family"),
    [
        pytest.param(count, family, marks=[] if family in QUICK[count] else [pytest.mark.slow])
        for count in QUICK
        for family in FAMILIES
    ],
)
def test_workers_do_not_change_the_result(by_workers, state_of, count: int, family: str) -> None:
    found = by_workers(count)[family]
    assert largest_difference(found, weights(state_of(family, FP64))) < 1e-9


@some_families("vq_vae", "latent_autoencoder")
def test_micro_batches_do_not_change_the_result(state_of, family: str) -> None:
    quarter = state_of(family, FP64, "training.micro_batch_size=6")
    assert largest_difference(weights(quarter), weights(state_of(family, FP64))) < 1e-9


@every_family
def test_training_moves_every_weight_and_every_own_module(state_of, family: str) -> None:
    """Without this, the two tests above would also pass for a run that stands still."""
    this = FAMILIES[family](FP64)
    objective, state = build_objective(this), state_of(family, FP64)
    before, after = weights(State.build(this, objective, World())), weights(state)
    for name in {name for phase in objective.phases() for name in phase.updates}:
        moved = {
            key: float((now - before[name][key]).abs().max()) for key, now in after[name].items()
        }
        for key, _ in state.networks[name].named_parameters():
            assert moved[key] > 1e-3, f"{name}.{key} moved by {moved[key]}"
        for path, module in state.networks[name].named_modules():
            own = [f"{path}.{key}" if path else key for key in module.state_dict()]
            if isinstance(module, PhaseModule) and own:
                assert max(moved[key] for key in own) > 0, f"{name}: {own} stood still"


@every_family
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    store_8, state_of, tmp_path: Path, family: str
) -> None:
    this = FAMILIES[family]()
    objective = build_objective(this)
    stepped(this, objective, store_8, 7)[0].save(tmp_path, this)
    resumed = State.build(this, objective, World())
    resumed.load(tmp_path)
    assert resumed.step == 7
    stepped(this, objective, store_8, 13, resumed)
    assert_same(resumed, state_of(family))


def assert_same(ours: State, theirs: State) -> None:
    """Bit for bit: networks, own modules, averages, moments."""
    assert largest_difference(weights(ours), weights(theirs)) == 0
    moments, expected = ours.moments(), theirs.moments()
    assert moments.keys() == expected.keys()
    assert all(torch.equal(moments[name], expected[name]) for name in expected)


# A step as a program


@every_family
def test_a_replayed_step_is_the_step(store_8, monkeypatch, family: str) -> None:
    """Over three blocks of noise. Models as small as these would have all their noise in one."""
    monkeypatch.setattr(Tape, "length_for", staticmethod(lambda specs, images: 20))
    this = FAMILIES[family]()
    data = batches(this, build_objective(this), store_8, 0, STEPS)
    (ours, reported), (theirs, expected) = replayed(this, data), eager(this, data)
    assert_same(ours, theirs)
    assert reported == expected


@every_family
def test_a_step_reads_no_number(family: str) -> None:
    runs_on_meta(FAMILIES[family](), steps=12)


@every_family
def test_a_run_has_a_handful_of_programs(store_8, family: str) -> None:
    this = FAMILIES[family]()
    objective = build_objective(this)
    recorded: list[Program] = []

    def record(program: Program) -> Program:
        recorded.append(program)
        return lambda images, labels: None  # the host alone decides which program is due

    state = State.build(this, objective, World())
    step = Step(this, objective, state, World(), Meter(24, World()), record)
    ((images, labels),) = batches(this, objective, store_8, 0, 1)
    for _ in range(STEPS):
        step(images, labels)
    assert state.step == STEPS
    assert 1 <= len(recorded) <= 6


# What comes out


@pytest.fixture(scope="module")
def run_of(state_of, tmp_path_factory) -> Callable[[str], Path]:
    """A checkpoint of a family."""

    def of(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        state_of(family).save(folder, FAMILIES[family]())
        return folder

    return cache(of)


SAMPLING = """
import sys
sys.modules["ray"] = None
import torch
import ray_gen
found = {}
for family, folder in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        pipeline = ray_gen.load(folder)
        found[family] = [pipeline.sample(4, seed=seed) for seed in (0, 0, 1)]
    except Exception as error:
        found[family] = repr(error)
torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def sampled(run_of, tmp_path_factory, request) -> dict[str, list[Tensor]]:
    """Samples with the seeds 0, 0 and 1 by family, drawn in one process that has no ray."""
    asked = [
        item.callspec.params["family"]
        for item in request.session.items
        if getattr(item, "function", None) is test_samples_are_drawn_without_ray
    ]
    file = tmp_path_factory.mktemp("samples") / "samples.pt"
    folders = [part for family in asked for part in (family, str(run_of(family)))]
    subprocess.run(
        [sys.executable, "-c", SAMPLING, str(file), *folders],
        check=True,
        cwd=HERE.parents[1],  # where `tests` is
    )
    return torch.load(file, weights_only=True)


@every_family
def test_samples_are_drawn_without_ray(sampled, family: str) -> None:
    assert not isinstance(sampled[family], str), sampled[family]
    first, again, other = sampled[family]
    assert first.shape == (4, 1, 8, 8)
    assert 0.0 <= float(first.min()) < float(first.max()) <= 1.0
    assert torch.equal(again, first)
    assert not torch.equal(other, first)


@some_families("flow")
def test_an_export_is_the_run(run_of, tmp_path: Path, family: str) -> None:
    written = ray_gen.export(run_of(family), tmp_path / "out")
    files = {file.name: file.difference for file in written.files}
    assert {Path(name).suffix for name in files} >= {".safetensors", ".pt2", ".onnx"}
    assert max(difference or 0.0 for difference in files.values()) < 1e-5
    again = ray_gen.load(tmp_path / "out")
    assert torch.equal(again.sample(4, seed=0), ray_gen.load(run_of(family)).sample(4, seed=0))


# What they are written with

OBJECTIVE_LINES, OTHER_LINES = 80, 120
FILES = sorted(
    path for path in HERE.glob("*.py") if not path.name.startswith(("test_", "__", "experiments"))
)
MAY_IMPORT = {
    "ray_gen.core",
    "ray_gen.losses",
    "ray_gen.augment",
    "ray_gen.experiment",
    "ray_gen.experiment.schedules",
    "tests.helpers",
}


def imported(tree: ast.AST) -> list[str]:
    """Every module that is imported anywhere, by its full name."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            packages = {"ray_gen", "tests", "tests.proofs"}
            found += (
                [f"{module}.{alias.name}" for alias in node.names]
                if module in packages
                else [module]
            )
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_model_is_short_and_is_written_against_core_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= (OBJECTIVE_LINES if path.stem in FAMILIES else OTHER_LINES)
    for module in imported(ast.parse(text)):
        top = module.partition(".")[0]
        own = module.startswith("tests.proofs.") and "test_" not in module
        known = module in MAY_IMPORT or own or top in {"torch", "pydantic"}
        assert known or top in sys.stdlib_module_names, f"{path.name} imports {module}"


def test_every_model_has_its_file() -> None:
    assert FAMILIES.keys() <= {path.stem for path in FILES}
