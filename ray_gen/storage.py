"""A folder on a local disk, or on any storage that pyarrow reads and writes: s3://, gs://, hdfs://.

While a storage fails, requests to its URIs are repeated, with growing pauses. Requests to a local
disk are not: a full disk stays full.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

from ray_gen import temporary
from ray_gen.errors import Refused

DEFAULT = "~/ray_gen_runs"
VARIABLE = "RAY_GEN_STORAGE"
PATIENCE_SECONDS = 60.0
"""How long to wait for a storage that fails. Throttling and fail-overs end within this time. The
other workers wait in a collective meanwhile and give up after half an hour."""
FIRST_PAUSE_SECONDS = 0.5
"""Doubled after each attempt. One attempt at s3:// takes 6 s: pyarrow itself retries five times a
second."""
LONGEST_PAUSE_SECONDS = 10.0

KEPT = "what was saved before is intact"
INTACT = f"{KEPT}: start again, with the same --name"
"""Message for a run that ended because its storage failed."""

NEW_PATIENCE_SECONDS = 5.0
"""The same, if the name of a storage is not found that has never answered this process: there is no
network, or the name is wrong."""

_FINAL = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET"
    r"|UNRECOGNIZED_CLIENT|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN)"
    r"|Bucket '.*' not found|PERMISSION_DENIED|UNAUTHENTICATED"
)
"""Errors that a retry cannot solve."""
_OF_AWS = re.compile(
    r"AWS Error (?P<code>\w+)( \(HTTP status (?P<status>\d+)\))? during \w+ operation: "
    r"(curlCode: \d+, )?(?P<detail>[^;(\n]*)"
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""Matches each word of a name like access_key, X-Amz-Signature or AWSAccessKeyId."""
_SECRET = {
    *("accesskey", "apikey", "auth", "authorization", "credential", "credentials", "key"),
    *("passphrase", "passwd", "password", "pwd", "sas", "secret", "secretkey", "sig"),
    *("signature", "token"),
}
_WEB = {"http", "https", "ftp"}
_T = TypeVar("_T")

_NAME_NOT_FOUND = re.compile(r"resolve host|curlCode: 6\b|CURL error \[6\]", re.IGNORECASE)
_OF_GOOGLE = re.compile(r"^(?P<code>\w+): Retry policy exhausted.*?(?P<detail>CURL error [^;(\n]*)")
_LONGEST_REASON = 200
"""Characters."""
_answered: set[str] = set()
"""Storages that have answered this process."""
_outages: dict[str, bool] = {}
"""Storages that do not answer this process. True: this process has given up and no longer waits."""


class StorageError(Refused):
    """A storage location that cannot be used, with its path and the remedy."""


class DeniedError(StorageError):
    """A storage that answers but denies the request."""


def default_storage() -> str:
    """$RAY_GEN_STORAGE, else ~/ray_gen_runs. Never the working directory: a job loses it."""
    return os.environ.get(VARIABLE) or DEFAULT


def _split(location: str, what: str) -> SplitResult:
    """The parts of a URI. Raises StorageError, without the host, if it is not valid. what: the word
    for it in the message."""
    try:
        return urlsplit(location)
    except ValueError:  # its message shows the host, and a password before the host
        scheme = location.partition("://")[0]
        raise StorageError(f"{scheme}://...: the {what} has no valid host; correct it") from None


def without_credentials(location: str) -> str:
    """A path or URI, unchanged. Raises StorageError if a URI holds a secret: every experiment.yaml
    and log would show it. The message omits the secret. A web address is refused, and its whole
    query omitted: all of it may be a secret."""
    if "://" not in location:
        return location
    parts = _split(location, "URI")
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme in _WEB:
        raise StorageError(
            f"{bare}: ray_gen reads and writes nothing on the web; give a path of this machine "
            "(download data first) or a storage (s3://, gs://, hdfs://)"
        )
    if _hold_credentials(parts):
        raise StorageError(
            f"{bare}: the URI holds credentials, and they would be written to the run folder and "
            "to logs; remove them from the URI and set them in the environment of every machine "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or a "
            "role of the machine)"
        )
    return location


def server_without_credentials(address: str) -> str:
    """The address of a server or database, unchanged. Raises StorageError if it holds a secret: see
    `without_credentials`. The message omits the secret."""
    if "://" not in address:
        return address
    parts = _split(address, "address")
    if _hold_credentials(parts):
        raise StorageError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}: the address holds "
            "credentials, and they would be written to the run folder; remove them and set them in "
            "the environment of every machine"
        )
    return address


