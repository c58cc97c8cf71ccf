"""Tar files, alone and as shards, are read in place; classes of webdataset's kind too."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_gen.data import DataError, ImageFolder, ImageTar
from ray_gen.data.sources.tars import TarFiles
from ray_gen.data.told import remarks
from tests.data.pictures import noise, opened, write_classes
from tests.data.test_archives import png


def tarred(target: Path, members: dict[str, bytes], **options: Any) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w", **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target


def tar(path: Path | str, **settings: Any) -> ImageTar:
    return ImageTar(path=str(path), **settings)


def labels_of(store: Any) -> list[str]:
    assert store.class_names is not None and store.train.labels is not None
    return [store.class_names[label] for label in store.train.labels.tolist()]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", ".", "whole"])
def test_a_tar_is_the_folder_that_it_holds(form: int, prefix: str, tmp_path: Path) -> None:
    long = "n" * 90
    root = write_classes(tmp_path / "set", {"cat": 20, "dög": 20, f"{long}/{long}"[:95]: 4})
    (root / "._cat").write_bytes(b"x")
    settings = {"held_out_fraction": 0.3}
    folder = opened(ImageFolder(path=str(root)), tmp_path / "cache", **settings)
    with tarfile.open(tmp_path / "set.tar", "w", format=form) as archive:
        for file in sorted(root.iterdir(), reverse=True):
            archive.add(file, f"{prefix}/{file.name}" if prefix else file.name)
    store = opened(tar(tmp_path / "set.tar"), tmp_path / "cache", **settings)
    assert store.digest == folder.digest and store.class_names == folder.class_names
    assert np.array_equal(store.held_out.images_NHWC, folder.held_out.images_NHWC)


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_what_gnu_tar_writes(form: str, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"cat": 3, "dog": 3})
    os.link(root / "cat" / "000.png", root / "dog" / "hard.png")
    (root / "cat" / "soft.png").symlink_to("../dog/001.png")
    (root / "cat" / "gone.txt").symlink_to("nowhere")
    command = ["tar", f"--format={form}", "-cf", "../set.tar", "cat", "dog"]
    subprocess.run(command, cwd=root, check=True)
    files = TarFiles(str(tmp_path / "set.tar"))
    scan = files.scan()
    assert len(scan.files) == 8 and scan.broken == ("cat/gone.txt",)
    for file in scan.files:
        assert files.open(file.path).read() == (root / file.path).read_bytes()
        assert files.head(file.path) == (root / file.path).read_bytes()[:64]
    assert pickle.loads(pickle.dumps(files)).open("cat/soft.png").read()


def test_a_size_of_more_than_8_gib_is_read_from_its_header(tmp_path: Path) -> None:
    """A hole in the file stands for the data."""
    size, path = 9 << 30, tmp_path / "a.tar"
    info = tarfile.TarInfo("large.bin")
    info.size = size
    after = tarfile.TarInfo("0.png")
    after.size = len(png())
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(size, os.SEEK_CUR)
        file.write(after.tobuf(tarfile.GNU_FORMAT) + png().ljust(1024, b"\0") + bytes(1024))
    files = TarFiles(str(path))
    assert {file.path: file.size for file in files.scan().files}["large.bin"] == size
    assert files.open("0.png").read() == png()


def webdataset(target: Path, keys: range, **others: Any) -> Path:
    """others: by ending, the content for a number."""
    members: dict[str, bytes] = {}
    for key in keys:
        members[f"{key:06}.png"] = png(key)
        for ending, content in others.items():
            members[f"{key:06}.{ending}"] = content(key)
    return tarred(target, members)


@pytest.mark.parametrize(
    ("ending", "content", "names"),
    [
        ("cls", lambda key: str(10 * (key % 3)).encode(), ["0", "10", "20"]),
        ("cls", lambda key: b"cat\n" if key % 2 else b"dog", ["cat", "dog"]),
        ("json", lambda key: json.dumps({"label": key % 2, "w": 8}).encode(), ["0", "1"]),
        ("json", lambda key: json.dumps({"class": "ab"[key % 2]}).encode(), ["a", "b"]),
        ("json", lambda key: json.dumps({"label": float(key % 2)}).encode(), ["0", "1"]),
    ],
)
def test_classes_beside_images(ending: str, content: Any, names: list[str], tmp_path: Path) -> None:
    path = webdataset(tmp_path / "a.tar", range(12), **{ending: content})
    store = opened(tar(path), tmp_path / "cache")
    assert store.class_names == tuple(names)
    labels = labels_of(store)
    assert labels[:4] == labels[:4] and len(set(labels)) == len(names)
    for key, label in enumerate(labels):
        told = content(key).decode().strip()
        value = json.loads(told) if ending == "json" else told
        value = value.get("label", value.get("class")) if isinstance(value, dict) else value
        assert label == (str(int(value)) if isinstance(value, float) else str(value))
    assert not store.found.not_read


def test_an_image_without_a_class_and_minus_one(tmp_path: Path) -> None:
    members = {"0.png": png(), "0.cls": b"1", "1.png": png(1), "1.cls": b"-1", "2.png": png(2)}
    store = opened(tar(tarred(tmp_path / "a.tar", members)), tmp_path / "cache")
    assert store.train.labels is None
    assert any("2 images have no class" in remark for remark in remarks(store))
    unlabelled = opened(
        tar(tmp_path / "a.tar", labels="none"), tmp_path / "cache", held_out_fraction=0
    )
    assert len(unlabelled.train) == 3 and unlabelled.class_names is None


def test_numbers_and_names_together_are_names(tmp_path: Path) -> None:
    members = {"a.png": png(), "a.cls": b"0", "b.png": png(1), "b.cls": b"cat"}
    store = opened(tar(tarred(tmp_path / "a.tar", members)), tmp_path / "cache")
    assert labels_of(store) == ["0", "cat"] and store.class_names == ("0", "cat")


@pytest.mark.parametrize("value", ["0.5", "NaN", "null", "[1]", '{"a": 1}'])
def test_json_values_that_are_no_classes(value: str, tmp_path: Path) -> None:
    members = {"a.png": png(), "a.json": f'{{"label": {value}}}'.encode()}
    store = opened(tar(tarred(tmp_path / "a.tar", members)), tmp_path / "cache")
    assert store.class_names is None and store.found.not_read == {".json": 1}


def test_a_link_to_nothing_in_a_shard_is_corrupt(tmp_path: Path) -> None:
    for shard in range(2):
        webdataset(tmp_path / "set" / f"{shard}.tar", range(5 * shard, 5 * shard + 5))
    with tarfile.open(tmp_path / "set" / "1.tar", "a") as archive:
        link = tarfile.TarInfo("gone.png")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere.png"
        archive.addfile(link)
    with pytest.raises(
        DataError, match=r"/set/1\.tar/gone\.png cannot be decoded: it is a link to"
    ):
        opened(tar(tmp_path / "set"), tmp_path / "cache")
    store = opened(tar(tmp_path / "set"), tmp_path / "cache", on_corrupt="skip")
    assert (store.skipped, len(store.train)) == (1, 10)


def test_a_json_file_that_is_no_label_is_told(tmp_path: Path) -> None:
    members = {"0.png": png(), "0.json": b'{"caption": "x"}', "other.cls": b"3", "1.json": b"{"}
    store = opened(tar(tarred(tmp_path / "a.tar", members)), tmp_path / "cache")
    assert store.class_names is None
    assert store.found.not_read == {".json": 2, ".cls": 1}


def test_several_images_of_one_key_need_the_setting(tmp_path: Path) -> None:
    path = webdataset(tmp_path / "a.tar", range(6), **{"seg.png": lambda key: png(key + 100)})
    with pytest.raises(
        DataError, match=r"^data\.image_ending: .* several images of one key \(png, seg\.png\)"
    ):
        opened(tar(path), tmp_path / "cache")
    for ending, first in (("png", 0), (".seg.png", 100)):
        store = opened(tar(path, image_ending=ending), tmp_path / "cache")
        assert np.array_equal(store.train.images_NHWC[2], noise(6, 6, 3, first + 2))
        assert any("6 images in *." in remark for remark in remarks(store))
    with pytest.raises(DataError, match=r"no image in .* ends in \.jpg; they end in png, seg\.png"):
        opened(tar(path, image_ending="jpg"), tmp_path / "cache")


def test_kinds_that_only_some_keys_have(tmp_path: Path) -> None:
    kinds = {"seg.png": lambda key: png(key + 100)}
    webdataset(tmp_path / "set" / "0.tar", range(3), **kinds)
    kinds["depth.png"] = lambda key: png(key + 200)
    webdataset(tmp_path / "set" / "1.tar", range(3, 6), **kinds)
    with pytest.raises(DataError, match=r"several images of one key \(png, seg\.png, depth\.png\)"):
        opened(tar(tmp_path / "set"), tmp_path / "cache")


def test_classes_of_files_that_are_no_images_leave_folders_as_classes(tmp_path: Path) -> None:
    members = {"cat/0.png": png(), "dog/1.png": png(1), "cat/a.txt": b"x", "cat/a.cls": b"3"}
    store = opened(tar(tarred(tmp_path / "a.tar", members)), tmp_path / "cache")
    assert store.class_names == ("cat", "dog")


def test_names_with_dots_in_class_folders_are_no_keys(tmp_path: Path) -> None:
    members = {f"{c}/v1.{i}.png": png(i) for c in ("cat", "dog") for i in range(5)}
    store = opened(tar(tarred(tmp_path / "a.tar", members)), tmp_path / "cache")
    assert len(store.train) == 10 and store.class_names == ("cat", "dog")


def test_shards_of_a_folder_and_of_a_pattern(tmp_path: Path) -> None:
    content = {"cls": lambda key: b"ab"[key % 2 :][:1]}
    for shard in range(12):
        webdataset(
            tmp_path / "set" / f"shard-{shard:03}.tar", range(5 * shard, 5 * shard + 5), **content
        )
    (tmp_path / "set" / "._shard-000.tar").write_bytes(b"x")
    patterns = ("", "*.tar", "shard-{000..011}.tar", "shard-0{00,01,02,03}.tar", "shard-00?.tar")
    counts = dict.fromkeys(patterns, 0)
    for pattern in patterns:
        store = opened(tar(tmp_path / "set" / pattern), tmp_path / "cache")
        counts[pattern] = len(store.train)
        assert labels_of(store)[:4] == ["a", "b", "a", "b"]
    assert list(counts.values()) == [60, 60, 60, 20, 50]
    with pytest.raises(DataError, match=r"of 20 shards, .*shard-012\.tar and 7 more do not exist"):
        opened(tar(tmp_path / "set" / "shard-{000..019}.tar"), tmp_path / "cache")
    with pytest.raises(DataError, match=r"no file .* matches .*none-\*\.tar"):
        opened(tar(tmp_path / "set" / "none-*.tar"), tmp_path / "cache")


def test_more_shards_than_a_process_may_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for shard in range(300):
        tarred(tmp_path / "set" / f"{shard}.tar", {f"{shard}.png": png(shard)})
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 250), hard))
    try:
        store = opened(tar(tmp_path / "set"), tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(store.train) == 300


def test_a_further_shard_moves_no_image_between_splits(tmp_path: Path) -> None:
    for shard in range(3):
        webdataset(tmp_path / "set" / f"{shard}.tar", range(20 * shard, 20 * shard + 20))
    (tmp_path / "more").mkdir()
    (tmp_path / "set" / "2.tar").rename(tmp_path / "more" / "2.tar")
    settings = {"held_out_fraction": 0.3}
    before = opened(tar(tmp_path / "set"), tmp_path / "cache", **settings)
    (tmp_path / "more" / "2.tar").rename(tmp_path / "set" / "2.tar")
    after = opened(tar(tmp_path / "set"), tmp_path / "cache", **settings)

    def rows(images_NHWC: Any) -> set[bytes]:
        return {image.numpy().tobytes() for image in images_NHWC}

    assert rows(before.train.images_NHWC) < rows(after.train.images_NHWC)
    assert rows(before.held_out.images_NHWC) < rows(after.held_out.images_NHWC)


@pytest.mark.parametrize("inner", ["cat/{}.png", "set/cat/{}.png", "{}.png", "train/cat/{}.png"])
def test_names_of_shards_are_splits(inner: str, tmp_path: Path) -> None:
    def members(first: int, split: str) -> dict[str, bytes]:
        inside = inner.replace("train", split)
        both = (inside, inside.replace("cat", "dog"))
        return {place.format(i): png(i) for i in range(first, first + 4) for place in both}

    for first, name in enumerate(("train-0", "train-1", "val-0", "test-0")):
        split = name.partition("-")[0]
        tarred(tmp_path / "set" / f"{name}.tar", members(10 * first, split))
    store = opened(tar(tmp_path / "set"), tmp_path / "cache", held_out_fraction=0.5)
    classes = 2 if "cat" in inner else 1
    assert (len(store.train), len(store.held_out)) == (8 * classes, 4 * classes)
    assert store.class_names == (("cat", "dog") if classes == 2 else None)
    assert any("images in the shards of test are not read" in remark for remark in remarks(store))


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_a_tar_that_is_cut_off_is_told_with_the_byte(tmp_path: Path) -> None:
    def refused(size: int, message: str) -> None:
        path = tarred(tmp_path / "a.tar", {"0.png": png(), "1.png": png(1)})
        with pytest.raises(DataError, match=rf"^data\.path: {path} {message}"):
            opened(tar(cut(path, size)), tmp_path / "cache")

    assert len(png()) < 512
    refused(1024 + 512 + 100, r"is cut off at byte 1,636: 1\.png in it ends at byte 1,")
    refused(1024 + 100, "is cut off at byte 1,124, inside a header")
    path = cut(tarred(tmp_path / "b.tar", {"0.png": png(), "1.png": png(1)}), 1024)
    store = opened(tar(path), tmp_path / "cache")
    assert len(store.train) == 1
    assert any("has no end mark; it may be cut off" in remark for remark in remarks(store))


def test_a_tar_that_is_cut_off_in_a_header_of_several_blocks(tmp_path: Path) -> None:
    """A long name stands before its header, in blocks of its own."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tarred(tmp_path / "a.tar", {"0.png": png(), "n" * 200: png(1)}, format=form)
        whole = path.read_bytes()
        for size in range(1024 + 100, 1024 + 3 * 512, 200):
            path.write_bytes(whole[:size])
            with pytest.raises(DataError, match=f"is cut off at byte {size:,}, inside a header"):
                opened(tar(path), tmp_path / "cache")


