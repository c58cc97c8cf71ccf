"""Folders on a disk and on a real S3 server: what they do, and what they do when it fails."""

from __future__ import annotations

import errno
import io
import logging
import pickle
import re
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

import ray_gen
from ray_gen import storage
from ray_gen.cli import main
from ray_gen.cli.tensorboard import mirror_events
from ray_gen.experiment import ExperimentError
from ray_gen.storage import DeniedError, Folder, StorageError, without_credentials
from tests.helpers import vae
from tests.s3 import S3, SECRET


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path: Path) -> Folder:
    """A folder that is not there yet."""
    if request.param == "disk":
        return Folder(str(tmp_path / "runs" / "a"))
    return Folder(request.getfixturevalue("s3").new_bucket()) / "runs" / "a"


@pytest.fixture
def remote(s3: S3) -> Folder:
    return Folder(s3.new_bucket()) / "a"


# What a folder does


def test_what_is_written_is_there_until_it_is_removed(folder: Folder) -> None:
    assert not folder.exists() and folder.names() == []
    folder.write_text("b", "first")
    folder.write_text("b", "sécond")
    folder.write_text("a", "")
    assert folder.read_text("b") == "sécond" and folder.read_text("a") == ""
    assert folder.read_bytes("b", 4) == b"ond"
    assert folder.exists() and folder.exists("a") and not folder.exists("c")
    assert folder.names() == ["a", "b"]
    folder.remove("a")
    folder.remove("a")  # is not there, and that is fine
    assert folder.names() == ["b"]
    assert folder.parent.names() == ["a"] and folder.parent / "a" == folder


@pytest.mark.parametrize("name", ["имя-猫", "e\u0301", "a b", "a'b", "x=1+2"])
def test_names_may_have_letters_of_any_language(folder: Folder, name: str) -> None:
    (folder / name).write_text("file", "text")
    again = Folder((folder / name).location)  # as another process opens it
    assert again.read_text("file") == "text"
    assert again.name == name and name in folder.names()


@pytest.mark.parametrize("name", ["a", "sub"])
def test_what_is_not_there_is_told_as_by_a_disk(folder: Folder, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        folder.read_text(name)
    folder.write_text("b", "")
    with pytest.raises(FileNotFoundError):
        folder.read_text(name)


def test_folders_are_put_and_fetched_whole(folder: Folder, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "file").write_bytes(b"1" * 100_000)
    (source / "other").write_bytes(b"")
    folder.put(source, "copy")
    folder.put(source / "other", "copy/more/other")
    with (folder / "copy").fetched() as local:
        found = {p.relative_to(local).as_posix(): p.stat().st_size for p in local.rglob("*?")}
        assert {name: size for name, size in found.items() if (local / name).is_file()} == {
            "deep/er/file": 100_000,
            "more/other": 0,
            "other": 0,
        }
    assert local.exists() == folder.is_local
    folder.remove("copy")
    assert not folder.exists("copy")


def test_a_copy_is_gone_also_where_its_use_fails(
    remote: Folder, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remote.write_text("file", "")
    with pytest.raises(RuntimeError), remote.fetched():
        raise RuntimeError
    with pytest.raises(FileNotFoundError), (remote / "nothing").fetched():
        pass
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_can_be_given_up(folder: Folder) -> None:
    folder.write_text("a", "")
    folder.remove_if_empty()
    assert folder.names() == ["a"]
    folder.remove("a")
    folder.remove_if_empty()
    assert not folder.exists()


def test_sizes_tell_of_files_at_any_depth(remote: Folder) -> None:
    (remote / "x" / "y").write_text("events.1", "12")
    remote.write_text("events.2", "3")
    remote.write_text("other", "4")
    assert remote.sizes("events") == {"x/y/events.1": 2, "events.2": 1}


class Keys(FileSystemHandler):
    """An object store whose keys are any text."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys

    def get_type_name(self) -> str:
        return "keys"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        kinds = {
            path: FileType.File if path in self._keys else FileType.Directory for path in paths
        }
        return [FileInfo(path, kind, size=4) for path, kind in kinds.items()]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        return self.get_file_info([key for key in self._keys if key.startswith(selector.base_dir)])

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(io.BytesIO(b"text"), mode="r")

    open_input_file = open_input_stream

    def _nothing(self, *_: object, **__: object) -> None:
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _nothing
    delete_file = move = copy_file = open_output_stream = open_append_stream = _nothing


def with_keys(*keys: str) -> Folder:
    """s3://bucket/run with files of these names."""
    folder = Folder("s3://bucket/run")
    system = PyFileSystem(Keys(*(f"bucket/run/{key}" for key in keys)))
    folder.__dict__["remote"] = (system, "bucket/run")
    return folder


@pytest.mark.parametrize("key", ["../../out", "a/../../../out"])
def test_a_copy_has_nothing_outside_of_its_folder(tmp_path: Path, monkeypatch, key: str) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "deep"))
    with (
        pytest.raises(StorageError, match=rf"s3://bucket/run: .* {re.escape(key)} "),
        with_keys("file", key).fetched(),
    ):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]
    with with_keys("file", "a..b", "..c", "...").fetched() as folder:
        assert {path.name for path in folder.rglob("*")} == {"file", "a..b", "..c", "..."}


