"""The files of a checkpoint, and the manifest that describes them.

The manifest is written last: a folder that has one is a whole checkpoint. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_gen.errors import Refused
from ray_gen.storage import Folder

FORMAT = 1
MANIFEST = "manifest.json"
NETWORKS = "networks.safetensors"
EMA = "ema.safetensors"
OPTIMIZERS = "optimizers.safetensors"
EXPERIMENT = "experiment.yaml"
FILES = (NETWORKS, EMA, OPTIMIZERS, EXPERIMENT)
"""The files of a checkpoint that training saved."""
OF_A_MODEL = (NETWORKS, EMA, EXPERIMENT)
"""The files that a trained model needs. The optimisers' is often the largest. A checkpoint that
`ray-gen ema` made has only the last two."""
COPIES = "copies.safetensors"
"""In a snapshot of averages: the tensors that are not averaged."""


class CheckpointError(Refused):
    """A checkpoint that cannot be used. The message gives its path, the reason and the remedy."""


def profile_file(sigma: str) -> str:
    """In a snapshot of averages: the file of the average of this width."""
    return f"profile-{sigma}.safetensors"


@dataclass(frozen=True)
class FileFacts:
    """The size of a file in bytes, and its SHA-256 in hexadecimal digits."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        """The present facts of a file."""
        return cls(path.stat().st_size, _digest(path))


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's own description. Snapshots of averages have one too."""

    step: int
    """Steps done."""
    images: int
    """Images seen."""
    settled: Mapping[str, float]
    """The memory of the objective's stopping rule: see `ray_gen.core.Settles`."""
    metrics: Mapping[str, float]
    """Metrics of the report that came with the checkpoint."""
    files: Mapping[str, FileFacts]
    """By file name."""

    @classmethod
    def parsed(cls, text: str, where: str) -> Manifest:
        """A manifest from its text. where: its path, for the error.

        Raises CheckpointError if the text is damaged or has another format.
        """
        try:
            given = json.loads(text)
            written_as = given["format"]
            if written_as == FORMAT:
                return cls._from_json(given)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CheckpointError(
                f"{where}: is damaged; use another checkpoint of the run"
            ) from None
        raise CheckpointError(
            f"{where}: has format {written_as}, but this version of ray_gen reads {FORMAT}; use "
            "the version that wrote it"
        )

    @classmethod
    def _from_json(cls, given: Mapping[str, Any]) -> Manifest:
        files = {name: FileFacts(f["bytes"], f["sha256"]) for name, f in given["files"].items()}
        numbers = (given["step"], given["images"], *(facts.bytes for facts in files.values()))
        if (
            not files
            or any("/" in name for name in files)
            or any(type(number) is not int or number < 0 for number in numbers)
            or any(type(facts.sha256) is not str for facts in files.values())
            or any(type(given[name]) is not dict for name in ("settled", "metrics"))
        ):
            raise ValueError
        return cls(given["step"], given["images"], given["settled"], given["metrics"], files)

    @classmethod
    def unchecked(cls, checkpoint: Folder) -> Manifest:
        """The manifest of a checkpoint, local or behind a URI. Does not look at its files.

        Raises CheckpointError if it is damaged, FileNotFoundError if there is none.
        """
        return cls.parsed(checkpoint.read_text(MANIFEST), (checkpoint / MANIFEST).location)

    @classmethod
    def checked(cls, folder: Path, files: Collection[str] = FILES) -> Manifest:
        """The manifest of a local checkpoint. Raises CheckpointError unless each of these files
        exists and has the size that the manifest gives."""
        path = folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder}: is no complete checkpoint: {MANIFEST} is missing (it is written last); "
                "use another checkpoint"
            ) from None
        manifest = cls.parsed(text, str(path))
        sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        manifest.check_sizes(sizes, str(folder), files)
        return manifest

    @classmethod
    def of_weights(cls, folder: Path, weights: str) -> Manifest:
        """The manifest of a local checkpoint whose weights are read from this file. Other files of
        a model are checked too, if the manifest has them."""
        manifest = cls.checked(folder, (weights, EXPERIMENT))
        return cls.checked(folder, [name for name in OF_A_MODEL if name in manifest.files])

    @classmethod
    def verified(cls, folder: Path) -> Manifest:
        """As `of`, but also raises CheckpointError if any byte of a file has changed."""
        manifest = cls.checked(folder)
        for name in manifest.files:
            manifest.check_digest(folder / name)
        return manifest

    def check_sizes(
        self, sizes: Mapping[str, int], where: str, files: Collection[str] = FILES
    ) -> None:
        """Raises CheckpointError if one of these files is missing or has another size. sizes: in
        bytes, of the files that exist."""
        for name in files:
            if name not in self.files:
                raise CheckpointError(
                    f"{where}: holds no {name}, only {', '.join(self.files)}; use a checkpoint "
                    "that training saved"
                )
            facts, size = self.files[name], sizes.get(name)
            if size != facts.bytes:
                found = (
                    "is missing" if size is None else f"has {size} bytes instead of {facts.bytes}"
                )
                raise CheckpointError(f"{where}/{name}: {found}; use another checkpoint of the run")

    def check_digest(self, path: Path) -> None:
        """Raises CheckpointError if this file of the checkpoint has changed."""
        if _digest(path) != self.files[path.name].sha256:
            raise CheckpointError(
                f"{path}: is damaged (its SHA-256 is not the manifest's); use another checkpoint"
            )

    def write(self, folder: Path) -> None:
        """Write the manifest. From now on the folder is a whole checkpoint."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2)
        (folder / MANIFEST).write_text(text, encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
