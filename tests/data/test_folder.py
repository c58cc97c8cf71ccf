"""Folders of image files: classes, splits, and a sentence for every folder that is none."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_gen.data import DataError, ImageFolder, ImageList, ImageTar
from ray_gen.data.build import split_of
from tests.data.pictures import damage, noise, opened, write, write_classes


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "images", {"dog": 2, "cat": 3, "ant": 1})
    write(root / "cat" / "more" / "deep.png", noise(8, 8, 3))
    (root / "cat" / "notes").mkdir()
    (root / "cat" / "notes" / "readme.txt").write_text("no image")
    (root / ".hidden").mkdir()
    write(root / ".hidden" / "a.png", noise(8, 8, 3))
    write(root / "dog" / ".thumbnail.png", noise(8, 8, 3))
    store = opened(ImageFolder(path=str(root)), tmp_path / "cache")
    assert store.class_names == ("ant", "cat", "dog")
    assert store.label_count == 3
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert store.image_shape == (3, 8, 8)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "images" / f"{index}.png", noise(8, 8, 1))
    store = opened(ImageFolder(path=str(tmp_path / "images")), tmp_path / "cache")
    assert store.train.labels is None
    assert store.label_count is None
    assert store.class_names is None
    assert len(store.held_out) == 0


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_train_beside_a_held_out_folder_are_its_own_splits(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "images" / "train", {"a": 3, "b": 2})
    write_classes(tmp_path / "images" / name, {"b": 2})
    settings = {"held_out_fraction": 0.5}  # of no effect
    store = opened(ImageFolder(path=str(tmp_path / "images")), tmp_path / "cache", **settings)
    assert store.class_names == ("a", "b")
    assert store.train.labels is not None
    assert store.held_out.labels is not None
    assert store.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert store.held_out.labels.tolist() == [1, 1]


def test_a_validation_folder_is_held_out_before_a_test_folder(tmp_path: Path) -> None:
    for name, count in {"train": 4, "test": 3, "val": 2}.items():
        write_classes(tmp_path / "images" / name, {"a": count})
    store = opened(ImageFolder(path=str(tmp_path / "images")), tmp_path / "cache")
    assert (len(store.train), len(store.held_out)) == (4, 2)


def test_adding_images_moves_none_between_the_splits(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for index in range(60):
        write(root / f"{index:03}.png", noise(4, 4, 3, seed=index))

    def splits() -> tuple[set[bytes], set[bytes]]:
        store = opened(ImageFolder(path=str(root)), tmp_path / "cache", held_out_fraction=0.3)
        train, held_out = store.train.images_NHWC, store.held_out.images_NHWC
        return {i.numpy().tobytes() for i in train}, {i.numpy().tobytes() for i in held_out}

    train, held_out = splits()
    assert len(train) + len(held_out) == 60
    for index in range(60, 90):
        # Names that sort before, between and after the ones that are there.
        write(root / f"{['0', '030x', 'z'][index % 3]}{index}.png", noise(4, 4, 3, seed=index))
    more_train, more_held_out = splits()
    assert train < more_train
    assert held_out < more_held_out


def test_the_hash_holds_out_the_fraction_that_is_asked_for() -> None:
    keys = [f"class/{index}.png" for index in range(20_000)]
    small = {key for key in keys if split_of(key, 0.1) == "held_out"}
    large = {key for key in keys if split_of(key, 0.2) == "held_out"}
    assert abs(len(small) - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5  # four standard deviations
    assert small < large
    assert not any(split_of(key, 0.0) == "held_out" for key in keys)


def test_a_corrupt_image_stops_with_its_path_or_is_skipped_and_counted(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "images", {"a": 4, "b": 4}, size=32)
    damage(root / "a" / "000.png")
    (root / "b" / "001.png").write_bytes(b"")
    (root / "b" / "002.png").write_text("<html>not found</html>")
    folder = ImageFolder(path=str(root))
    message = r"data\.path: \S*a/000\.png cannot be decoded: .*truncated.*data\.on_corrupt=skip"
    with pytest.raises(DataError, match=message):
        opened(folder, tmp_path / "cache")
    store = opened(folder, tmp_path / "cache", on_corrupt="skip")
    assert store.skipped == 3
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert opened(folder, tmp_path / "cache", on_corrupt="skip").skipped == 3


def test_a_data_set_of_corrupt_images_only_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        damage(write(tmp_path / "images" / f"{name}.png", noise(32, 32, 3)))
    for settings in ({}, {"image_size": 8, "channels": 3}):
        with pytest.raises(DataError, match=r"none of the 2 images can be decoded"):
            opened(
                ImageFolder(path=str(tmp_path / "images")),
                tmp_path / "cache",
                on_corrupt="skip",
                **settings,
            )


def test_a_fraction_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png", noise(8, 8, 3))
    with pytest.raises(DataError, match=r"data\.held_out_fraction: 0\.9999999 leaves none of 1"):
        opened(
            ImageFolder(path=str(tmp_path / "images")),
            tmp_path / "cache",
            held_out_fraction=0.9999999,
        )


def test_each_folder_that_holds_no_data_set_has_its_sentence(tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(DataError, match=message):
            opened(ImageFolder(path=str(path)), tmp_path / "cache")

    refused(tmp_path / "nowhere", r"data\.path: \S*nowhere does not exist")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, r"data\.path: \S*empty is empty")
    (empty / "table.csv").write_text("")
    refused(empty, r"has no images, but has table\.csv; give another folder")
    (empty / "0.parquet").write_text("")
    refused(empty, r"data\.kind=parquet")
    refused(empty / "table.csv", r"data\.path: \S*table\.csv is a file")

    mixed = write_classes(tmp_path / "mixed", {"a": 1})
    write(mixed / "loose.png", noise(8, 8, 3))
    refused(mixed, r"beside class folders .*loose\.png, a/000\.png")

    write_classes(tmp_path / "half" / "train", {"a": 1})
    assert len(opened(ImageFolder(path=str(tmp_path / "half")), tmp_path / "cache").train) == 1
    write(tmp_path / "half" / "test" / "0.png", noise(8, 8, 3))
    refused(tmp_path / "half", r"data\.path: \S*half .*only one of its splits; lay out both")
    (tmp_path / "half" / "test" / "a").mkdir()
    (tmp_path / "half" / "test" / "0.png").rename(tmp_path / "half" / "test" / "a" / "0.png")
    write(tmp_path / "half" / "extra" / "0.png", noise(8, 8, 3))
    refused(tmp_path / "half", r"\(extra, test, train\) may be splits or classes")

    link = tmp_path / "links" / "gone.png"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "no-such.png")
    refused(link.parent, r"data\.path: \S*gone\.png cannot be decoded: it is a link to nothing")


def test_pipes_and_devices_are_told_and_never_opened(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to waits for ever."""
    folder = write_classes(tmp_path / "set", {"a": 2})
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "link.png").symlink_to(tmp_path / "pipe")
    (folder / "metadata.csv").symlink_to(tmp_path / "pipe")
    (folder / "zero.png").symlink_to("/dev/zero")
    store = opened(ImageFolder(path=str(folder)), tmp_path / "cache")
    assert len(store.train) == 2 and not store.skipped
    (note,) = store.found.notes
    assert note.endswith("devices, which are not read: 4; the first is a/link.png")
    (tmp_path / "list.txt").write_text("set/a/000.png\npipe\n")
    with pytest.raises(DataError, match=r"\(it is a pipe or a device\): \S*pipe \(line 2\)"):
        opened(ImageList(path=str(tmp_path / "list.txt")), tmp_path / "cache")
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        file.add(folder / "a", "a")
    store = opened(ImageTar(path=str(tmp_path / "set.tar")), tmp_path / "cache", on_corrupt="skip")
    assert len(store.train) == 2 and store.skipped == 1  # the link to a pipe outside
    assert "1 members are pipes or devices, which are not read: a/pipe.png" in store.found.notes


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_permission_denied_is_said_and_never_skipped(open_to_all: Path) -> None:
    write(open_to_all / "images" / "a.png", noise(8, 8, 3))
    secret = write(open_to_all / "images" / "b.png", noise(8, 8, 3))
    cache = open_to_all / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    secret.chmod(0)
    root = os.geteuid() == 0  # root can read everything, so the test becomes user nobody
    if root:
        os.seteuid(65534)
    try:
        folder = ImageFolder(path=str(open_to_all / "images"))
        with pytest.raises(DataError, match=r"data\.path: \S*b\.png cannot be read: permission"):
            opened(folder, cache, on_corrupt="skip")
        with pytest.raises(DataError, match=r"data cache /proc/cache cannot be used"):
            opened(folder, Path("/proc/cache"))
    finally:
        if root:
            os.seteuid(0)
    secret.parent.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=r"data\.path: \S*images cannot be read: permission"):
            opened(folder, cache)
        inside = ImageFolder(path=str(secret.parent / "inside"))
        with pytest.raises(DataError, match=r"data\.path: \S*inside cannot be read: permission"):
            opened(inside, cache)
    finally:
        if root:
            os.seteuid(0)
        secret.parent.chmod(0o755)