def test_events_are_mirrored_into_their_folder_alone(tmp_path: Path, monkeypatch) -> None:
    folder = with_keys("a/tfevents", "../../tfevents.out", "gone.tfevents")
    real = Folder.read_bytes

    def read(self: Folder, name: str, begin: int = 0) -> bytes:
        if name.startswith("gone"):
            raise FileNotFoundError(name)
        return real(self, name, begin)

    monkeypatch.setattr(Folder, "read_bytes", read)
    mirror = tmp_path / "deep" / "mirror"
    mirror.mkdir(parents=True)
    mirror_events(folder, mirror)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [mirror / "a" / "tfevents"]


def test_a_connection_stays_in_its_process(remote: Folder) -> None:
    remote.names()
    sent = pickle.dumps(remote)
    assert SECRET.encode() not in sent and b"pyarrow" not in sent
    assert pickle.loads(sent) == remote


def test_a_folder_below_shares_the_connection(remote: Folder) -> None:
    remote.names()
    assert (remote / "b").remote[0] is remote.remote[0]


# What cannot be written


def test_a_place_that_can_be_written_is_left_as_it_was(folder: Folder) -> None:
    folder.check_writable()
    assert folder.names() == []


def test_a_bucket_that_is_not_there_is_refused_at_once(s3: S3) -> None:
    with pytest.raises(StorageError, match=r"storage: s3://nowhere/a cannot .*create the bucket"):
        Folder("s3://nowhere/a").check_writable()


@pytest.mark.parametrize("text", ["s3://", "s4://a/b", "s3://a/b?mistake=1"])
def test_a_uri_that_nobody_reads_is_refused(s3: S3, text: str) -> None:
    with pytest.raises(StorageError):
        Folder(text).check_writable()


def test_wrong_credentials_are_refused_at_once_and_not_told(s3: S3, monkeypatch) -> None:
    where = s3.new_bucket()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    before = len(s3.requests)
    with pytest.raises(StorageError, match=r"INVALID_ACCESS_KEY_ID.*environment") as caught:
        (Folder(where) / "a").check_writable()
    assert len(s3.requests) == before + 1
    assert SECRET not in str(caught.value)
    with pytest.raises(StorageError, match=r"ACCESS_DENIED.*environment"):
        (Folder(where) / "a").read_text("file")


def test_before_a_run_nobody_waits_long_for_a_storage(s3: S3, monkeypatch, caplog) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://bucket/a cannot .*NETWORK_CONNECTION"):
        Folder("s3://bucket/a").check_writable()
    assert not caplog.records


# A storage that fails


class Failing:
    """pyarrow's file system, but its first `times` calls fail."""

    def __init__(self, real: object, times: int, error: OSError) -> None:
        self._real, self.left, self._error = real, times, error

    def __getattr__(self, name: str):
        if self.left > 0:
            self.left -= 1
            raise self._error
        return getattr(self._real, name)


SLOW = OSError(
    "When reading 'a': AWS Error SLOW_DOWN during ListObjectsV2 operation: Reduce your rate. (x)"
)


def failing(folder: Folder, times: int, error: OSError = SLOW) -> Failing:
    system, path = folder.remote
    failing = Failing(system, times, error)
    folder.__dict__["remote"] = (failing, path)
    return failing


@pytest.mark.parametrize("times", [1, 5])
def test_everything_is_tried_again(remote: Folder, times: int, caplog) -> None:
    system = failing(remote, times)
    remote.write_text("a", "text")
    for asked, answer in (
        (lambda: remote.read_text("a"), "text"),
        (lambda: remote.exists("a"), True),
        (remote.names, ["a"]),
        (lambda: remote.sizes("a"), {"a": 4}),
        (lambda: remote.remove("a"), None),
    ):
        system.left = times
        assert asked() == answer
        assert system.left == 0
    assert len(caplog.records) == 6  # once an outage
    assert "SLOW_DOWN: Reduce your rate; trying again for 60 s" in caplog.text
    assert not remote.exists("a")


def test_what_is_asked_in_vain_ends(remote: Folder, monkeypatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.2)
    system = failing(remote, 10**6)
    with pytest.raises(StorageError, match=r"^s3://bucket-\d+/a: SLOW_DOWN: .* failed for "):
        remote.write_text("a", "")
    # After one long wait, calls fail at once until the storage has answered.
    before = system.left
    with pytest.raises(StorageError):
        remote.names()
    assert before - system.left == 1
    system.left = 0
    assert remote.names() == []
    system.left = 1
    assert remote.names() == []


