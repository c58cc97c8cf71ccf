"""Weights are read only as tensors. Without them, the message says what to do."""

from __future__ import annotations

import os
import pickle
import urllib.error
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ray_gen.errors import Refused
from ray_gen.weights import digest_of, downloaded, read_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}
FIELD = "evaluation.features.weights"
URL = "https://example.org/some/net-0123456789.pth"


class Runs:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("wrapped", [False, True])
def test_nothing_in_a_file_is_run(tmp_path: Path, wrapped: bool) -> None:
    path, trace = tmp_path / "net.pth", tmp_path / "ran"
    if wrapped:
        torch.save({**TENSORS, "extra": Runs(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Runs(trace)))
    with pytest.raises(Refused, match="not a file of tensors only") as refused:
        read_weights(path, FIELD)
    assert not trace.exists()
    for advice in ("weights_only", "load failed", "trust"):  # torch's advice on how to run the file
        assert advice not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**TENSORS, "epoch": 3}, "holds a int as 'epoch'"),
        ({"state_dict": TENSORS}, "holds a dict as 'state_dict'"),
        ([torch.zeros(2)], "holds a list"),
        ({}, "holds a dict"),
    ],
)
def test_only_tensors_by_name_are_taken(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(Refused, match=words):
        read_weights(tmp_path / "net.pth", FIELD)


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "net.pth")
    whole = (tmp_path / "net.pth").read_bytes()
    for name in ("half.pth", "half.safetensors"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(Refused, match=f"evaluation.features.weights: .*{name}"):
            read_weights(tmp_path / name, FIELD)
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(Refused, match=f"there is no file .*{name}"):
            read_weights(tmp_path / name, FIELD)


def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    torch.save(OrderedDict(TENSORS), tmp_path / "net.pth")
    save_file(TENSORS, tmp_path / "net.safetensors")
    found = [read_weights(tmp_path / name, FIELD) for name in ("net.pth", "net.safetensors")]
    assert digest_of(found[0]) == digest_of(found[1]) == digest_of(TENSORS)
    for changed in (
        {**TENSORS, "a.count": torch.tensor(4)},
        {**TENSORS, "a.weight": TENSORS["a.weight"].view(3, 2)},
        {"b.weight": TENSORS["a.weight"], "a.count": TENSORS["a.count"]},
    ):
        assert digest_of(changed) != digest_of(TENSORS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), RuntimeError("invalid hash value"), TimeoutError("slow")],
)
def test_without_a_network_the_message_says_what_to_do(
    hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **others: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(Refused) as refused:
        downloaded(URL, FIELD)
    text = str(refused.value)
    for part in (URL, FIELD, "to its path", str(getattr(error, "reason", error))[:5]):
        assert part in text
    assert text.count("\n") == 0 and "<urlopen error" not in text


def test_a_file_is_downloaded_once_and_its_digest_checked(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(url: str, path: str, digest: str, progress: bool) -> None:
        asked.append((url, digest))
        Path(path).write_bytes(b"content")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert downloaded(URL, FIELD) == downloaded(URL, FIELD) == hub / "net-0123456789.pth"
    assert asked == [(URL, "0123456789")]


def test_a_number_in_a_name_is_no_digest(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fetch(url: str, path: str, digest: str | None, progress: bool) -> None:
        asked[Path(path).name] = digest
        Path(path).write_bytes(b"content")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    downloaded("https://example.org/clip/pytorch_model.bin", FIELD, "clip-patch14-336.bin")
    downloaded("https://example.org/dinov2_vitl14_pretrain.pth", FIELD)
    downloaded("https://example.org/net-336.bin", FIELD)
    assert asked == {
        "clip-patch14-336.bin": None,
        "dinov2_vitl14_pretrain.pth": None,
        "net-336.bin": None,
    }