def _hold_credentials(parts: SplitResult) -> bool:
    """Whether a URI holds a password, a key or a token."""
    user, at, _ = parts.netloc.rpartition("@")
    if at and (":" in user or parts.scheme in ("s3", *_WEB)):
        return True
    fields = parse_qsl(parts.query, keep_blank_values=True)
    return any(is_secret(name) or "@" in value for name, value in fields)


def is_secret(name: str) -> bool:
    """Whether a field of this name may hold a secret."""
    return any(word.lower() in _SECRET for word in _WORDS.findall(name))


def tried(attempt: Callable[[], _T], location: str, patience_seconds: float | None = None) -> _T:
    """Calls `attempt`, a request to a URI, and returns its result. Repeats it, with growing pauses,
    while the storage fails. FileNotFoundError and Refused pass through.

    Raises StorageError within `patience_seconds` (default: PATIENCE_SECONDS), or after one attempt
    if it takes longer; DeniedError at once.
    """
    storage = location.partition("://")[2].partition("/")[0]
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    end = began + patience
    while True:
        started = time.monotonic()
        try:
            done = attempt()
        except (FileNotFoundError, NotImplementedError, Refused):
            _outages.pop(storage, None)
            _answered.add(storage)
            raise
        except ValueError as error:  # pyarrow's ArrowInvalid
            raise StorageError(f"{location}: cannot be reached: {error}") from error
        except OSError as error:
            told = f"{location}: {reason_of(error)}"
            if storage not in _answered and _NAME_NOT_FOUND.search(str(error)):
                patience = min(patience, NEW_PATIENCE_SECONDS)
                end = min(end, began + patience)
                told += "; check the name, and this machine's network"
            if _FINAL.search(str(error)) or isinstance(error, PermissionError):
                raise DeniedError(f"{told}{_remedy(error)}") from error
            now = time.monotonic()
            if now + pause + (now - started) > end or _outages.get(storage, False):
                _outages[storage] = True
                raise StorageError(
                    f"{told}; the storage has failed for {now - began:.0f} s or longer"
                ) from error
            if storage not in _outages:
                _outages[storage] = False
                logging.getLogger(__name__).warning("%s; trying again for %.0f s", told, patience)
        else:
            _outages.pop(storage, None)
            _answered.add(storage)
            return done
        time.sleep(pause * random.uniform(0.5, 1.0))  # workers must not retry all at once
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


_OF_BUCKETS = ("s3", "gs", "gcs", "abfs", "abfss")
"""Schemes whose first part is a bucket or a container."""