@pytest.mark.parametrize(
    "error",
    [
        OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
        OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: it does not exist"),
        OSError("google::cloud::Status(PERMISSION_DENIED: no)"),
        PermissionError(13, "no"),
    ],
)
def test_permanent_errors_are_not_retried(remote: Folder, error: OSError) -> None:
    system = failing(remote, 10, error)
    with pytest.raises(DeniedError):
        remote.names()
    assert system.left == 9


@pytest.mark.parametrize(
    "error",
    [
        "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Couldn't resolve"
        " host name; Details: x",
        "google::cloud::Status(UNAVAILABLE: CURL error [6]=Could not resolve hostname)",
    ],
)
def test_nobody_waits_long_for_a_storage_whose_name_was_never_found(
    error: str, remote: Folder, monkeypatch
) -> None:
    monkeypatch.setattr(storage, "NEW_PATIENCE_SECONDS", 0.0)
    storage._answered.discard(remote.location.split("/")[2])
    system = failing(remote, 1, OSError(error))
    with pytest.raises(StorageError, match=r"resolve.*; check the name, and this machine's netw"):
        remote.names()
    storage._outages.clear()
    assert remote.names() == []
    system.left = 1
    assert remote.names() == []  # it has answered: it comes back


def test_no_attempt_begins_that_cannot_end_in_time(monkeypatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    began: list[float] = []

    def attempt() -> None:
        began.append(time.monotonic())
        time.sleep(0.5)
        raise OSError("no")

    with pytest.raises(StorageError, match=r"failed for \d s or longer"):
        storage.tried(attempt, "s3://slow/a", 0.9)
    storage._outages.clear()
    assert len(began) == 1


def test_googles_client_soon_gives_up_a_name_that_is_not_found(monkeypatch) -> None:
    monkeypatch.setattr(storage, "NEW_PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    began = time.monotonic()
    with pytest.raises(StorageError, match="check the name, and this machine's network"):
        Folder("gs://anonymous@bucket/a?endpoint_override=storage.invalid").names()
    storage._outages.clear()
    assert time.monotonic() - began < 4  # of at most 5 s; pyarrow's default is a quarter of an hour


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "When getting information for key 'a' in bucket 'b': AWS Error NETWORK_CONNECTION "
            "during HeadObject operation: curlCode: 7, Could not connect to server; Details: x",
            "NETWORK_CONNECTION: Could not connect to server",
        ),
        (
            "AWS Error UNKNOWN (HTTP status 500) during HeadObject operation: No response body.",
            "UNKNOWN (HTTP 500): No response body",
        ),
        (
            "google::cloud::Status(UNAVAILABLE: CURL error [7]=Could not connect error_info={x})",
            "UNAVAILABLE: CURL error [7]=Could not connect",
        ),
        (
            "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of"
            " Could not create a OAuth2 access token. Learn more at https://cloud.google.com. The"
            " underlying error message was: PerformWork() - CURL error [7]=Could not connect"
            " error_info={x})",
            "UNAVAILABLE: CURL error [7]=Could not connect",
        ),
        ("HDFS is in safe mode\n  at org.apache.hadoop", "HDFS is in safe mode"),
        ("long " * 200, "long " * 40 + "..."),
    ],
)
def test_a_reason_is_short(remote: Folder, monkeypatch, error: str, told: str) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.0)
    failing(remote, 1, OSError(error))
    with pytest.raises(StorageError) as caught:
        remote.names()
    said, _, patience = str(caught.value).rpartition("; ")
    assert said == f"{remote.location}: {told}" and "0 s" in patience


def test_ray_does_not_try_again_what_was_tried_for_a_minute(remote: Folder, monkeypatch) -> None:
    """Ray retries if the message holds one of these words."""
    from ray.train.v2._internal.constants import AWS_RETRYABLE_TOKENS

    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.0)
    for token in AWS_RETRYABLE_TOKENS:
        for text in (f"{token} during PutObject operation: why", f"{token}, in other words"):
            failing(remote, 1, OSError(text))
            with pytest.raises(StorageError) as caught:
                remote.names()
            assert not any(known in str(caught.value) for known in AWS_RETRYABLE_TOKENS)


@pytest.mark.parametrize("how", ["busy", "drop"])
def test_an_outage_of_a_real_server_is_waited_for(s3: S3, remote: Folder, how: str, caplog) -> None:
    s3.fail(how, requests=40)  # pyarrow itself gives up after 31, in 6 s
    remote.write_text("a", "text")
    assert remote.read_text("a") == "text"
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING


