"""Statistics of reference images on disk, for later evaluations.

An entry is a safetensors file. Its metadata hold its whole key. It gets its name only when it is
complete. An entry that is not exactly as expected is measured again and replaced. Nothing is
unpickled. Only rank 0 reads and writes. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ray_gen.evaluation.extractors import Extractor
from ray_gen.evaluation.images import Images

FORMAT = 1
"""Part of every key. Raise it when a change of the code alters the statistics of equal images."""

Shape = tuple[int, ...]


class ReferenceCache:
    """Moments and features of one set of images by one extractor: one file for each of the two."""

    def __init__(self, folder: Path | None, images: Images, extractor: Extractor) -> None:
        """folder: None keeps nothing. Images or an extractor without a digest keep nothing, too."""
        known = images.digest is not None and extractor.digest is not None
        self._folder = folder.expanduser() if folder is not None and known else None
        self._key = {
            "format": str(FORMAT),
            "images": str(images.digest),
            "count": str(len(images)),
            "extractor": extractor.name,
            "weights": str(extractor.digest),
            "resizing": extractor.resizing,
        }

    def read(self, expected: Mapping[str, Shape]) -> dict[str, Tensor] | None:
        """Tensors of these names and shapes. None if one is missing, different or not finite."""
        if self._folder is None:
            return None
        found: dict[str, Tensor] = {}
        for kind, names in _kinds(expected):
            part = _read(self._path(kind), self._metadata(kind))
            if part is None or part.keys() != set(names):
                return None
            found |= part
        same = all(
            found[name].shape == shape
            and found[name].dtype == (torch.float32 if name == "features" else torch.float64)
            and bool(found[name].isfinite().all())
            for name, shape in expected.items()
        )
        return found if same else None

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors for later evaluations. A disk error gives only a warning."""
        if self._folder is None:
            return
        for kind, names in _kinds(tensors):
            path = self._path(kind)
            partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
            part = {name: tensors[name].cpu().contiguous() for name in names}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(part, partial, metadata=self._metadata(kind))
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
            except (OSError, SafetensorError) as error:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                warnings.warn(f"{path}: reference statistics were not kept: {error}", stacklevel=2)
                return

    def _metadata(self, kind: str) -> dict[str, str]:
        return {**self._key, "kind": kind}

    def _path(self, kind: str) -> Path:
        assert self._folder is not None
        written = json.dumps(self._metadata(kind), sort_keys=True).encode()
        return self._folder / f"{kind}-{hashlib.sha256(written).hexdigest()[:32]}.safetensors"


def _kinds(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Names grouped by file. FID reads no features: they are 400 MB for 50,000 images with 2,048
    numbers each."""
    features = [name for name in names if name == "features"]
    moments = [name for name in names if name != "features"]
    return [(kind, part) for kind, part in (("features", features), ("moments", moments)) if part]


def _read(path: Path, metadata: Mapping[str, str]) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore
            if file.metadata() != metadata:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
