"""hf://datasets/…: through a file system that stands for the hub's."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import huggingface_hub
import pytest
from huggingface_hub import errors

from ray_gen import storage
from ray_gen.data import DataError, Parquet
from ray_gen.errors import Refused
from ray_gen.evaluation.request import Request
from ray_gen.experiment import Experiment
from ray_gen.training.sources import as_begun
from tests.data.pictures import opened
from tests.data.test_parquet import hf, same, write_table
from tests.helpers import gan

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEXT = "f" * 40
DIGITS = "hf://datasets/somebody/digits"


class Hub(fsspec.AbstractFileSystem):
    """One data set, somebody/digits, at two commits. Its files lie in a local folder."""

    protocol = "hf"
    cachable = False
    folder: Path
    head = COMMIT
    failures = 0
    asked: list[str]

    def _local(self, path: str) -> Path:
        self.asked.append(path)
        if type(self).failures:
            type(self).failures -= 1
            raise RuntimeError("no route to host")  # as httpx: not an OSError
        commit = NEXT if NEXT in path else COMMIT
        root = f"datasets/somebody/digits@{commit}"
        if path != root and not path.startswith(f"{root}/"):
            raise FileNotFoundError(path)
        return self.folder / path.removeprefix(root).strip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        file = self._local(path)
        if file.is_dir():
            return {"name": path, "size": 0, "type": "directory"}
        data = file.read_bytes()
        blob = hashlib.sha1(data).hexdigest()
        return {"name": path, "size": len(data), "type": "file", "blob_id": blob, "lfs": None}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = [f"{path}/{file.name}" for file in sorted(self._local(path).iterdir())]
        return [self.info(name) for name in found] if detail else found

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return self._local(path).open(mode)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    class Here(Hub):
        folder = tmp_path / "hub"
        asked: list[str] = []  # noqa: RUF012

    class Api:
        def repo_info(self, repository: str, **asked: Any) -> Any:
            assert asked["repo_type"] == "dataset" and asked["timeout"] <= 5
            if repository != "somebody/digits":
                raise errors.RepositoryNotFoundError("404", response=_response())
            if asked["revision"] in (COMMIT, NEXT):
                return SimpleNamespace(sha=asked["revision"])
            if asked["revision"] not in (None, "main", "refs/convert/parquet"):
                raise errors.RevisionNotFoundError("404", response=_response())
            return SimpleNamespace(sha=Here.head)

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Here)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    write_table(Here.folder / "data" / "train-0.parquet", image=hf(range(6)), label=[0, 1] * 3)
    write_table(Here.folder / "data" / "test-0.parquet", image=hf(range(6, 8)), label=[0, 1])
    (Here.folder / "README.md").write_text("digits")
    return Here


def _response() -> Any:
    return SimpleNamespace(headers={}, status_code=404, request=None, text="", json=dict)


@pytest.mark.parametrize(
    "place",
    ["", "/", "/data", "@main", "@main/data", "@refs/convert/parquet/data", f"@{COMMIT}/data"],
)
def test_a_data_set_of_the_hub(place: str, hub: type[Hub], tmp_path: Path) -> None:
    source = Parquet(path=f"hf://datasets/somebody/digits{place}")
    store = opened(source, tmp_path / "cache")
    assert same(store.train.images_NHWC, range(6)) and same(store.held_out.images_NHWC, range(6, 8))
    assert store.train.labels is not None and store.train.labels.tolist() == [0, 1] * 3
    assert all(COMMIT in path for path in hub.asked)


def begun(place: str, before: Experiment | None = None) -> tuple[Experiment, list[str]]:
    """What a command trains on, and what it says."""
    said: list[str] = []
    command = Experiment.from_yaml(gan().to_yaml(), [f"data={place}", "data.channels=3"])
    return as_begun(command, before, said.append), said


@pytest.mark.parametrize("revision", ["", "@main", "@refs/convert/parquet"])
@pytest.mark.parametrize("form", ["{}", "{{kind: joined, sources: ['{}', folder:/x]}}"])
def test_a_run_goes_on_at_the_commit_that_it_began_with(
    revision: str, form: str, hub: type[Hub]
) -> None:
    place = form.format(f"parquet:{DIGITS}{revision}/data")
    first, said = begun(place)
    assert f"{DIGITS}@{COMMIT}/data" in first.data.short_form and not said
    assert begun(place, first) == (first, [])
    hub.head = NEXT
    again, said = begun(place, first)
    assert again.data.short_form == first.data.short_form
    assert said == [
        f"data: {DIGITS}{revision}/data is now at commit {NEXT}; the run goes on with its own,"
        f" {COMMIT}"
    ]
    assert NEXT in begun(place)[0].data.short_form  # a new run


def test_a_commit_that_is_named_is_taken(hub: type[Hub]) -> None:
    first, _ = begun(f"parquet:{DIGITS}")
    named, said = begun(f"parquet:{DIGITS}@{NEXT}", first)
    assert named.data.short_form == f"parquet:{DIGITS}@{NEXT}" and not said
    hub.head = NEXT
    others, said = begun(f"parquet:{DIGITS}/data", first)  # other files
    assert others.data.short_form == f"parquet:{DIGITS}@{NEXT}/data" and not said


def test_a_run_needs_only_its_commit_and_not_the_branch(hub: type[Hub]) -> None:
    first, _ = begun(f"parquet:{DIGITS}")
    gone, said = begun(f"parquet:{DIGITS}@gone", first)
    assert gone.data.short_form == first.data.short_form and not said
    with pytest.raises(DataError, match="has no revision 'gone'"):
        begun(f"parquet:{DIGITS}@gone")


@pytest.mark.usefixtures("hub")
def test_an_evaluation_has_one_commit_for_all_workers() -> None:
    request = Request.of(generated="folder:/x", reference=f"parquet:{DIGITS}")
    assert request.reference is not None
    assert request.reference.short_form == f"parquet:{DIGITS}@{COMMIT}"
    with pytest.raises(Refused, match=r"^--reference: somebody/digits has no revision 'v9'"):
        Request.of(generated="folder:/x", reference=f"parquet:{DIGITS}@v9")


def test_one_file_of_the_hub(hub: type[Hub], tmp_path: Path) -> None:
    path = "hf://datasets/somebody/digits/data/test-0.parquet"
    store = opened(Parquet(path=path), tmp_path / "cache")
    assert same(store.train.images_NHWC, range(6, 8))


def test_two_runs_on_one_revision_have_one_identity(hub: type[Hub], tmp_path: Path) -> None:
    def identity() -> object:
        return Parquet(path="hf://datasets/somebody/digits").identity()

    first = identity()
    time.sleep(0.01)
    shard = hub.folder / "data" / "test-0.parquet"
    shard.write_bytes(shard.read_bytes())  # another time, the same content
    assert identity() == first
    write_table(shard, image=hf(range(8, 10)), label=[0, 1])  # the same size, another content
    assert identity() != first


def test_a_connection_that_fails_for_a_moment(hub: type[Hub], tmp_path: Path) -> None:
    hub.failures = 2
    store = opened(Parquet(path="hf://datasets/somebody/digits"), tmp_path / "cache")
    assert len(store.train) == 6


def test_what_the_hub_does_not_have_has_its_sentence(hub: type[Hub], tmp_path: Path) -> None:
    def refused(path: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            opened(Parquet(path=path), tmp_path / "cache")

    refused("hf://datasets/somebody/x", r"no data set somebody/x that this user may read;.*hf auth")
    refused("hf://datasets/somebody/digits@v9", "somebody/digits has no revision 'v9' on the hub")
    refused("hf://datasets/mnist", "names no data set of the hub; give hf://datasets/OWNER/NAME")
    refused("hf://somebody/model", "names no data set of the hub")
    refused("hf://datasets/somebody/digits/gone", "does not exist")
    (hub.folder / "data").rename(hub.folder / "raw")
    for file in (hub.folder / "raw").iterdir():
        file.rename(file.with_suffix(".bin"))
    refused("hf://datasets/somebody/digits", r"no files whose names end in \.parquet;.*@refs/conv")


def test_offline_is_one_sentence_within_seconds(tmp_path: Path) -> None:
    """With the real package. The address leads nowhere; then the package is told to be offline."""
    code = """
import time
from huggingface_hub import constants
from ray_gen.data import DataError, Parquet
for offline in (False, True):
    constants.HF_HUB_OFFLINE = offline
    start = time.monotonic()
    try:
        Parquet(path="hf://datasets/somebody/digits").identity()
    except DataError as error:
        print(time.monotonic() - start < 10, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "", "HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"},
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("True data.path: hf://datasets/somebody/digits cannot be reached (")
        assert "hf download somebody/digits --repo-type dataset --local-dir FOLDER" in line
    assert "offline" in lines[1].lower()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs huggingface_hub; install it with pip install 'ray"):
        Parquet(path="hf://datasets/somebody/digits").identity()