def test_a_path_of_this_machine_may_hold_a_question_mark(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "what?x=1")) / "a#b"
    folder.write_text("file", "text")
    assert (tmp_path / "what?x=1" / "a#b" / "file").read_text() == "text"
    assert (folder.name, folder.parent.name) == ("a#b", "what?x=1")


def test_half_a_file_is_not_left_on_a_full_disk(tmp_path: Path, monkeypatch) -> None:
    def cut_off(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "source").write_bytes(b"whole")
    monkeypatch.setattr("shutil.copyfile", cut_off)
    with pytest.raises(OSError, match="No space"):
        Folder(str(tmp_path)).put(tmp_path / "source", "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_is_not_asked_again(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        asked.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    asked: list[int] = []
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        Folder(str(tmp_path)).write_text("a", "")
    assert asked == [1]


# Credentials


WITH_CREDENTIALS = [
    f"s3://key:{SECRET}@bucket/runs",
    f"s3://{SECRET}@bucket/runs",
    f"s3://bucket/runs?access_key=key&secret_key={SECRET}",
    f"s3://bucket/runs?region=x&session_token={SECRET}",
    f"s3://bucket/runs?endpoint_override=http://key:{SECRET}@host",
    f"gs://bucket/runs?access_token={SECRET}",
    f"abfs://account:{SECRET}@container/runs",
    f"fsspec+s3://bucket/runs?key={SECRET}",
    f"s3://bucket/runs?accessKey=key&secretKey={SECRET}",
    f"s3://bucket/runs?secretkey={SECRET}",
    f"s3://bucket/runs?AWSAccessKeyId={SECRET}",
    f"s3://bucket/runs?X-Amz-Signature={SECRET}&region=x",
    f"gs://bucket/runs?access-token={SECRET}",
    f"gs://bucket/runs?credential={SECRET}&credential=",
    f"gs://bucket/runs?apikey={SECRET}",
    f"gs://bucket/runs?proxyAuth={SECRET}",
]


ON_THE_WEB = [
    f"https://bucket.s3.amazonaws.com/runs?X-Amz-Credential=key&X-Amz-Signature={SECRET}",
    f"HTTPS://account.blob.core.windows.net/runs?se=2027&st={SECRET}#{SECRET}",
    f"http://me:{SECRET}@host/runs",
]
"""Addresses that somebody signed; nothing is read from the web anyway."""


@pytest.mark.parametrize("uri", [*WITH_CREDENTIALS, *ON_THE_WEB])
def test_a_uri_with_credentials_is_refused_everywhere(uri: str) -> None:
    remedy = "download" if uri in ON_THE_WEB else "AWS_ACCESS_KEY_ID"

    def refused(*arguments: str) -> None:
        done = CliRunner().invoke(main, arguments, env={storage.VARIABLE: None})
        assert done.exit_code == 2, done.output
        assert remedy in done.output and SECRET not in done.output

    with pytest.raises(StorageError, match=remedy) as caught:
        Folder(uri)
    assert SECRET not in str(caught.value)
    for field in (f"storage={uri}", f"data=parquet:{uri}"):
        with pytest.raises(ExperimentError, match=f"^{field[:4]}.*{remedy}") as caught:
            vae(field)
        assert SECRET not in str(caught.value)
        refused("train", "vae-mnist5k", field)
    refused("train", "vae-mnist5k", "--storage", uri)
    refused("sample", uri)
    refused("train", uri)
    refused("tensorboard", uri)
    refused("evaluate", uri)
    refused("evaluate", "--generated", f"parquet:{uri}", "--reference", "mnist5k")
    with pytest.raises(StorageError):
        ray_gen.load(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/runs?endpoint_override=127.0.0.1:9000&scheme=http&region=eu",
        "gs://anonymous@bucket/runs",
        "hdfs://user@host:8020/runs?kerb_ticket=/tmp/x&replication=2",
        "abfs://container@account.dfs.core.windows.net/runs",
        "s3://bucket/secret/runs?allow_bucket_creation=true&monkey=1&author=me&tls_verify=0",
        "/home/me@work/secret_key?=x",
    ],
)
def test_other_uris_are_left_as_they_are(uri: str) -> None:
    assert without_credentials(uri) == uri


@pytest.mark.parametrize("host", ["me:{}@ho\u2100st", "me:{}@[host"])
def test_a_uri_that_cannot_be_read_is_not_told(host: str) -> None:
    with pytest.raises(StorageError, match=r"^s3://\.\.\.: ") as caught:
        without_credentials(f"s3://{host.format(SECRET)}/runs")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("where", ["s3://", "s3:///runs", "gs://"])
def test_a_uri_without_a_bucket_is_refused_with_the_form_to_write(where: str) -> None:
    with pytest.raises(StorageError, match=r"names no bucket; write (s3|gs)://BUCKET/FOLDER"):
        Folder(where).check_writable()
