"""Weights of extractors: fetched once a node, read as tensors and nothing else."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor

from ray_gen.errors import Refused

FIELD = "evaluation.features.weights"

# What a network, its name server, a firewall and a disk raise, a wrong digest (RuntimeError) too.
_NOT_FETCHED = (OSError, RuntimeError, ValueError)


def fetched(url: str) -> Path:
    """The file behind a URL: torch.hub's own copy, or else downloaded there, by one process a node.

    A digest in the file's name, as torch.hub has them, is checked.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        return path
    digest = torch.hub.HASH_REGEX.search(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                prefix = digest[1] if digest else None
                torch.hub.download_url_to_file(url, str(path), prefix, progress=False)
        finally:
            os.close(lock)
    except _NOT_FETCHED as error:
        raise Refused(
            f"{FIELD}: {url} could not be fetched ({error}); fetch it on another machine and set "
            f"{FIELD} to its path"
        ) from error
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from a .safetensors file or a state dict that torch.save wrote.

    A file that holds anything else is refused, and nothing in it is ever run: `weights_only` knows
    no classes but those of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Refused(f"{FIELD}: there is no file {path}") from None
    except pickle.UnpicklingError:  # torch's words say how to run it all the same: not repeated
        raise Refused(
            f"{FIELD}: {path} is not a file of tensors only: it holds something that reading would "
            "run, or is damaged; give a state dict, as .safetensors or by "
            "torch.save"
        ) from None
    except Exception as error:  # bytes that are no file of tensors raise nearly anything
        why = str(error).partition("\n")[0] or type(error).__name__
        raise Refused(
            f"{FIELD}: {path} is not a file of tensors only, or it is damaged ({why}); give a "
            "state dict, as .safetensors or by torch.save"
        ) from error
    if not isinstance(found, dict) or not found:
        raise Refused(f"{FIELD}: {path} holds a {type(found).__name__} and not tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise Refused(
                f"{FIELD}: {path} holds a {type(tensor).__name__} as {name!r}; give the state dict "
                "alone, tensors by name"
            )
    return found  # with the versions of modules that torch.save keeps beside the tensors


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (its first 32 digits) of names, types, shapes and bytes: the same for any format."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()[:32]


def misfit(error: Exception, what: str) -> Refused:
    """What `load_state_dict` has against weights, in a line."""
    found = [line.strip() for line in str(error).splitlines()][1:2] or [str(error)]
    return Refused(f"{FIELD}: the file is not of {what}: {found[0][:200]}")
