"""Weights that others have trained: downloaded once per node, and read as nothing but tensors.

Errors name `field`, the setting that can name another file.
"""

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

_DIGITS = 8
"""Of a digest in a file's name, at least."""
_NAMED = 3
"""Number of tensors that a message names."""

# Errors of the network, name server, firewall and disk. A wrong digest is a RuntimeError.
_NOT_DOWNLOADED = (OSError, RuntimeError, ValueError)


def place_of(url: str, name: str | None = None) -> Path:
    """Where the file of a URL lies when it was downloaded: in torch.hub's folder. name: of the
    file. None: as in the URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / (name or Path(urlparse(url).path).name)


def downloaded(url: str, field: str, name: str | None = None, instead: str = "") -> Path:
    """The local file of a URL (`place_of`). If it is missing, one process per node downloads it.

    instead: what needs no such file, for the message. If the URL's file name holds a digest, as
    torch.hub's do, it is checked. Raises Refused.
    """
    path = place_of(url, name)
    if path.exists():
        return path
    digest = _published_digest(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                torch.hub.download_url_to_file(url, str(path), digest, progress=False)
        finally:
            os.close(lock)
    except _NOT_DOWNLOADED as error:
        raise Refused(
            f"{field}: {url} could not be downloaded ({getattr(error, 'reason', error)}); download "
            f"it on another machine and set {field} to its path{instead}"
        ) from error
    return path


def is_published(path: Path, url: str) -> bool:
    """Whether a file is the one that a URL publishes, whose name there holds the beginning of its
    SHA-256, as torchvision's do."""
    digest = _published_digest(url)
    if digest is None:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(digest)


def _published_digest(url: str) -> str | None:
    """The beginning of a SHA-256 in the name of a URL's file: `vgg16-397923af.pth`. A shorter
    number, as in `patch14-336.bin`, is none."""
    found = torch.hub.HASH_REGEX.search(Path(urlparse(url).path).name)
    return found[1] if found is not None and len(found[1]) >= _DIGITS else None


def read_weights(path: Path, field: str) -> dict[str, Tensor]:
    """Tensors by name, from a .safetensors file or from a state dict that torch.save wrote.

    Nothing in the file is ever run: torch's `weights_only` knows only the classes of tensors.
    Raises Refused if the file holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Refused(f"{field}: there is no file {path}") from None
    except pickle.UnpicklingError:  # not torch's message: it says how to run the file anyway
        raise Refused(
            f"{field}: {path} is not a file of tensors only: it is damaged, or holds code that "
            "loading would run; give a state dict, as .safetensors or by torch.save"
        ) from None
    except Exception as error:  # other bytes can raise nearly any error
        why = str(error).partition("\n")[0] or type(error).__name__
        raise Refused(
            f"{field}: {path} is not a file of tensors only, or it is damaged ({why}); give a "
            "state dict, as .safetensors or by torch.save"
        ) from error
    if not isinstance(found, dict) or not found:
        raise Refused(
            f"{field}: {path} holds a {type(found).__name__} and not tensors by name; give a "
            "state dict"
        )
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise Refused(
                f"{field}: {path} holds a {type(tensor).__name__} as {name!r}; give only the state "
                "dict: tensors by name"
            )
    return found  # keeps torch.save's `_metadata`: the versions of modules


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The first 32 hex digits of the SHA-256 of names, types, shapes and bytes. So it does not
    depend on the file format."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()[:32]


def misfit(error: Exception, what: str, field: str) -> Refused:
    """The first complaint of `load_state_dict` as Refused. what: the network, for the message."""
    found = ([line.strip() for line in str(error).splitlines()][1:2] or [str(error)])[0]
    names = found.split(", ")  # often of hundreds of tensors
    more = len(names) - _NAMED
    told = ", ".join(names[:_NAMED]) + f" and {more} more" if more > 0 else found.rstrip(" .")
    return Refused(f"{field}: the file does not fit {what}: {told}; give the file of its weights")
