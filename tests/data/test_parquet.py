"""Parquet files: Hugging Face's layout, plain columns, shards, URIs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_gen.data import DataError, Parquet
from tests.data.pictures import noise, opened

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(seed: int) -> bytes:
    """An encoded RGB image of 6×6."""
    file = io.BytesIO()
    Image.fromarray(noise(6, 6, 3, seed)).save(file, "PNG")
    return file.getvalue()


def hf(seeds: range) -> pa.Array:
    return pa.array([{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds], HF_IMAGE)


def write_table(path: Path, metadata: dict[str, str] | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=5)
    return path


def same(images_NHWC: Any, seeds: range) -> bool:
    return np.array_equal(images_NHWC.numpy(), np.stack([noise(6, 6, 3, seed) for seed in seeds]))


def test_the_layout_of_hugging_face(tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    path = write_table(
        tmp_path / "a.parquet",
        {"huggingface": json.dumps(names)},
        label=[0, 1] * 6,
        image=hf(range(12)),
    )
    store = opened(Parquet(path=str(path)), tmp_path / "cache")
    assert same(store.train.images_NHWC, range(12))
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [0, 1] * 6
    assert store.class_names == ("cat", "dog")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_a_plain_binary_column_without_labels(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([png(seed) for seed in range(7)], kind)
    path = write_table(tmp_path / "a.parquet", picture=column, caption=["x"] * 7)
    store = opened(Parquet(path=str(path)), tmp_path / "cache")
    assert same(store.train.images_NHWC, range(7))
    assert store.train.labels is None


@pytest.mark.parametrize("encoded", [False, True])
def test_labels_that_are_words_become_classes_in_the_order_of_their_names(
    tmp_path: Path, encoded: bool
) -> None:
    words = pa.array(["pear", "apple", "pear", "fig"])
    column = words.dictionary_encode() if encoded else words
    path = write_table(tmp_path / "a.parquet", image=hf(range(4)), fruit=column)
    store = opened(Parquet(path=str(path), label_column="fruit"), tmp_path / "cache")
    assert store.class_names == ("apple", "fig", "pear")
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [2, 0, 2, 1]


def test_shards_are_one_data_set_and_a_further_shard_moves_no_image(tmp_path: Path) -> None:
    for shard in range(3):
        seeds = range(20 * shard, 20 * shard + 20)
        write_table(tmp_path / "data" / f"part-{shard}.parquet", image=hf(seeds))
    (tmp_path / "data" / "_SUCCESS").touch()
    source = Parquet(path=str(tmp_path / "data"))
    all_images = opened(source, tmp_path / "cache").train.images_NHWC
    assert same(all_images, range(60))

    before = opened(source, tmp_path / "cache", held_out_fraction=0.3)
    write_table(tmp_path / "data" / "more" / "part.parquet", image=hf(range(60, 80)))
    after = opened(source, tmp_path / "cache", held_out_fraction=0.3)
    assert len(after.train) + len(after.held_out) == 80

    def rows(images_NHWC: Any) -> set[bytes]:
        return {image.numpy().tobytes() for image in images_NHWC}

    assert rows(before.train.images_NHWC) < rows(after.train.images_NHWC)
    assert rows(before.held_out.images_NHWC) < rows(after.held_out.images_NHWC)


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "test.parquet"),
        ("train.parquet", "test.parquet", None),
        ("default/train/0000.parquet", "default/test/0000.parquet", None),
    ],
)
def test_names_of_shards_tell_the_splits(tmp_path: Path, names: tuple[str | None, ...]) -> None:
    for index, name in enumerate(names):
        if name is not None:
            write_table(tmp_path / "data" / name, image=hf(range(10 * index, 10 * index + 10)))
    settings = {"held_out_fraction": 0.5}  # of no effect
    store = opened(Parquet(path=str(tmp_path / "data")), tmp_path / "cache", **settings)
    assert same(store.train.images_NHWC, range(10))
    assert same(store.held_out.images_NHWC, range(10, 20))


def test_a_uri_is_read_through_arrow(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", image=hf(range(3)))
    by_uri = opened(Parquet(path=path.as_uri()), tmp_path / "cache")
    assert same(by_uri.train.images_NHWC, range(3))
    assert by_uri.path == opened(Parquet(path=str(path)), tmp_path / "cache").path


def test_a_corrupt_row_is_named_or_skipped(tmp_path: Path) -> None:
    stored = [png(0), png(1)[:60], None, png(3), b""]
    structs = [{"bytes": data, "path": "elsewhere.png"} for data in stored]
    path = write_table(tmp_path / "a.parquet", image=pa.array(structs, HF_IMAGE), label=range(5))
    source = Parquet(path=str(path))
    with pytest.raises(DataError, match=r"data\.path: \S*a\.parquet, row 1 cannot be decoded"):
        opened(source, tmp_path / "cache")
    store = opened(source, tmp_path / "cache", on_corrupt="skip")
    assert store.skipped == 3
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [0, 3]


def test_the_columns_that_are_named_are_used(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "a.parquet", first=hf(range(3)), second=hf(range(3, 6)), digit=[3, 1, 2]
    )
    source = Parquet(path=str(path), image_column="second", label_column="digit")
    store = opened(source, tmp_path / "cache")
    assert same(store.train.images_NHWC, range(3, 6))
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [2, 0, 1]
    assert store.class_names == ("1", "2", "3") and store.label_count == 3


def test_each_file_that_holds_no_data_set_has_its_sentence(tmp_path: Path) -> None:
    def refused(message: str, path: Path | str, **columns: str) -> None:
        with pytest.raises(DataError, match=message):
            opened(Parquet(path=str(path), **columns), tmp_path / "cache")

    refused(r"data\.path: \S*nowhere\.parquet does not exist", tmp_path / "nowhere.parquet")
    refused(r"data\.path: gopher://x is not a URI that can be read", "gopher://x")
    (tmp_path / "empty").mkdir()
    refused(r"empty has no files .*\.parquet.*data\.kind=folder", tmp_path / "empty")
    (tmp_path / "text.parquet").write_text("not a table, though long enough to look at")
    refused(r"text\.parquet is not a whole Parquet file", tmp_path / "text.parquet")

    plain = write_table(tmp_path / "plain.parquet", x=[1.5], label=["a"])
    refused(r"data\.path: .*no column of encoded images.*x: double, label: string", plain)
    refused(r"data\.image_column: 'x' of .* is double", plain, image_column="x")
    refused(r"data\.image_column: .* no column 'y'; it has x, label", plain, image_column="y")

    both = write_table(
        tmp_path / "both.parquet", image=hf(range(2)), mask=hf(range(2)), kind=[0.5, 1]
    )
    refused(r"data\.image_column: .*several columns .*\(image, mask\)", both)
    columns = {"image_column": "image"}
    refused(r"data\.label_column: .* did you mean kind\?", both, label_column="kinds", **columns)
    refused(r"data\.label_column: row 0 of .* has 0\.5", both, label_column="kind", **columns)
    refused(r"data\.label_column: 'mask' of .* is struct", both, label_column="mask", **columns)

    none = write_table(tmp_path / "none.parquet", image=hf(range(0)))
    refused(r"data\.path: the data set has no images", none)

    write_table(tmp_path / "odd" / "a.parquet", image=hf(range(1)))
    write_table(tmp_path / "odd" / "b.parquet", picture=hf(range(1)))
    refused(r"b\.parquet has no column 'image', unlike \S*a\.parquet", tmp_path / "odd")
    for name in ("train-0", "test-0", "extra-0"):
        write_table(tmp_path / "splits" / f"{name}.parquet", image=hf(range(1)))
    refused(r"train and test, but .* extra-0\.parquet tells no split", tmp_path / "splits")
