"""Any source as sharded Parquet: nothing lost, nothing changed, and it goes on where it ended."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_gen.data import DataError, Mnist5k, Parquet, Store, open_store
from ray_gen.data import ImageFolder as Pictures
from ray_gen.data import convert as module
from ray_gen.data.convert import Conversion, Layout
from ray_gen.data.sources.base import Source
from ray_gen.data.sources.parquet import MANIFEST, PLAN
from ray_gen.data.wanted import Wanted
from ray_gen.storage import Folder
from tests.data.pictures import damage, opened, write, write_classes

EIGHT = Wanted((8, 8), None, 3)


def conversion(
    source: Source, to: Path, wanted: Wanted | None = EIGHT, **changes: Any
) -> Conversion:
    given: dict[str, Any] = {
        "held_out_fraction": 0.2,
        "skip_corrupt": False,
        "shard_images": 16,
        "group_images": 5,
        "seed": 0,
    }
    return Conversion(source, Layout(wanted, **{**given, **changes}), Folder(str(to)))


def converted(source: Source, to: Path, wanted: Wanted | None = EIGHT, **changes: Any) -> dict:
    this = conversion(source, to, wanted, **changes)
    this.destination.write_text(PLAN, this.plan)
    for part in this.missing():
        this.write(part)
    return this.finish()


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    return Pictures(path=str(write_classes(tmp_path / "in", {"cat": 30, "dog": 50})))


def contents(store: Store) -> dict[str, Counter]:
    """(pixels, class) of each split, in no order."""
    found = {}
    for name in ("train", "held_out"):
        split = getattr(store, name)
        labels = [None] * len(split) if split.labels is None else split.labels.tolist()
        images = [image.numpy().tobytes() for image in split.images_NHWC]
        found[name] = Counter(zip(images, labels, strict=True))
    return found


def mapped(source: Source, cache: Path, fraction: float = 0.2) -> Store:
    return open_store(
        source,
        image_size=8,
        center_crop=None,
        channels=3,
        held_out_fraction=fraction,
        on_corrupt="stop",
        cache_folder=cache,
    )


@pytest.mark.parametrize("wanted", [EIGHT, None])
def test_what_is_read_is_what_was_written(pictures, tmp_path: Path, wanted: Any) -> None:
    manifest = converted(pictures, tmp_path / "out", wanted)
    before, after = (
        mapped(pictures, tmp_path / "a"),
        mapped(Parquet(path=str(tmp_path / "out")), tmp_path / "b"),
    )
    assert contents(after) == contents(before)
    assert after.class_names == ("cat", "dog")
    assert manifest["images"] == {"train": len(before.train), "validation": len(before.held_out)}
    files = {path.name for path in (tmp_path / "out").glob("*.parquet")}
    assert set(manifest["shards"]) == files


def test_files_are_kept_as_they_are(pictures, tmp_path: Path) -> None:
    converted(pictures, tmp_path / "out", None)
    written = Counter(path.read_bytes() for path in (tmp_path / "in").rglob("*.png"))
    read: Counter[bytes] = Counter()
    for file in (tmp_path / "out").glob("*.parquet"):
        read.update(row["bytes"] for row in pq.read_table(file)["image"].to_pylist())
    assert read == written


def test_pixels_of_parquet_and_built_in_data(tmp_path: Path) -> None:
    manifest = converted(Mnist5k(), tmp_path / "one", None, shard_images=2000, group_images=256)
    assert manifest["images"] == {"train": 4000, "validation": 1000}
    again = conversion(
        Parquet(path=str(tmp_path / "one")), tmp_path / "two", Wanted((28, 28), None, 1),
        shard_images=2000, group_images=256,
    )  # fmt: skip
    for part in again.missing():
        again.write(part)
    again.finish()
    ours = opened(Parquet(path=str(tmp_path / "two")), tmp_path / "cache")
    theirs = opened(Mnist5k(), tmp_path / "cache")
    assert contents(ours) == contents(theirs)


def test_what_is_there_is_not_written_again(pictures, tmp_path: Path, monkeypatch) -> None:
    whole = converted(pictures, tmp_path / "whole")
    for part in (2, 0):
        conversion(pictures, tmp_path / "out").write(part)
    later = conversion(pictures, tmp_path / "out")
    assert later.missing() == [1, 3, 4]
    for part in later.missing():
        later.write(part)
    assert later.finish() == whole
    assert not later.missing()


def test_a_part_that_lost_a_file_is_written_again(pictures, tmp_path: Path, monkeypatch) -> None:
    whole = converted(pictures, tmp_path / "out")
    this = conversion(pictures, tmp_path / "out")
    shard = next((tmp_path / "out").glob("*-00003-of-*.parquet"))
    content = shard.read_bytes()
    for change in (shard.unlink, lambda: shard.write_bytes(content[:-10])):
        change()
        with pytest.raises(DataError, match=rf"{shard.name} in .* is (missing|not whole), by the"):
            mapped(Parquet(path=str(tmp_path / "out")), tmp_path / "cache")
        assert this.missing() == [3]
        monkeypatch.setattr(module.Folder, "put", lambda *_: (_ for _ in ()).throw(OSError("away")))
        with pytest.raises(OSError, match="away"):
            this.write(3)
        monkeypatch.undo()
        assert this.missing() == [3]
        this.write(3)
        assert this.finish() == whole and shard.read_bytes() == content
    for file in (tmp_path / "out" / "_parts").iterdir():  # as older versions wrote them
        record = json.loads(file.read_text())
        for told in record["splits"].values():
            del told["bytes"]
        file.write_text(json.dumps(record))
    assert this.missing() == []


def test_somebody_elses_manifest_is_not_read(pictures, tmp_path: Path) -> None:
    converted(pictures, tmp_path / "out")
    for told in ({"shards": {"0": {"path": "a"}}}, {"shards": [1]}, [], "no"):
        (tmp_path / "out" / MANIFEST).write_text(json.dumps(told))
        mapped(Parquet(path=str(tmp_path / "out")), tmp_path / "cache")


def test_a_conversion_that_was_cut_off_is_not_read(pictures, tmp_path: Path) -> None:
    this = conversion(pictures, tmp_path / "out")
    this.destination.write_text(PLAN, this.plan)
    this.write(0)
    with pytest.raises(DataError, match="conversion did not finish; run the same"):
        mapped(Parquet(path=str(tmp_path / "out")), tmp_path / "cache")


def test_a_part_whose_writing_fails_leaves_nothing(pictures, tmp_path: Path, monkeypatch) -> None:
    this = conversion(pictures, tmp_path / "out")
    monkeypatch.setattr(module.Folder, "put", lambda *_: (_ for _ in ()).throw(OSError("away")))
    with pytest.raises(OSError, match="away"):
        this.write(1)
    assert this.missing() == [0, 1, 2, 3, 4]
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_row_groups_are_small_and_mixed(pictures, tmp_path: Path, monkeypatch) -> None:
    converted(pictures, tmp_path / "out", held_out_fraction=0.0, shard_images=40, group_images=20)
    files = list((tmp_path / "out").glob("*.parquet"))
    assert len(files) == 2
    for file in files:
        shard = pq.ParquetFile(file)
        sizes = [shard.metadata.row_group(n).num_rows for n in range(shard.num_row_groups)]
        assert sizes == [20, 20]
        for group in range(2):
            labels = shard.read_row_group(group)["label"].to_pylist()
            assert set(labels) == {0, 1}  # the folder lies by class
    monkeypatch.setattr(module, "GROUP_BYTES", 8 * 8 * 3 * 4)
    converted(pictures, tmp_path / "bytes", held_out_fraction=0.0, shard_images=40, group_images=20)
    shard = pq.ParquetFile(tmp_path / "bytes" / "train-00000-of-00002.parquet")
    assert shard.metadata.row_group(0).num_rows == 4


def test_equal_seeds_write_equal_files(pictures, tmp_path: Path) -> None:
    digests = [
        converted(pictures, tmp_path / str(number), seed=seed)["digest"]
        for number, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_corrupt_files_stop_it_or_are_counted(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "in", {"cat": 20})
    bad = damage(sorted(folder.rglob("*.png"))[7])
    source = Pictures(path=str(folder))
    with pytest.raises(DataError, match=f"{bad.name} cannot be decoded"):
        converted(source, tmp_path / "out")
    manifest = converted(source, tmp_path / "skipped", skip_corrupt=True)
    assert manifest["skipped"] == 1
    assert sum(manifest["images"].values()) == 19


def test_a_plan_is_of_its_source_and_layout(pictures, tmp_path: Path) -> None:
    plans = [
        conversion(pictures, tmp_path / "out").plan,
        conversion(pictures, tmp_path / "out", group_images=6).plan,
        conversion(Mnist5k(), tmp_path / "out").plan,
    ]
    assert len(set(plans)) == 3
    assert plans[0] == conversion(pictures, tmp_path / "elsewhere").plan
    write_classes(tmp_path / "in", {"dog": 51})
    assert conversion(pictures, tmp_path / "out").plan != plans[0]


def test_the_manifest_tells_what_there_is(pictures, tmp_path: Path) -> None:
    converted(pictures, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["class_names"] == ["cat", "dog"]
    assert sum(shard["images"] for shard in manifest["shards"].values()) == 80
    assert np.all([len(shard["digest"]) == 32 for shard in manifest["shards"].values()])


@pytest.mark.parametrize("element", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_pixels_of_any_channels_and_bits_come_back(
    element: str, channels: int, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    most = 4095 if element == "uint16" else 255
    for index in range(12):
        values = np.random.default_rng(index).integers(0, most + 1, (8, 8, channels))
        np.save(tmp_path / "in" / f"{index:02}.npy", values.astype(element))
    source = Pictures(path=str(tmp_path / "in"))
    direct = opened(source, tmp_path / "cache", element=element, channels=channels)
    assert not direct.opacity
    wanted = Wanted(
        (8, 8),
        None,
        channels,
        opacity=direct.opacity,
        value_range=direct.found.value_range,
        element=element,
    )
    converted(source, tmp_path / "out", wanted, held_out_fraction=0.0)
    back = Parquet(path=str(tmp_path / "out"))
    store = opened(back, tmp_path / "cache", element=element, channels=channels)
    assert contents(store)["train"] == contents(direct)["train"]
    assert not store.opacity


@pytest.mark.parametrize("element", ["uint8", "uint16"])
def test_opacity_comes_back(element: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / "0.png", np.full((8, 8, 4), 60, np.uint8))
    source = Pictures(path=str(tmp_path / "in"))
    direct = opened(source, tmp_path / "cache", element=element, channels=4)
    wanted = Wanted((8, 8), None, 4, opacity=direct.opacity, element=element)
    converted(source, tmp_path / "out", wanted, held_out_fraction=0.0)
    back = Parquet(path=str(tmp_path / "out"))
    store = opened(back, tmp_path / "cache", element=element, channels="auto")
    assert direct.opacity and store.opacity
    assert contents(store)["train"] == contents(direct)["train"]


def test_files_of_any_kind_are_stored_unchanged(tmp_path: Path) -> None:
    for index in range(6):
        values = np.full((8, 8), 100 * index, np.uint16)
        write(tmp_path / "in" / f"{index}.png", values)
    source = Pictures(path=str(tmp_path / "in"))
    converted(source, tmp_path / "out", None, held_out_fraction=0.0)
    store = opened(Parquet(path=str(tmp_path / "out")), tmp_path / "cache")
    assert store.found.value_range == (0.0, 1023.0)
    assert contents(store)["train"] == contents(opened(source, tmp_path / "cache"))["train"]


def test_a_plan_tells_its_settings(pictures, tmp_path: Path) -> None:
    plan = json.loads(conversion(pictures, tmp_path / "out", shard_images=7, seed=3).plan)
    assert plan["settings"]["--shard-images"] == 7 and plan["settings"]["--seed"] == 3
