"""What tests share: small data, a Ray apart from others, and how processes divide the tests."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

# Before torch is imported: threads of several processes that share two cores spin (37 s become 4
# minutes).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before Ray is imported: no test may find a Ray that somebody else runs on this machine. Reports of
# Ray workers need not wait 0.5 s. And a fit needs a process less: no machine is taken away here.
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"

import hypothesis
import pytest
import torch

from ray_gen import storage
from tests import reporter
from tests.helpers import random_store
from tests.s3 import S3

ON_RAY = "tests/integration/"
"""All of these run in one process, since they share one Ray."""


@pytest.hookimpl(trylast=True)  # after pytest's own reporter
def pytest_configure(config: pytest.Config) -> None:
    reporter.pytest_configure(config)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Several processes, unless `-n` says how many. None for single files: they would wait longer
    for another process than it helps."""
    option = config.option
    may_divide = hasattr(option, "numprocesses") and not hasattr(config, "workerinput")
    if not may_divide:
        return
    option.loadscopereorder = False
    files = all(".py" in argument for argument in config.args)
    if option.numprocesses is None and not option.usepdb and not files:
        option.numprocesses = max(2, min(4, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses Ray comes first: it takes longest, and half of it is waiting."""
    items.sort(key=lambda item: not item.nodeid.startswith(ON_RAY))


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A process takes whole files, since their tests share what was trained for them."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ON_RAY if nodeid.startswith(ON_RAY) else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _ray_of_our_own() -> Iterator[None]:
    """Ray looks for a running cluster, and leaves its own traces, in a folder of this session."""
    # A short path: it holds sockets.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        yield


# No time limit: a loaded machine sometimes takes longer than hypothesis' 200 ms.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _no_torch_state_leaks() -> None:
    """Every test begins with the same global generator of torch, whatever another test did."""
    # `torch.manual_seed` also keeps a traceback for each kind of device that is not there.
    torch.default_generator.manual_seed(0)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def store_8():
    """96 random grey images of 8 x 8 with labels 0..9, 24 of them held out."""
    return random_store(8)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Gives a script of jobs/ as a module, with its neighbours importable."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent / "jobs")
    return importlib.import_module


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """An S3 server, which nothing reaches without `s3`."""
    with S3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A healthy S3 server that s3:// reaches, and a short patience with it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    s3_server.heal()
    yield s3_server
    s3_server.heal()
