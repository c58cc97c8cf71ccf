"""hf://datasets/…: data sets on the Hugging Face hub, through huggingface_hub's file system."""

from __future__ import annotations

import importlib.util
import re
from typing import Any
from urllib.parse import unquote

from pyarrow import NativeFile, PythonFile
from pyarrow.fs import FileInfo, FileSystem, FileType, FSSpecHandler, PyFileSystem

from ray_gen.data.errors import DataError, reason
from ray_gen.storage import limited

SCHEME = "hf://"
_PATIENCE_SECONDS = 5.0
_URI = re.compile(
    r"hf://datasets/(?P<owner>[^/@]+)/(?P<name>[^/@]+)"
    r"(@(?P<revision>refs/(convert|pr)/[^/]+|[^/]+))?(/(?P<path>.*))?"
)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def opened(location: str) -> tuple[Any, str]:
    """pyarrow's file system of a URI, and the path in it. Raises DataError for a place on the hub
    that cannot be read; for others what pyarrow raises.

    A revision of the hub is replaced by its commit, so that all files are of one.
    """
    if not location.startswith(SCHEME):
        return FileSystem.from_uri(limited(location))
    path = at_commit(location).removeprefix(SCHEME)
    return PyFileSystem(_Handler(_package(location).HfFileSystem())), path.rstrip("/")


def at_commit(location: str) -> str:
    """A place on the hub with the commit of its revision, as the hub tells it now. Raises
    DataError."""
    repository, path = repository_and_path(location)
    commit = _commit(_package(location), location, repository, revision_of(location))
    return f"{SCHEME}datasets/{repository}@{commit}/{path}".rstrip("/")


def repository_and_path(location: str) -> tuple[str, str]:
    """OWNER/NAME of a place on the hub, and the path in it. Raises DataError if it names none."""
    parts = _parts(location)
    return f"{parts['owner']}/{parts['name']}", (parts["path"] or "").strip("/")


def revision_of(location: str) -> str | None:
    """The branch, tag or commit of a place on the hub. None: it names none."""
    revision = _parts(location)["revision"]
    return unquote(revision) if revision else None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit. All others may move."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _parts(location: str) -> re.Match[str]:
    parts = _URI.fullmatch(location)
    if parts is None:
        raise DataError(
            f"data.path: {location} names no data set of the hub; give"
            " hf://datasets/OWNER/NAME, hf://datasets/OWNER/NAME@REVISION or a path in it"
        )
    return parts


def _package(location: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise DataError(
            f"data.path: {location} needs huggingface_hub; install it with"
            " pip install 'ray_gen[hub]'"
        )
    import huggingface_hub

    return huggingface_hub


def _commit(hub: Any, location: str, repository: str, revision: str | None) -> str:
    """The commit of a revision. Asks once, and waits only for seconds. Raises DataError."""
    from huggingface_hub import errors

    try:
        found = hub.HfApi().repo_info(
            repository, repo_type="dataset", revision=revision, timeout=_PATIENCE_SECONDS
        )
    except errors.RevisionNotFoundError as error:
        raise DataError(
            f"data.path: {repository} has no revision {revision!r} on the hub; give a branch, a tag"
            " or a commit that it has, or leave the revision out"
        ) from error
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise DataError(
            f"data.path: the hub has no data set {repository} that this user may read; correct the"
            " name, or log in with `hf auth login` and accept the data set's conditions there"
        ) from error
    except errors.HFValidationError as error:
        raise DataError(f"data.path: {location} names no data set of the hub: {error}") from error
    except Exception as error:  # offline: what is raised depends on the version of the package
        raise DataError(
            f"data.path: {location} cannot be reached ({reason(error)}); connect this machine to"
            " the internet, or, where there is a connection, run"
            f" `hf download {repository} --repo-type dataset --local-dir FOLDER`, bring FOLDER here"
            " and set data=parquet:FOLDER"
        ) from error
    return str(found.sha)


class _Handler(FSSpecHandler):
    """The hub's file system for pyarrow. Errors of the connection become OSErrors, which readers
    know. A file's time is made of the hash of its content, so it changes only with the content."""

    @staticmethod
    def _create_file_info(path: str, info: dict[str, Any]) -> FileInfo:
        if info["type"] != "file":
            return FileInfo(path, FileType.Directory)
        lfs = info.get("lfs") or {}
        content = str(lfs.get("sha256") or info.get("blob_id") or info.get("xet_hash") or "0")
        return FileInfo(path, FileType.File, size=info["size"], mtime_ns=int(content[:15], 16))

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return _asked(super().get_file_info, paths)

    def get_file_info_selector(self, selector: Any) -> list[FileInfo]:
        return _asked(super().get_file_info_selector, selector)

    def open_input_file(self, path: str) -> NativeFile:
        return PythonFile(_File(_asked(self.fs.open, path, "rb")), mode="r")


class _File:
    """A file of the hub. Errors of the connection become OSErrors."""

    def __init__(self, file: Any) -> None:
        self._file = file

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size: int = -1) -> bytes:
        return _asked(self._file.read, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return _asked(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def size(self) -> int:
        return self._file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()


def _asked(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"the hub does not answer: {reason(error)}") from error