@dataclass(frozen=True)
class Folder:
    """A folder, given by its absolute path or URI.

    For a URI, every method raises StorageError if the storage fails for too long, and DeniedError
    at once if the storage denies the request.
    """

    location: str

    def __post_init__(self) -> None:
        without_credentials(self.location)

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return type(self), (self.location,)  # without `remote`: a connection belongs to a process

    @property
    def is_local(self) -> bool:
        """Whether the folder is a path of this machine (or of a file system mounted on it)."""
        return "://" not in self.location

    @property
    def path(self) -> Path:
        """The path of a local folder."""
        assert self.is_local, self.location
        return Path(self.location)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self._parts[0]).name

    @property
    def _parts(self) -> tuple[str, str, str]:
        """Path, mark and query: "s3://bucket/runs", "?", "endpoint_override=...". A local path is
        never split, even if it contains "?"."""
        return (self.location, "", "") if self.is_local else self.location.partition("?")

    def __truediv__(self, name: str) -> Folder:
        path, mark, query = self._parts
        child = Folder(f"{path.rstrip('/')}/{name}{mark}{query}")
        if "remote" in self.__dict__:  # reuse the open connections
            system, here = self.remote
            child.__dict__["remote"] = (system, f"{here}/{name}")
        return child

    @property
    def parent(self) -> Folder:
        """The folder that contains this folder."""
        path, mark, query = self._parts
        return Folder(f"{path.rstrip('/').rpartition('/')[0]}{mark}{query}")

    @cached_property
    def remote(self) -> tuple[Any, str]:
        """pyarrow's file system and the path in it."""
        from pyarrow import fs

        return fs.FileSystem.from_uri(limited(encoded(self.location)))

    def _tried(
        self, attempt: Callable[[Any, str], _T], patience_seconds: float | None = None
    ) -> _T:
        """Calls `attempt(file system, path)`. Repeats it while the storage fails."""
        return tried(lambda: attempt(*self.remote), self.location, patience_seconds)

    def read_bytes(self, name: str, begin: int = 0) -> bytes:
        """The bytes of a file from offset `begin` on. Raises FileNotFoundError."""

        def read(system: Any, path: str) -> bytes:
            with system.open_input_file(f"{path}/{name}") as file:
                file.seek(begin)
                return file.read()

        return (self.path / name).read_bytes()[begin:] if self.is_local else self._tried(read)

    def read_text(self, name: str) -> str:
        """The text of a small file, with U+FFFD for bytes that are not UTF-8. Raises
        FileNotFoundError."""
        return self.read_bytes(name).decode(errors="replace")

    def write_text(self, name: str, text: str) -> None:
        """Write a small file. On a local disk or object store it is written whole or not at all."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """As `write_text`."""
        if not self.is_local:
            self._tried(lambda system, path: _write(system, f"{path}/{name}", data))
            return
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / f".{name}.partial"
        try:
            partial.write_bytes(data)
            partial.replace(self.path / name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of this name exists here. Without a name: whether this folder
        exists."""
        if self.is_local:
            return (self.path / name).exists()
        from pyarrow import fs

        def found(system: Any, path: str) -> bool:
            (info,) = system.get_file_info([f"{path}/{name}".rstrip("/")])
            return info.type != fs.FileType.NotFound

        return self._tried(found)

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted. Empty if the folder does not exist."""
        if self.is_local:
            return sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        from pyarrow import fs

        def listed(system: Any, path: str) -> list[str]:
            infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
            return sorted(info.base_name for info in infos)

        return self._tried(listed)

    def remove(self, name: str) -> None:
        """Delete a file or folder in it, if it exists."""
        if self.is_local:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
            return
        self._tried(lambda system, path: delete_path(system, f"{path}/{name}"))

    def remove_if_empty(self) -> None:
        """Delete the folder if it is empty."""
        with contextlib.suppress(OSError, StorageError):
            if self.is_local:
                self.path.rmdir()
            elif not self.names():
                self._tried(delete_path)

    @contextlib.contextmanager
    def fetched(self, files: Collection[str] | None = None) -> Generator[Path]:
        """The folder as a local path: the folder itself, or a copy that exists only inside the
        `with` statement. Raises FileNotFoundError, and StorageError if the path of a file in it
        leads out of the copy.

        files: the names to copy, of those that exist; None: everything.
        """
        if self.is_local:
            yield self.path
            return
        from pyarrow import fs

        def copy(system: Any, path: str) -> None:
            found = _inside(system, path)
            for name in found:
                if _leads_out(name):
                    raise StorageError(
                        f"{self.location}: the file name {name} leads out of the folder, so the "
                        "folder cannot be copied; delete that file, if the folder is yours"
                    )
            if files is None:
                fs.copy_files(path, str(folder), source_filesystem=system)
            for name in () if files is None else found.keys() & files:
                fs.copy_files(f"{path}/{name}", str(folder / name), source_filesystem=system)

        with temporary.folder("fetched-") as folder:
            self._tried(copy)
            yield folder

    def put(self, source: Path, name: str) -> None:
        """Copy a local file or folder into this folder, under `name`."""
        files = [source] if source.is_file() else sorted(source.rglob("*"))
        for file in filter(Path.is_file, files):
            target = (PurePosixPath(name) / file.relative_to(source).as_posix()).as_posix()
            if self.is_local:
                _copied(file, self.path / target)
            else:
                self.put_file(file, target)

    def put_file(self, file: Path, name: str) -> None:
        from pyarrow import fs

        def copy(system: Any, path: str) -> None:
            _with_parent(
                system,
                f"{path}/{name}",
                lambda target: fs.copy_files(str(file), target, destination_filesystem=system),
            )

        self._tried(copy)

    def sizes(self, part: str) -> dict[str, int]:
        """Sizes in bytes, by path in the folder, of all files whose names contain `part`, at any
        depth. Skips a path that leads out of the folder."""
        if self.is_local:
            files = (file for file in self.path.rglob(f"*{part}*") if file.is_file())
            return {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}
        from pyarrow import fs

        def listed(system: Any, path: str) -> dict[str, int]:
            return {
                name: info.size
                for name, info in _inside(system, path).items()
                if info.type == fs.FileType.File and part in info.base_name and not _leads_out(name)
            }

        return self._tried(listed)

    def check_writable(self, remedy: str = f"another place with --storage or ${VARIABLE}") -> None:
        """Raises StorageError with the path and the remedy if this process cannot write here. It
        tries only once: no work can be lost yet."""
        scheme, separator, rest = self._parts[0].partition("://")
        if separator and scheme in _OF_BUCKETS and not rest.partition("/")[0]:
            raise StorageError(
                f"storage: {self.location} names no bucket; write {scheme}://BUCKET/FOLDER"
            )
        probe, text = ".writable", " " * 2**16  # a full disk still takes an empty file
        try:
            if self.is_local:
                self.write_text(probe, text)
                self.remove(probe)
            else:
                self._tried(
                    lambda system, path: _write(system, f"{path}/{probe}", text.encode()), 0.0
                )
                self._tried(lambda system, path: delete_path(system, f"{path}/{probe}"), 0.0)
        except (OSError, StorageError) as error:
            cause = error.__cause__ or error
            if not isinstance(cause, OSError):
                raise
            raise StorageError(
                f"storage: {self.location} cannot be written ({reason_of(cause)}{_remedy(cause)}); "
                f"choose {remedy}"
            ) from error


def _copied(file: Path, target: Path) -> None:
    """Copy into the existing file: a reader such as TensorBoard holds it open."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(file, target)  # without permissions: a temporary file is private
    except OSError:
        target.unlink(missing_ok=True)  # half a file is useless and takes space
        raise


