"""Rows that hold the path of an image and not its bytes; rows of Arrow folders."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_gen.data import ArrowFolder, DataError, Parquet, Store, open_stream
from ray_gen.data.told import remarks
from tests.data.pictures import noise, opened, write
from tests.data.test_parquet import HF_IMAGE, hf, png, same, write_table


def paths(*given: str) -> pa.Array:
    return pa.array([{"bytes": None, "path": path} for path in given], HF_IMAGE)


@pytest.mark.parametrize("form", ["struct", "strings"])
@pytest.mark.parametrize("uri", [False, True])
def test_paths_begin_beside_the_shard_and_then_at_the_root(
    form: str, uri: bool, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    write(root / "shards" / "images" / "0.png", noise(6, 6, 3, 0))
    write(root / "images" / "1.png", noise(6, 6, 3, 1))
    write(root / "images" / "0.png", noise(6, 6, 3, 9))  # not this one
    more = write(root / "more" / "2.png", noise(6, 6, 3, 2))
    whole = more.as_uri() if uri else str(more)
    names = ["images/0.png", "images/1.png", str(more), whole]
    column = paths(*names) if form == "struct" else pa.array(names)
    write_table(root / "shards" / "a.parquet", image=column, label=[0, 1, 0, 1])
    place = root.as_uri() if uri else str(root)
    store = opened(Parquet(path=place, image_column="image"), tmp_path / "cache")
    assert same(store.train.images_NHWC[:3], range(3))
    assert np.array_equal(store.train.images_NHWC[3], noise(6, 6, 3, 2))
    assert store.train.labels is not None and store.train.labels.tolist() == [0, 1, 0, 1]


def test_a_missing_file_of_a_row_is_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "0.png", noise(6, 6, 3, 0))
    write_table(root / "in" / "a.parquet", image=paths("0.png", "gone/1.png", "/gone/2.png"))
    source = Parquet(path=str(root))
    with pytest.raises(
        DataError,
        match=rf"^data\.path: {root}/in/a\.parquet, row 1 cannot be decoded: its row holds no"
        rf" bytes, but the path gone/1\.png, and there is no such file in {root}/in or {root};"
        r" remove it, or set data\.on_corrupt=skip[^\n]*$",
    ):
        opened(source, tmp_path / "cache")
    assert opened(source, tmp_path / "cache", on_corrupt="skip").skipped == 2


@pytest.mark.parametrize("text", ["iVBORw0KGgoA" * 90, "a/" * 3000, "/" + "a" * 300, "a\0b"])
def test_a_text_that_is_no_path_has_a_short_sentence(text: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", image=pa.array([text]))
    with pytest.raises(DataError, match="row 0 cannot be decoded: its row holds no bytes") as told:
        opened(Parquet(path=str(path), image_column="image"), tmp_path / "cache")
    assert len(str(told.value)) < 500 + 2 * len(str(tmp_path))


def test_a_changed_file_of_a_row_is_decoded_again(tmp_path: Path) -> None:
    image = write(tmp_path / "set" / "0.png", noise(6, 6, 3, 0))
    write_table(tmp_path / "set" / "a.parquet", image=paths("0.png"))
    source = Parquet(path=str(tmp_path / "set"))
    first = opened(source, tmp_path / "cache")
    assert opened(source, tmp_path / "cache").digest == first.digest
    write(image, noise(6, 6, 3, 5))
    os.utime(image, (1, 1))
    assert same(opened(source, tmp_path / "cache").train.images_NHWC, range(5, 6))


def stream_of(source: Parquet, cache: Path) -> Store:
    return open_stream(
        source,
        window=4,
        cache_folder=cache,
        image_size=None,
        center_crop=None,
        channels=None,
        held_out_fraction=0.0,
        on_corrupt="stop",
    )


def test_a_changed_file_of_a_row_is_decoded_again_for_a_stream(tmp_path: Path) -> None:
    image = write(tmp_path / "set" / "0.png", noise(6, 6, 3, 0))
    write_table(tmp_path / "set" / "a.parquet", image=paths("0.png"))
    source = Parquet(path=str(tmp_path / "set"))
    first = stream_of(source, tmp_path / "cache")
    assert stream_of(source, tmp_path / "cache").digest == first.digest
    write(image, noise(6, 6, 3, 5))
    os.utime(image, (1, 1))
    second = stream_of(source, tmp_path / "cache")
    assert same(second.train.images_NHWC, range(5, 6)) and second.digest != first.digest


def test_a_file_of_a_row_that_changes_while_a_stream_reads_stops_it(tmp_path: Path) -> None:
    image = write(tmp_path / "set" / "0.png", noise(6, 6, 3, 0))
    write_table(tmp_path / "set" / "a.parquet", image=paths("0.png"))
    stream = stream_of(Parquet(path=str(tmp_path / "set")), tmp_path / "cache").stream
    assert stream is not None
    for _ in range(2):
        stream.read(0)[0].load()
    write(image, noise(6, 6, 3, 5))
    os.utime(image, (1, 1))
    with pytest.raises(DataError, match=rf"^data\.path: {image} was changed while it was in use; "):
        stream.read(0)[0].load()


def test_rows_name_no_web_addresses(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", image=paths("https://example.org/0.png"))
    with pytest.raises(DataError, match=r"lies outside of the data set"):
        opened(Parquet(path=str(tmp_path / "a.parquet")), tmp_path / "cache")


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../secret.png", "a/../../secret.png", "s3://b/k"]
)
def test_rows_name_no_file_outside_of_the_data_set(path: str, tmp_path: Path) -> None:
    write(tmp_path / "secret.png", noise(6, 6, 3))
    write_table(tmp_path / "set" / "a.parquet", image=paths(path))
    with pytest.raises(DataError, match=r"lies outside of the data set"):
        opened(Parquet(path=str(tmp_path / "set")), tmp_path / "cache")


def test_rows_name_no_pipe(tmp_path: Path) -> None:
    write_table(tmp_path / "set" / "a.parquet", image=paths("pipe"))
    os.mkfifo(tmp_path / "set" / "pipe")
    with pytest.raises(DataError, match=r"pipe, which is no file"):
        opened(Parquet(path=str(tmp_path / "set")), tmp_path / "cache")


def features(names: list[str] | None) -> dict[bytes, bytes]:
    label = {"_type": "ClassLabel", "names": names} if names else {"_type": "Value"}
    told = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    return {b"huggingface": json.dumps(told).encode()}


def saved(
    folder: Path, seeds: range, shards: int = 1, batch: int = 3, names: Any = None, **columns: Any
) -> Path:
    """As Dataset.save_to_disk writes it."""
    folder.mkdir(parents=True)
    table = pa.table({"image": hf(seeds), **columns}).replace_schema_metadata(features(names))
    files: list[dict[str, str]] = []
    each = -(-len(table) // shards)
    for shard in range(shards):
        name = f"data-{shard:05}-of-{shards:05}.arrow"
        files.append({"filename": name})
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table.slice(each * shard, each), batch)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    return folder


def saved_splits(folder: Path, **splits: Any) -> Path:
    for name, arguments in splits.items():
        saved(folder / name, **arguments)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def test_an_arrow_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", range(20), 3, names=["cat", "dog"], label=[0, 1] * 10)
    store = opened(ArrowFolder(path=str(folder)), tmp_path / "cache")
    assert same(store.train.images_NHWC, range(20))
    assert store.class_names == ("cat", "dog")
    assert store.train.labels is not None and store.train.labels.tolist() == [0, 1] * 10


def test_its_images_are_those_of_the_same_table_as_parquet(tmp_path: Path) -> None:
    columns = {"label": ["b", "a", None, "b"], "fine": [5, 1, 10001, 5]}
    write_table(tmp_path / "a.parquet", image=hf(range(4)), **columns)
    folder = saved(tmp_path / "set", range(4), **columns)
    for settings in ({}, {"label_column": "fine"}, {"labels": "none"}):
        parquet = opened(Parquet(path=str(tmp_path / "a.parquet"), **settings), tmp_path / "cache")
        arrow = opened(ArrowFolder(path=str(folder), **settings), tmp_path / "cache")
        assert arrow.digest == parquet.digest and arrow.class_names == parquet.class_names
        told = [
            re.sub(r"\S+(arrow|parquet);", "FILE;", "\n".join(remarks(s))) for s in (arrow, parquet)
        ]
        assert told[0] == told[1]


def test_the_splits_are_the_keys_of_a_dict(tmp_path: Path) -> None:
    folder = saved_splits(
        tmp_path / "set",
        train={"seeds": range(10), "label": [0, 1] * 5},
        test={"seeds": range(10, 14), "label": [0, 1] * 2},
        validation={"seeds": range(20, 23), "label": [0, 1, 0]},
    )
    store = opened(ArrowFolder(path=str(folder)), tmp_path / "cache", held_out_fraction=0.5)
    assert same(store.train.images_NHWC, range(10))
    assert same(store.held_out.images_NHWC, range(20, 23))


def test_rows_of_an_arrow_folder_that_hold_paths(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", range(2))
    write(folder / "images" / "7.png", noise(6, 6, 3, 7))
    table = pa.table({"image": paths("images/7.png")})
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    store = opened(ArrowFolder(path=str(folder)), tmp_path / "cache")
    assert same(store.train.images_NHWC, range(7, 8))


def test_what_is_no_arrow_folder_has_its_sentence(tmp_path: Path) -> None:
    def refused(folder: Path | str, message: str, **settings: Any) -> None:
        with pytest.raises(DataError, match=message):
            opened(ArrowFolder(path=str(folder), **settings), tmp_path / "cache")

    refused(tmp_path / "nowhere", "does not exist on the machine that reads it")
    refused(tmp_path, r"has neither dataset_dict\.json nor state\.json, so datasets\.save_to_disk")
    folder = saved(tmp_path / "set", range(4))
    refused(folder, "no column 'picture'; it has image", image_column="picture")
    refused("s3://bucket/set", "is a URI, and Arrow files are read only from a disk")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{}]}))
    refused(folder, r"holds a selection of rows .* flatten_indices\(\)")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../a"}]}))
    refused(folder, "names no files")
    (folder / "state.json").write_text("{")
    refused(folder, r"state\.json is not JSON")
    (folder / "state.json").write_text(json.dumps(state))
    file = folder / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(folder, r"\.arrow is not a whole Arrow file")
    file.unlink()
    refused(folder, "cannot be read: no such file or directory")


def test_a_corrupt_row_of_an_arrow_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", range(3))
    stored = [png(0), png(1)[:60], b""]
    table = pa.table({"image": pa.array(stored)})
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    source = ArrowFolder(path=str(folder))
    with pytest.raises(DataError, match=r"00001\.arrow, row 1 cannot be decoded"):
        opened(source, tmp_path / "cache")
    assert opened(source, tmp_path / "cache", on_corrupt="skip").skipped == 2
