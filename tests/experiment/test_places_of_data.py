"""Which source a path, a URI or a short form means, and where its paths lead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ray_gen.experiment import Experiment, ExperimentError, data_settings
from ray_gen.experiment.data import JoinedData
from ray_gen.pipeline.pretrained import published
from ray_gen.settings import absolute_path, differences
from tests.experiment.test_experiment import GAN

DATA = "data: mnist5k\n"
BARE = re.sub("data: .*\n", DATA, GAN)

KINDS = {
    "a.zip": "zip",
    "A.ZIP": "zip",
    "a.tar": "tar",
    "a.tar.gz": "tar",
    "a.parquet": "parquet",
    "paths.txt": "list",
    "paths.CSV": "list",
    "s3://bucket/a": "parquet",
    "hf://datasets/somebody/digits@main/data": "parquet",
    "mnist5k": "mnist5k",
    "zip:a": "zip",
    "tar:shard-{000..009}.tar": "tar",
    "list:a.txt": "list",
    "arrow:a": "arrow",
    "torchvision:CIFAR10": "torchvision",
}


@pytest.mark.parametrize("source", KINDS)
def test_a_path_tells_its_kind(source: str) -> None:
    data: Any = data_settings(source)
    assert data.kind == KINDS[source]
    path = getattr(data, "path", None)
    assert path is None or path == absolute_path(source.removeprefix(f"{data.kind}:"))
    assert Experiment.from_yaml(BARE, [f"data={source}"]).absolute().data == data
    assert data_settings(data.short_form) == data


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["0.png", "cat/1.png"], "folder"),
        ([], "folder"),
        (["train-0.parquet", "test-0.parquet", "_manifest.json", ".crc"], "parquet"),
        (["0.tar", "1.tar"], "tar"),
        (["0.tar", "1.png"], "folder"),
        (["dataset_info.json", "state.json", "data-0.arrow"], "arrow"),
        (["dataset_dict.json", "train/state.json"], "arrow"),
    ],
)
def test_a_folder_tells_its_kind(names: list[str], kind: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    assert data_settings(str(root)).kind == kind
    assert Experiment.from_yaml(BARE, [f"data={root}"]).data.kind == kind


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "mnist5k").mkdir()
    monkeypatch.chdir(tmp_path)
    assert data_settings("images").kind == data_settings("./mnist5k").kind == "folder"
    assert data_settings("mnist5k").kind == "mnist5k"


def test_what_tells_no_kind_is_refused(tmp_path: Path) -> None:
    def refused(source: str, message: str) -> None:
        with pytest.raises(ExperimentError, match=message):
            data_settings(source)

    refused("mnits5k", r"data: 'mnits5k' is no kind of data .*did you mean mnist5k\?")
    refused(
        f"{tmp_path}/gone",
        rf"data: .{tmp_path}/gone. is no kind of data and no path on this machine; .*folder:",
    )
    for kind in ("folder", "zip", "tar", "list", "parquet", "arrow"):
        refused(f"{kind}:", rf"{kind} needs its path right after a colon")
    (tmp_path / "a.7z").touch()
    refused(f"{tmp_path}/a.7z", rf"data: \S*a\.7z. is a file .*\.zip.*data=list:{tmp_path}/a\.7z$")
    for short in ("joined", "joined:a+b"):
        refused(short, r"^data: joined needs its sources, e\.g\. data='\{kind: joined")


def test_a_bad_path_is_named_by_its_field() -> None:
    web = r"http://x/y: .*nothing on the web; .*download"
    for source, field in (("parquet:http://x/y", "data.path"), ("http://x/y", "data")):
        with pytest.raises(ExperimentError, match=rf"^{field}: {web}"):
            data_settings(source)
        with pytest.raises(ExperimentError, match=rf"^{field}: {web}"):
            Experiment.from_yaml(BARE, [f"data={source}"])
    with pytest.raises(ExperimentError, match=rf"^data\.path: {web}"):
        data_settings("{kind: parquet, path: http://x/y}")


def test_a_mapping_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    text = (
        f"{{kind: joined, sources: [folder:{tmp_path}/a, zip:{tmp_path}/b.zip], weights: [1, 2]}}"
    )
    data = data_settings(text, ["data.weights=[2, 1]"])
    assert isinstance(data, JoinedData) and data.weights == (2, 1)
    assert [source.kind for source in data.sources] == ["folder", "zip"]


JOINED = """
data:
  kind: joined
  sources:
    - folder:pictures
    - {kind: zip, path: ~/a.zip, splits: none}
    - {kind: parquet, path: "s3://bucket/a"}
  weights: [3, 1, 1]
"""


def joined(*assignments: str) -> Experiment:
    return Experiment.from_yaml(BARE.replace(DATA, JOINED), assignments)


def test_paths_of_joined_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    experiment = joined().absolute()
    assert isinstance(experiment.data, JoinedData)
    paths = [source.path for source in experiment.data.sources]  # pyright: ignore
    assert paths == [f"{tmp_path}/pictures", f"{tmp_path}/home/a.zip", "s3://bucket/a"]
    assert Experiment.from_yaml(experiment.to_yaml()) == experiment
    shown = published(experiment).to_yaml()
    assert str(tmp_path) not in shown and "path: a.zip" in shown


def test_a_joined_source_may_move_but_not_change() -> None:
    moved = joined("data.sources.0.path=elsewhere")
    assert list(differences(moved, joined())) == []
    other = joined("data.sources.1.splits=auto", "data.weights=[1, 1, 1]")
    assert list(differences(other, joined())) == [
        "data.sources.1.splits: 'auto' here, 'none' there",
        "data.weights: (1.0, 1.0, 1.0) here, (3.0, 1.0, 1.0) there",
    ]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.sources=[joined]", r"data\.sources\.0: joined sources cannot be joined again"),
        ("data.sources=[{kind: joined, sources: []}]", r"data\.sources\.0: joined sources cannot"),
        (
            "data.sources.0.image_size=8",
            r"data\.sources\.0\.image_size: is one for all .* set data",
        ),
        ("data.sources.2.placement=stream", r"data\.sources\.2\.placement: .*cannot be streamed"),
        ("data.placement=stream", "stream reads only Parquet files"),
        ("data.weights=[1, 2]", r"data\.weights: has 2 numbers for 3 sources"),
        ("data.weights=[1, 0, 1]", r"data\.weights\.1: .*greater than 0"),
        ("data.sources=[]", r"data\.sources: is empty"),
        (
            "data.sources.0.path2=x",
            r"data\.sources\.0\.path2: there is no such field; did you mean",
        ),
    ],
)
def test_joined_sources_that_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        joined(assignment)