def test_a_damaged_header_is_told_with_the_byte(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", {"0.png": png(), "1.png": png(1)})
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"x" * 512
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged at byte 1,024: no header stands there"):
        opened(tar(path), tmp_path / "cache")


def test_tar_files_that_were_joined_are_read_whole(tmp_path: Path) -> None:
    first = tarred(tmp_path / "a.tar", {"0.png": png()}).read_bytes()
    second = tarred(tmp_path / "b.tar", {"1.png": png(1)}).read_bytes()
    (tmp_path / "c.tar").write_bytes(first + second)
    assert len(opened(tar(tmp_path / "c.tar"), tmp_path / "cache").train) == 2
    (tmp_path / "d.tar").write_bytes(first + b"padding" * 100)
    assert len(opened(tar(tmp_path / "d.tar"), tmp_path / "cache").train) == 1


@pytest.mark.parametrize(("program", "suffix"), [("gzip", ".gz"), ("bzip2", ".bz2"), ("xz", ".xz")])
def test_the_remedy_for_a_compressed_tar_works(program: str, suffix: str, tmp_path: Path) -> None:
    subprocess.run([program, tarred(tmp_path / "a.tar", {"0.png": png()})], check=True)
    for path in (tmp_path / f"a.tar{suffix}", tmp_path):
        with pytest.raises(DataError, match=r"random order; decompress it with `") as refused:
            opened(tar(path), tmp_path / "cache")
    command = str(refused.value).split("`")[1]
    subprocess.run(command.split(), check=True)
    assert len(opened(tar(tmp_path / "a.tar"), tmp_path / "cache").train) == 1


def test_what_is_no_tar_file_has_its_sentence(tmp_path: Path) -> None:
    def refused(path: Path | str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            opened(tar(path), tmp_path / "cache")

    refused(tmp_path / "nowhere.tar", "does not exist on the machine that reads it")
    refused(tmp_path, r"has no files whose names end in \.tar; give a tar file")
    (tmp_path / "text.tar").write_text("hello" * 1000)
    refused(tmp_path / "text.tar", "is not a tar file: it is not a tar file")
    (tmp_path / "page.tar").write_text("<!DOCTYPE html>" + " " * 600)
    refused(tmp_path / "page.tar", "it is an HTML page")
    (tmp_path / "none.tar").write_bytes(b"")
    refused(tmp_path / "none.tar", "is empty")
    refused("gs://bucket/a.tar", "is a URI, and tar files are read only from a disk")
    unsafe = tarred(tmp_path / "unsafe.tar", {"../0.png": png(), "/1.png": png(), "2.png": png()})
    store = opened(tar(unsafe), tmp_path / "cache")
    assert len(store.train) == 1
    assert any("2 members with names that lead out" in remark for remark in remarks(store))
