"""Ray's private names: one file has them, and each has a fall-back."""

from __future__ import annotations

import ast
import importlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from packaging.version import Version

from ray_gen.errors import Refused
from ray_gen.launch import cluster, ray_private
from ray_gen.launch.ray_private import NAMES

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "ray_gen").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
THE_ONE = ROOT / "ray_gen/launch/ray_private.py"

# Without an underscore, but not in Ray's documentation.
UNDOCUMENTED = ("ray.train.v2", "ray.autoscaler.v2", "ray.core")


def is_private(name: str) -> bool:
    """Whether a dotted name is one of Ray's private modules, or something in one."""
    first, *rest = name.split(".")
    return first == "ray" and (
        any(part.startswith("_") and not part.startswith("__") for part in rest)
        or any(name == known or name.startswith(f"{known}.") for known in UNDOCUMENTED)
    )


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute of an attribute of a name; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def private_names(text: str) -> set[str]:
    """The private names of Ray in a file: imports, attributes, strings that name one, and in a file
    that imports Ray the private attributes that it does not define itself."""
    imported: set[str] = set()
    found: set[str] = set()
    used: set[str] = set()
    own: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                imported |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                imported |= {f"{module}.{alias.name}" for alias in node.names}
            case ast.Attribute(ctx=ast.Store(), value=ast.Name(id="self")):
                own.add(node.attr)
            case ast.Attribute():
                found.add(dotted(node))
                if dotted(node.value) not in imported:  # os._exit is no attribute of Ray's objects
                    used.add(node.attr)
            case ast.FunctionDef() | ast.ClassDef():
                own.add(node.name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                own.add(name)
            case ast.Constant(value=str(value)) if " " not in value:
                found.add(value)
    names = {name for name in imported | found if is_private(name)}
    if any(name.split(".")[0] == "ray" for name in imported):
        foreign = {name for name in used - own if name.startswith("_")}
        names |= {name for name in foreign if not name.startswith("__")}
    return names


def test_one_file_has_them_all() -> None:
    names = {path: private_names(path.read_text()) for path in FILES}
    assert names.pop(THE_ONE) == set(NAMES)
    assert {path: found for path, found in names.items() if found} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import ray._private.worker",
        "from ray._private import utils",
        "from ray import _raylet",
        "from ray.train.v2._internal.exceptions import RayTrainError",
        "from ray.autoscaler.v2.sdk import get_cluster_status",
        "from ray.autoscaler import v2",
        "import ray\nray._private.worker.x = 1",
        "import ray\ndef f():\n    return ray.train.v2.api",
        "import importlib\nimportlib.import_module('ray._private.utils')",
        "from ray.tune import Callback\nclass A(Callback):\n    def f(self):\n        self._name",
    ],
)
def test_the_check_sees(text: str) -> None:
    assert private_names(text)


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_ray_has_them(name: str) -> None:
    """Where a new release fails here, the file has to learn its new names."""
    if name == ray_private.NOTICE and Version(ray.__version__) < Version("2.57"):
        pytest.skip("this Ray tells workers nothing")
    assert ray_private.find(name) is not None


Hide = Callable[[str], None]


@pytest.fixture(params=["module", "attribute"])
def hide(request, monkeypatch) -> Hide:
    """Takes a name away, alone or with its module."""

    def of(name: str) -> None:
        module, _, attribute = name.rpartition(".")
        try:
            found = importlib.import_module(module)
        except ImportError:
            return
        if request.param == "module":
            monkeypatch.setitem(sys.modules, module, None)
        else:
            monkeypatch.delattr(found, attribute, raising=False)

    return of


def deaths_are_printed(monkeypatch, tmp_path: Path) -> None:
    ray_private.silence_deaths()


def the_documented_file_is_read(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_private.address_of_started_cluster() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert ray_private.address_of_started_cluster() == "10.0.0.1:6379"
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert ray_private.address_of_started_cluster() == "10.0.0.1:6379"


def nodes_are_waited_for_blindly(monkeypatch, tmp_path: Path) -> None:
    """With one sentence: for nodes that come, and ten minutes for those that never do."""
    assert ray_private.coming_nodes("there:6379") is None
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(cluster, "running_cluster", lambda: "there:6379")
    monkeypatch.setattr(cluster, "request_resources", lambda bundles: None)
    context = SimpleNamespace(gcs_address="there:6379")
    monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: context)
    sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)  # noqa: E731
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))

    def waited(until: float) -> tuple[list[str], bool]:
        clock.now, said = 0.0, []

        def look() -> bool:
            if clock.now < until:
                raise Refused("no room")
            return True

        try:
            return said, cluster.when_there(look, [{"CPU": 1.0}], said.append)
        except Refused:
            return said, False

    sentence = (
        f"Ray {ray.__version__} does not tell whether nodes are on their way: waiting up to 10 "
        "minutes for room"
    )
    assert waited(until=300) == ([sentence], True)
    assert waited(until=1e9) == ([sentence], False)
    assert 600 <= clock.now <= 605


def notices_are_missed(monkeypatch, tmp_path: Path) -> None:
    """And a run on a cluster says so."""
    assert not ray_private.hears_notices()
    monkeypatch.setattr(cluster, "running_cluster", lambda: None)
    assert cluster.missed_on_a_cluster() == []
    monkeypatch.setattr(cluster, "running_cluster", lambda: "there:6379")
    (sentence,) = cluster.missed_on_a_cluster()
    assert sentence == (
        f"Ray {ray.__version__} does not tell workers that a machine will be taken away: such a "
        "notice saves no checkpoint"
    )


