"""What tests share: small data in memory, and a torch whose global generator nobody relies on."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before torch is imported: threads of several processes that share two cores spin (37 s become 4
# minutes).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from ray_gen import storage
from tests.helpers import random_store
from tests.s3 import S3

# A property is not a race: a loaded machine takes longer than hypothesis' 200 ms now and then.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _no_torch_state_leaks() -> None:
    """Nothing that a test does may depend on torch's global generator, or on what another set."""
    torch.manual_seed(0)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def store_8():
    """96 random grey images of 8 x 8 with labels 0..9, 24 of them held out."""
    return random_store(8)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3]:
    with S3() as server:
        yield server


@pytest.fixture
def s3(_s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A healthy S3 server that s3:// reaches, and a short patience with it."""
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    _s3_server.heal()
    storage._outages.clear()
    yield _s3_server
    _s3_server.heal()
