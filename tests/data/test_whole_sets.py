"""What stops a run, and what it tells, about a data set as a whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_gen.data import DataError, ImageFolder, Parquet
from ray_gen.data.told import remarks, summary
from tests.data.pictures import damage, noise, opened, write, write_classes


def folder(path: Path, **settings: Any) -> ImageFolder:
    return ImageFolder(path=str(path), **settings)


@pytest.mark.parametrize("name", ["x.ico", "x.pcx", "clip.mp4", "sub/readme.txt"])
def test_a_class_of_files_that_are_not_read_stops(name: str, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"a": 2, "b": 2})
    (root / "c" / name).parent.mkdir(parents=True)
    (root / "c" / name).write_bytes(b"anything")
    with pytest.raises(DataError, match=rf"\S*set/c has no images, but 1 \.{name[-3:]}"):
        opened(folder(root), tmp_path / "cache")
    store = opened(folder(root, labels="none"), tmp_path / "cache")
    assert len(store.train) == 4


def test_a_class_of_empty_folders_stops(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"a": 2, "b": 2})
    (root / "c" / "sub" / "deeper").mkdir(parents=True)
    with pytest.raises(DataError, match=r"\S*set/c is empty"):
        opened(folder(root), tmp_path / "cache")


@pytest.mark.parametrize("kind", ["empty", "truncated"])
def test_a_class_of_corrupt_images_stops_also_if_they_are_skipped(
    kind: str, tmp_path: Path
) -> None:
    root = write_classes(tmp_path / "set", {"a": 3, "b": 2}, size=32)
    damage(root / "a" / "000.png")
    for path in (root / "b").iterdir():
        path.write_bytes(b"") if kind == "empty" else damage(path)
    with pytest.raises(DataError, match=r"no image of class b can be decoded, not even \S*b/000"):
        opened(folder(root), tmp_path / "cache", on_corrupt="skip")
    write(root / "b" / "002.png", noise(32, 32, 3))
    assert opened(folder(root), tmp_path / "cache", on_corrupt="skip").skipped == 3


def test_an_empty_val_folder_beside_train_stops(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set" / "train", {"a": 2, "b": 2}).parent
    assert opened(folder(root), tmp_path / "cache").class_names == ("a", "b")
    (root / "val" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"\S*set/val is empty .*name of a split"):
        opened(folder(root), tmp_path / "cache")


def tiff(path: Path, pages: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(noise(8, 8, 1, seed)) for seed in range(pages)]
    images[0].save(path, save_all=True, append_images=images[1:])


def test_all_images_of_a_file_lie_in_one_split(tmp_path: Path) -> None:
    for number in range(40):
        tiff(tmp_path / "set" / f"{number}.tif", 5)
    source = folder(tmp_path / "set", frames="all")
    items = list(source.listing().items)
    assert len({item.key for item in items}) == 40 and len({item.name for item in items}) == 200
    store = opened(source, tmp_path / "cache", held_out_fraction=0.3)
    first = opened(folder(tmp_path / "set"), tmp_path / "cache", held_out_fraction=0.3)
    assert len(store.held_out) == 5 * len(first.held_out) > 0


MANY = ("tif", "gif", "webp", "png", "npy")


@pytest.mark.parametrize("suffix", MANY)
def test_files_of_which_only_the_first_image_is_read_are_told(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "set" / f"0.{suffix}"
    path.parent.mkdir()
    images = [Image.fromarray(noise(24, 24, 3, seed)) for seed in range(20)]
    if suffix == "npy":
        np.save(path, np.stack([np.asarray(image.convert("L")) for image in images]))
    else:
        images[0].save(path, save_all=True, append_images=images[1:])
    write(tmp_path / "set" / "1.png", images[0])
    told = list(remarks(opened(folder(tmp_path / "set"), tmp_path / "cache")))
    assert "1 file holds 20 images: the first is read; data.frames=all reads all" in told
    store = opened(folder(tmp_path / "set", frames="all"), tmp_path / "cache")
    assert len(store.train) == 21
    channels = folder(tmp_path / "set", frames="channels")
    if suffix != "tif":
        with pytest.raises(DataError, match=r"data\.frames: \S*set/0\..* holds 20 images in "):
            channels.listing()


def test_still_images_are_not_opened_to_count_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("png", "webp", "jpg", "bmp"):
        write(tmp_path / "set" / f"0.{suffix}", noise(8, 8, 3))
    source = folder(tmp_path / "set")
    monkeypatch.setattr(
        "ray_gen.data.sources.images.frames_of", lambda *_: pytest.fail("a still image was opened")
    )
    assert not source.listing().notes


def test_no_held_out_image_is_told_with_a_fraction_that_works(tmp_path: Path) -> None:
    for index in range(8):
        write(tmp_path / "set" / f"{index}.png", noise(8, 8, 3, index))
    store = opened(folder(tmp_path / "set"), tmp_path / "cache", held_out_fraction=0.01)
    told = next(remark for remark in remarks(store) if "holds out none of 8 images" in remark)
    fraction = float(told.rpartition(" ")[2])
    assert len(opened(folder(tmp_path / "set"), tmp_path / "cache",
                      held_out_fraction=fraction).held_out)  # fmt: skip
    none = opened(folder(tmp_path / "set"), tmp_path / "cache", held_out_fraction=0.0)
    assert not any("held_out" in remark for remark in remarks(none))


def test_classes_without_training_images_are_told(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set" / "train", {"a": 12, "b": 12}).parent
    write_classes(root / "test", {"a": 2, "c": 2, "d": 2})
    store = opened(folder(root), tmp_path / "cache")
    assert summary(store).endswith("4 classes")
    assert any("no training image is of class c and 1 more class;" in r for r in remarks(store))


def test_a_link_to_itself_is_a_link_to_nothing(tmp_path: Path) -> None:
    write(tmp_path / "set" / "0.png", noise(8, 8, 3))
    (tmp_path / "set" / "self").symlink_to("self")
    store = opened(folder(tmp_path / "set"), tmp_path / "cache")
    assert store.found.not_read == {"links to nothing": 1}
    (tmp_path / "set" / "self.png").symlink_to("self.png")
    with pytest.raises(DataError, match="it is a link to nothing"):
        opened(folder(tmp_path / "set"), tmp_path / "cache")
    assert opened(folder(tmp_path / "set"), tmp_path / "cache", on_corrupt="skip").skipped == 1


def test_parquet_of_held_out_splits_only_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(file, "PNG")
    table = pa.table({"image": [file.getvalue()] * 4})
    for name in ("test", "validation"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="validation and test and none of train; rename"):
        opened(Parquet(path=str(tmp_path)), tmp_path / "cache")
    one = Parquet(path=str(tmp_path / "test.parquet"))
    assert len(opened(one, tmp_path / "cache").train) == 4


@pytest.mark.parametrize("second", ["1.png,-1\n", ""])
def test_remarks_do_not_contradict_each_other(second: str, tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "set" / f"{index}.png", noise(8, 8, 3, index))
    (tmp_path / "set" / "metadata.csv").write_text(f"file_name,label\n0.png,7\n{second}2.png,8\n")
    told = list(remarks(opened(folder(tmp_path / "set"), tmp_path / "cache")))
    assert any(remark.startswith("classes are not used: 1 image has no class") for remark in told)
    assert not any(remark.startswith("classes are the") for remark in told)
    assert any(remark.startswith("labels are the column 'label' of ") for remark in told)
