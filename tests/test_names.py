"""Runs by name, and which of their checkpoints is taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ray_gen
from ray_gen.cli import main
from ray_gen.data import Store
from ray_gen.errors import Refused
from ray_gen.runs.checkpoints import checkpoint_name
from ray_gen.runs.manifest import EMA, CheckpointError
from ray_gen.runs.names import near_names, run_folder
from tests.helpers import gan, trained, vae


@pytest.fixture(scope="module")
def storage(store_8: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with two runs. `faces` has checkpoints of 24, 48 and 72 images; 48 is the best."""
    storage = tmp_path_factory.mktemp("storage")
    for name in ("faces", "faces-20260101-120000"):
        run = storage / name
        run.mkdir()
        for images in (24, 48, 72):
            this = vae(f"training.images={images}")
            state, _ = trained(this, store_8)
            folders = [run / checkpoint_name(images), *([run / "best"] if images == 48 else [])]
            for folder in folders:
                folder.mkdir()
                state.save(folder, this)
        (run / "experiment.yaml").write_text(this.to_yaml())
    return storage


@pytest.fixture(autouse=True)
def here(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty folder."""
    monkeypatch.setenv("RAY_GEN_STORAGE", str(storage))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_is_looked_up_in_the_storage_and_a_path_that_exists_comes_first(
    storage: Path, here: Path
) -> None:
    for name in ("faces", "faces/", "faces/best", f"faces/{checkpoint_name(24)}"):
        assert run_folder(name).path == storage / name
    for path in ("./faces", "~/faces", "/no/faces", "../faces"):
        assert run_folder(path).path == Path(path).expanduser().absolute()
    assert run_folder("s3://bucket/faces").location == "s3://bucket/faces"
    (here / "faces").mkdir()
    assert run_folder("faces").path == storage / "faces"  # the folder here holds no run
    (here / "cats").mkdir()
    assert run_folder("cats").path == here / "cats"  # nor does the storage
    (here / "faces" / "experiment.yaml").touch()
    assert run_folder("faces").path == here / "faces"


def test_a_name_that_is_nowhere_is_refused_with_the_nearest_ones(storage: Path) -> None:
    for given, hint in (
        ("faces-2026", "did you mean faces-20260101-120000?"),
        ("face", "did you mean faces-20260101-120000 or faces?"),
        ("fcaes", "did you mean faces-20260101-120000 or faces?"),
        ("fcaes/best", "did you mean faces-20260101-120000 or faces?"),
        ("cars", "`ray-gen runs` lists all"),
        ("faces/../../x", "did you mean"),
    ):
        with pytest.raises(Refused) as refused:
            run_folder(given)
        told = str(refused.value)
        assert told.startswith(f"no run {given!r}: it is neither a path here nor in {storage}")
        assert hint in told
    assert near_names("vae-mnst5k-2026", ["vae-mnist5k-20261129-101500", ".vae-mnst5k"]) == [
        "vae-mnist5k-20261129-101500"
    ]


@pytest.mark.parametrize("given", [3, None, b"faces", ["faces"]])
def test_what_is_no_name_ends_in_a_sentence(given: Any) -> None:
    with pytest.raises(TypeError, match=r"is not a run; give its path, its URI, its name"):
        ray_gen.load(given)


@pytest.mark.parametrize(
    ("choice", "images", "told"),
    [
        ("newest", 72, "checkpoint of 72 images (newest), EMA"),
        ("best", 48, "checkpoint of 48 images (best), EMA"),
        (24, 24, "checkpoint of 24 images, EMA"),
        ("24", 24, "checkpoint of 24 images, EMA"),
    ],
)
def test_a_checkpoint_is_chosen_and_said(choice: Any, images: int, told: str, here: Path) -> None:
    loaded = ray_gen.load("faces", checkpoint=choice, device="cpu")
    assert (loaded.images_seen, loaded.name, str(loaded.facts)) == (images, "faces", told)
    assert repr(loaded) == "Pipeline(faces, 1x8x8, classes=10)"
    for command, output in (("sample", "a.png"), ("interpolate", "b.png"), ("traverse", "c.png")):
        given = [command, "faces", "--checkpoint", str(choice), "--output", output]
        done = CliRunner().invoke(main, given, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        assert done.stderr == f"faces: {told}\n"
    done = CliRunner().invoke(main, ["export", "faces", "out", "--checkpoint", str(choice)])
    assert done.stderr.startswith(f"faces: {told}\n")
    again = ray_gen.load("out")
    assert (again.name, again.images_seen) == ("faces", images)
    assert str(again.facts) == f"exported model of {images} images, EMA"
    assert "# faces\n" in (here / "out" / "README.md").read_text()


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(storage: Path) -> None:
    for choice, told in (
        (1000, "has no checkpoint of 1,000 images; `checkpoint` may be one of: 72, 48, 24, best"),
        ("last", "'last' is neither newest, best, ema-SIGMA nor a number of images"),
        (True, "True is neither newest, best, ema-SIGMA nor a number of images"),
    ):
        with pytest.raises(Refused, match=re.escape(told)):
            ray_gen.load("faces", checkpoint=choice)
    with pytest.raises(CheckpointError, match="is a checkpoint itself; leave best out"):
        ray_gen.load("faces/best", checkpoint="best")
    with pytest.raises(CheckpointError, match="/no/run: there is no such run"):
        ray_gen.load("/no/run", checkpoint="best")
    (storage / "young").mkdir()
    (storage / "young" / "experiment.yaml").touch()
    for choice in ("newest", "best", 24):
        with pytest.raises(CheckpointError, match="has no complete checkpoint yet"):
            ray_gen.load("young", checkpoint=choice)


def test_a_damaged_newest_checkpoint_is_refused_with_the_others(storage: Path) -> None:
    file = storage / "faces-20260101-120000" / checkpoint_name(72) / EMA
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"\(`checkpoint` may be one of: 48, 24, best\)$"):
            ray_gen.load("faces-20260101-120000")
        assert ray_gen.load("faces-20260101-120000", checkpoint=48).images_seen == 48


def test_an_evaluation_takes_names_and_says_what_it_measures(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(here / "cache"))
    given = ["evaluate", "faces", "faces/best", "--metrics", "sliced_wasserstein", "--count", "20"]
    done = CliRunner().invoke(main, given, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "faces: checkpoint of 72 images (newest), EMA"
    assert lines[1] == "faces: checkpoint of 48 images, EMA"
    assert re.match(r"\| +\| +faces \| +faces/best \|", done.stdout)
    scores = ray_gen.evaluate("faces", metrics=["sliced_wasserstein"], count=20, checkpoint=24)
    assert "24" in str(scores["sliced_wasserstein"].protocol)
    with pytest.raises(Refused, match=r"evaluation\.features\.run: no run 'fces'.*mean faces"):
        ray_gen.evaluate("faces", metrics=["fid"], features={"kind": "run", "run": "fces"})


def test_a_discriminator_has_no_average(
    store_8: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the line does not say EMA."""
    monkeypatch.setenv("RAY_GEN_STORAGE", str(here / "runs"))
    this = gan("training.images=24")
    folder = here / "runs" / "g" / checkpoint_name(24)
    folder.mkdir(parents=True)
    trained(this, store_8)[0].save(folder, this)
    CliRunner().invoke(main, ["sample", "g", "--count", "2", "--output", "images"])
    done = CliRunner().invoke(main, ["discriminate", "g", "images"], catch_exceptions=False)
    assert done.stderr.startswith("g: checkpoint of 24 images (newest), raw weights\n2 images")
