"""What tests share: small data in memory, and a torch whose global generator nobody relies on."""

from __future__ import annotations

import os

# Before torch is imported: threads of several processes that share two cores spin (37 s become 4
# minutes).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from tests.helpers import random_store

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
