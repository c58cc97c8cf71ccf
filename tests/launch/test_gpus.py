"""What is said of GPUs that Ray gives out and torch does not see."""

from __future__ import annotations

import pytest
import torch

from ray_gen.launch.gpus import missing


def has(monkeypatch: pytest.MonkeyPatch, seen: int) -> None:
    """A machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(1))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_driver_is_asked_why_there_is_no_gpu() -> None:
    told = missing(1)
    assert told is not None and torch.__version__ in told
    assert ("NVIDIA" in told) == (torch.version.cuda is not None)


def test_a_node_with_fewer_gpus_than_ray_gives_out(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 2)
    assert missing(2) is None
    told = missing(4)
    assert told is not None and told.endswith("sees only 2 of 4 GPUs")


def test_a_process_sees_one_of_the_parts_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-aaaa,MIG-bbbb")
    assert missing(2) is None


def test_a_torch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    told = missing(1)
    assert told is not None and told.endswith("is built without CUDA")
