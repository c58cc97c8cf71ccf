"""What tests share: small data in memory, experiments from recipes, and groups of real processes."""

from __future__ import annotations

import os

# Before torch is imported: two threads at most, as several processes share a small machine.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch

from tests.helpers import random_store


@pytest.fixture(autouse=True)
def _no_torch_state_leaks() -> None:
    """Nothing that a test does may depend on torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def store_8():
    """96 random grey images of 8 x 8 with labels 0..9, 24 of them held out."""
    return random_store(8)