def workers_hear_none(monkeypatch, tmp_path: Path) -> None:
    assert ray_private.preemption_notice() is None
    notices_are_missed(monkeypatch, tmp_path)


def the_file_has_its_old_name(monkeypatch, tmp_path: Path) -> None:
    assert ray_private.snapshot_file() == "checkpoint_manager_snapshot.json"


def the_title_is_the_old_one(monkeypatch, tmp_path: Path) -> None:
    assert ray_private.is_train_worker(b"ray::RayTrainWorker.execute")
    assert not ray_private.is_train_worker(b"ray::IDLE")


def rays_handler_answers_while_it_starts(monkeypatch, tmp_path: Path) -> None:
    """And no longer."""
    before = signal.getsignal(signal.SIGTERM)
    with ray_private.own_sigterm_handler():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before


def ray_ends_its_processes_itself(monkeypatch, tmp_path: Path) -> None:
    ended: list[str] = []
    with ray_private.ended_by(lambda: ended.append("by us")):
        pass
    assert not ended


WITHOUT: dict[str, Callable[[Any, Path], None]] = {
    ray_private.PRINT: deaths_are_printed,
    ray_private.ADDRESS: the_documented_file_is_read,
    ray_private.STATUS: nodes_are_waited_for_blindly,
    ray_private.CONTEXT: workers_hear_none,
    ray_private.CONTEXT_CLASS: notices_are_missed,
    ray_private.NOTICE: notices_are_missed,
    ray_private.SNAPSHOT: the_file_has_its_old_name,
    ray_private.WORKER: the_title_is_the_old_one,
    ray_private.NODE: ray_ends_its_processes_itself,
    ray_private.SIGTERM_HANDLER: rays_handler_answers_while_it_starts,
}


@pytest.mark.parametrize("name", NAMES)
def test_without_a_name(name: str, hide: Hide, monkeypatch, tmp_path: Path) -> None:
    hide(name)
    assert ray_private.find(name) is None
    WITHOUT[name](monkeypatch, tmp_path)


@pytest.mark.parametrize("changed", [lambda: None, lambda *given: SimpleNamespace()])
def test_a_name_that_means_something_else(changed, monkeypatch, tmp_path: Path) -> None:
    """It has other arguments, or returns something else."""
    monkeypatch.setattr(ray_private, "find", lambda name: changed)
    assert ray_private.coming_nodes("there:6379") is None
    assert ray_private.preemption_notice() is None
    assert not ray_private.hears_notices()


def test_ray_leaves_the_handler_of_sigterm(monkeypatch, tmp_path: Path) -> None:
    module, _, attribute = ray_private.SIGTERM_HANDLER.rpartition(".")
    own = getattr(importlib.import_module(module), attribute)
    before = signal.getsignal(signal.SIGTERM)
    with ray_private.own_sigterm_handler():
        getattr(importlib.import_module(module), attribute)(signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == before
    assert getattr(importlib.import_module(module), attribute) is own
    rays_handler_answers_while_it_starts(monkeypatch, tmp_path)


def test_a_job_without_the_working_directory(monkeypatch) -> None:
    assert ray_private.job_with(["/a"]) is not None
    monkeypatch.setattr(ray_private, "JobConfig", lambda: None)
    assert ray_private.job_with(["/a"]) is None


def test_an_address_by_other_arguments(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray_private, "find", lambda name: lambda needed: None)
    the_documented_file_is_read(monkeypatch, tmp_path)


def test_with_the_names(monkeypatch, tmp_path: Path) -> None:
    module, _, attribute = ray_private.PRINT.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), attribute, print)
    ray_private.silence_deaths()
    assert getattr(importlib.import_module(module), attribute) is not print
    the_documented_file_is_read(monkeypatch, tmp_path)
    context = importlib.import_module(ray_private.CONTEXT.rpartition(".")[0])
    if not ray_private.hears_notices():
        assert Version(ray.__version__) < Version("2.58")
        return
    heard = ray_private.find(ray_private.NOTICE)()
    monkeypatch.setattr(
        context, "get_train_context", lambda: SimpleNamespace(preemption_context=heard)
    )
    assert ray_private.preemption_notice() is None
    heard.preemption_info = ray.train.PreemptionInfo(
        deadline_ms=7, preempted_node_to_ranks={"a": [3], "b": [1, 2]}
    )
    assert ray_private.preemption_notice() == (7, (1, 2, 3))


IMPORTS = """
import importlib, pkgutil, sys
import ray, ray.train, ray.train.torch, ray.tune, ray.tune.search.optuna, ray.autoscaler.sdk
sys.modules.update(dict.fromkeys({modules!r}))
import ray_gen.launch
for found in pkgutil.walk_packages(ray_gen.launch.__path__, "ray_gen.launch."):
    importlib.import_module(found.name)
"""


def test_every_command_can_be_imported_without_them() -> None:
    modules = sorted({name.rpartition(".")[0] for name in NAMES})
    subprocess.run([sys.executable, "-c", IMPORTS.format(modules=modules)], check=True, cwd=ROOT)