def encoded(location: str) -> str:
    """The URI with letters beyond ASCII, and spaces, in the form that URIs have for them. A local
    path unchanged."""
    if "://" not in location:
        return location
    return re.sub(r"[^!-~]+", lambda found: quote(found[0]), location)


def limited(location: str) -> str:
    """The URI, with a limit on retries: Google's client alone would retry for a quarter of an
    hour. `tried` repeats what fails for longer. Without a network, a request takes 1 to 2 s."""
    if not location.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in location:
        return location
    return f"{location}{'&' if '?' in location else '?'}retry_limit_seconds=1"


def _inside(system: Any, path: str) -> dict[str, Any]:
    """File information of everything in a folder, at any depth, by path in the folder."""
    from pyarrow import fs

    selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
    found = system.get_file_info(selector)
    return {info.path.removeprefix(path).lstrip("/"): info for info in found}


def _leads_out(name: str) -> bool:
    """Whether a path leads out of its folder. A key of an object store may contain `..`. On a local
    disk `..` is the parent folder."""
    return ".." in name.split("/")


def _write(system: Any, path: str, data: bytes) -> None:
    def write(path: str) -> None:
        with system.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    _with_parent(system, path, write)


def _with_parent(system: Any, path: str, write: Callable[[str], None]) -> None:
    """Calls `write(path)`. Makes the parent folder first if the file system needs it. An object
    store has no folders."""
    try:
        write(path)
    except FileNotFoundError:
        system.create_dir(path.rpartition("/")[0])
        write(path)


def delete_path(system: Any, path: str) -> None:
    from pyarrow import fs

    (info,) = system.get_file_info([path])
    with contextlib.suppress(FileNotFoundError):  # an earlier attempt did it, its answer was lost
        if info.type == fs.FileType.Directory:
            system.delete_dir(path)
        elif info.type == fs.FileType.File:
            system.delete_file(path)


def reason_of(error: OSError) -> str:
    """A short reason, without the words "AWS Error": they would make Ray repeat a whole upload."""
    found = _OF_AWS.search(str(error))
    if found is None:
        text = (error.strerror or str(error)).partition("\n")[0].partition(" error_info=")[0]
        text = text.replace("AWS Error ", "").replace("google::cloud::Status(", "")
        if (google := _OF_GOOGLE.search(text)) is not None:
            text = f"{google['code']}: {google['detail']}"
        return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
    status = f" (HTTP {found['status']})" if found["status"] else ""
    return f"{found['code']}{status}: {found['detail'].strip(' .')}"


def _remedy(error: OSError) -> str:
    """The remedy for a denied request. Empty for other errors."""
    if _FINAL.search(str(error)) is None:
        return ""
    if re.search("NO_SUCH_BUCKET|Bucket '", str(error)):
        return "; create the bucket, or give another one"
    return (
        "; set credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "GOOGLE_APPLICATION_CREDENTIALS, or a role of the machine); they need the rights to list, "
        "read, write and delete there"
    )
