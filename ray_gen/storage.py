"""A folder that is local or anything that pyarrow reads and writes: s3://, gs://, hdfs://."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ray_gen.errors import Refused

DEFAULT = "~/ray_gen_runs"
VARIABLE = "RAY_GEN_STORAGE"


class StorageError(Refused):
    """A storage location that cannot be used, with its path and the remedy."""


def default_storage() -> str:
    """$RAY_GEN_STORAGE, else ~/ray_gen_runs; never the working directory, which a job loses."""
    return os.environ.get(VARIABLE) or DEFAULT


@dataclass(frozen=True)
class Folder:
    """A folder by its absolute path or URI."""

    location: str

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine (or a file system mounted on it)."""
        return "://" not in self.location

    @property
    def path(self) -> Path:
        """The path of a local folder."""
        assert self.is_local, self.location
        return Path(self.location)

    @property
    def name(self) -> str:
        """Its last part."""
        return PurePosixPath(self.location.partition("?")[0]).name

    def __truediv__(self, name: str) -> Folder:
        path, mark, query = self.location.partition("?")  # s3://bucket/runs?endpoint_override=...
        return Folder(f"{path.rstrip('/')}/{name}{mark}{query}")

    @property
    def parent(self) -> Folder:
        """The folder that holds it."""
        path, mark, query = self.location.partition("?")
        return Folder(f"{path.rstrip('/').rpartition('/')[0]}{mark}{query}")

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        """pyarrow's file system and the path in it."""
        from pyarrow import fs

        try:
            return fs.FileSystem.from_uri(self.location)
        except Exception as error:
            raise StorageError(f"{self.location}: cannot be reached: {error}") from error

    def read_text(self, name: str) -> str:
        """A small file. Raises FileNotFoundError."""
        if self.is_local:
            return (self.path / name).read_text(encoding="utf-8")
        system, path = self._remote
        with system.open_input_stream(f"{path}/{name}") as stream:
            return stream.read().decode()

    def write_text(self, name: str, text: str) -> None:
        """A small file; on a local disk whole or not at all."""
        if self.is_local:
            self.path.mkdir(parents=True, exist_ok=True)
            partial = self.path / f".{name}.partial"
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(self.path / name)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
            return
        system, path = self._remote
        system.create_dir(path)  # nothing to an object store, needed by a file system
        with system.open_output_stream(f"{path}/{name}") as stream:
            stream.write(text.encode())

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder is there."""
        if self.is_local:
            return (self.path / name).exists()
        from pyarrow import fs

        system, path = self._remote
        (info,) = system.get_file_info([f"{path}/{name}".rstrip("/")])
        return info.type != fs.FileType.NotFound

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; none if it does not exist."""
        if self.is_local:
            return sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        from pyarrow import fs

        system, path = self._remote
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def remove(self, name: str) -> None:
        """Delete a file or folder in it, if it is there."""
        if self.is_local:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
            return
        from pyarrow import fs

        system, path = self._remote
        (info,) = system.get_file_info([f"{path}/{name}"])
        if info.type == fs.FileType.Directory:
            system.delete_dir(f"{path}/{name}")
        elif info.type == fs.FileType.File:
            system.delete_file(f"{path}/{name}")

    def remove_if_empty(self) -> None:
        """Delete a local folder that has nothing in it."""
        if self.is_local:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def fetch(self) -> Path:
        """The folder on this machine: itself, or a copy in a temporary folder."""
        if self.is_local:
            return self.path
        from pyarrow import fs

        system, path = self._remote
        target = Path(tempfile.mkdtemp(prefix="ray_gen-"))
        fs.copy_files(path, str(target), source_filesystem=system)
        return target

    def put(self, source: Path, name: str) -> None:
        """Copy a file or folder of this machine into it."""
        if self.is_local:
            for file in [source] if source.is_file() else sorted(source.rglob("*")):
                target = self.path / name / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                if (
                    file.is_file()
                ):  # contents alone: temporary files are for their owner's eyes only
                    shutil.copyfile(file, target)
            return
        from pyarrow import fs

        system, path = self._remote
        system.create_dir(
            f"{path}/{name}".rpartition("/")[0] if source.is_file() else f"{path}/{name}"
        )
        fs.copy_files(str(source), f"{path}/{name}", destination_filesystem=system)

    def check_writable(self) -> None:
        """Raises StorageError with the path and the remedy if nothing can be written here."""
        try:
            self.write_text(".writable", " " * 2**16)  # a full disk still takes an empty file
            self.remove(".writable")
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(
                f"storage: {self.location} cannot be written ({reason}); choose another place with "
                f"--storage or ${VARIABLE}"
            ) from error
