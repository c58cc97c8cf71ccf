"""Zip files are read in place, as the folder that they hold."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_gen.data import DataError, ImageFolder, ImageTar, ImageZip
from ray_gen.data.errors import CorruptImageError
from ray_gen.data.sources.archives import ZipFiles
from ray_gen.data.told import remarks, summary
from tests.data.pictures import noise, opened, write, write_classes


def zipped(root: Path, target: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    """All files below `root`, hidden ones too, in an order that is not the sorted one."""
    with zipfile.ZipFile(target, "w", method) as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.write(file, prefix + str(file.relative_to(root)))
    return target


def with_members(target: Path, members: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(target, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(6, 6, 3, seed)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("prefix", ["", "whole/", "a/b/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_the_folder_that_it_holds(prefix: str, method: int, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"cat": 20, "dog": 20})
    write(root / "__MACOSX" / "cat" / "._0.png", noise(8, 8, 3))
    write(root / "cat" / ".hidden.png", noise(8, 8, 3))
    (root / "notes.txt").write_text("text")
    settings = {"held_out_fraction": 0.3}
    folder = opened(ImageFolder(path=str(root)), tmp_path / "cache", **settings)
    archive = zipped(root, tmp_path / "set.zip", prefix, method)
    store = opened(ImageZip(path=str(archive)), tmp_path / "cache", **settings)
    assert store.digest == folder.digest and store.path != folder.path
    assert store.class_names == ("cat", "dog")
    assert np.array_equal(store.held_out.images_NHWC, folder.held_out.images_NHWC)
    assert summary(store) == summary(folder)


def test_a_copy_with_another_time_is_the_same_data(tmp_path: Path) -> None:
    archive = with_members(tmp_path / "a.zip", {"0.png": png()})
    first = opened(ImageZip(path=str(archive)), tmp_path / "cache")
    copy = tmp_path / "copy.zip"
    copy.write_bytes(archive.read_bytes())
    os.utime(copy, (0, 0))
    assert opened(ImageZip(path=str(copy)), tmp_path / "cache").path == first.path
    with_members(copy, {"0.png": png(1)})
    assert opened(ImageZip(path=str(copy)), tmp_path / "cache").path != first.path


def test_members_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    content = {f"{i}.bin": os.urandom(50_000) for i in range(40)}
    archive = with_members(tmp_path / "a.zip", content, compression=zipfile.ZIP_DEFLATED)
    files = ZipFiles(str(archive))
    files.scan()
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda name: files.open(name).read(), list(content) * 10)
    assert list(read) == list(content.values()) * 10
    assert files.head("3.bin") == content["3.bin"][:64]
    assert pickle.loads(pickle.dumps(files)).open("3.bin").read() == content["3.bin"]


def test_zip64_and_bytes_before_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index in range(3):
            with archive.open(f"{index}.png", "w", force_zip64=True) as member:
                member.write(png(index))
    made = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(b"#!/bin/sh\nexit\n" + made)
    stores = [
        opened(ImageZip(path=str(tmp_path / n)), tmp_path / "cache") for n in ("a.zip", "b.zip")
    ]
    assert len(stores[0].train) == 3 and stores[0].digest == stores[1].digest


def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index in range(66_000):
            archive.writestr(f"{index % 10}/{index}", b"x")
    scan = ZipFiles(str(tmp_path / "a.zip")).scan()
    assert len(scan.files) == 66_000


def test_numbers_of_64_bits_in_the_directory(tmp_path: Path) -> None:
    """As of a member beyond 4 GiB: the numbers are in the extra field."""
    archive = with_members(tmp_path / "a.zip", {"0.png": png(), "1.png": png(1)})
    data = bytearray(archive.read_bytes())
    at = data.rfind(b"PK\1\2")
    stored, size = struct.unpack_from("<LL", data, at + 20)
    (header,) = struct.unpack_from("<L", data, at + 42)
    extra = struct.pack("<HHQQQ", 1, 24, size, stored, header)
    struct.pack_into("<LL", data, at + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<L", data, at + 42, 0xFFFFFFFF)
    struct.pack_into("<H", data, at + 30, len(extra))
    data[at + 46 + 5 : at + 46 + 5] = extra
    end = data.rfind(b"PK\5\6")
    (length,) = struct.unpack_from("<L", data, end + 12)
    struct.pack_into("<L", data, end + 12, length + len(extra))
    archive.write_bytes(data)
    files = ZipFiles(str(archive))
    assert [file.size for file in files.scan().files] == [len(png()), len(png(1))]
    assert files.open("1.png").read() == png(1)


def test_an_empty_class_folder_stops_as_in_a_folder(tmp_path: Path) -> None:
    archive = with_members(
        tmp_path / "a.zip", {"cat/0.png": png(), "dog/0.png": png(), "bird/": b""}
    )
    with pytest.raises(DataError, match="bird is empty"):
        opened(ImageZip(path=str(archive)), tmp_path / "cache")
    hidden = {"cat/0.png": png(), "dog/0.png": png(), "bird/.DS_Store": b"x"}
    with_members(archive, hidden)
    with pytest.raises(DataError, match="bird is empty"):
        opened(ImageZip(path=str(archive)), tmp_path / "cache")


def test_names_that_lead_out_occur_twice_or_are_not_utf_8_are_told(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made, pytest.warns(UserWarning, match="Duplicate"):
        for name in ("../out.png", "/abs.png", "C:/x.png", "a/../../b.png", "./0.png", "1.png"):
            made.writestr(name, png())
        made.writestr("1.png", png(7))
        made.writestr("Bxr.png", png(2))
    archive.write_bytes(archive.read_bytes().replace(b"Bxr.png", b"B\x84r.png"))
    before = set(tmp_path.rglob("*"))
    files = ZipFiles(str(archive))
    scan = files.scan()
    assert [file.path for file in scan.files] == ["0.png", "1.png", "Bär.png"]
    assert files.open("1.png").read() == png(7)
    assert set(tmp_path.rglob("*")) == before
    told = "; ".join(scan.notes)
    assert "4 members with names that lead out" in told and "../out.png" in told
    assert "1 members have the name of an earlier one, which is not read: 1.png" in told
    assert "1 names are not UTF-8 and are read as code page 437" in told
    store = opened(ImageZip(path=str(archive)), tmp_path / "cache")
    assert set(scan.notes) <= set(remarks(store))


def test_an_archive_of_names_that_all_lead_out_is_not_called_empty(tmp_path: Path) -> None:
    members = {"../a/0.png": png(), "/b/1.png": png(1)}
    message = r"all names in \S*a\.(zip|tar) lead out of it \(\.\./a/0\.png, /b/1\.png\), .*pack it"
    with pytest.raises(DataError, match=message):
        opened(ImageZip(path=str(with_members(tmp_path / "a.zip", members))), tmp_path / "cache")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=message):
        opened(ImageTar(path=str(tmp_path / "a.tar")), tmp_path / "cache")


def test_names_of_windows(tmp_path: Path) -> None:
    """Old .NET writes backslashes."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for name in ("cat/0.png", "dog/0.png"):
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            made.writestr(info, png())
    archive.write_bytes(archive.read_bytes().replace(b"cat/0", b"cat\\0"))
    assert opened(ImageZip(path=str(archive)), tmp_path / "c").class_names == ("cat", "dog")


def test_symbolic_links_in_a_zip_are_followed_inside_of_it(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"cat": 2, "dog": 2})
    (root / "cat" / "link.png").symlink_to("../dog/001.png")
    (root / "cat" / "out.png").symlink_to("../../../etc/hostname")
    subprocess.run(["zip", "-qry", "../set.zip", "."], cwd=root, check=True)
    files = ZipFiles(str(tmp_path / "set.zip"))
    scan = files.scan()
    assert scan.broken == ("cat/out.png",)
    assert files.open("cat/link.png").read() == (root / "dog" / "001.png").read_bytes()


def test_a_link_with_a_damaged_target_leads_to_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "target.png")
        archive.writestr("target.png", png())
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.find(b"target.png")] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    scan = ZipFiles(str(tmp_path / "a.zip")).scan()
    assert scan.broken == ("link.png",) and len(scan.files) == 1


def test_a_damaged_metadata_file_in_a_zip_is_refused(tmp_path: Path) -> None:
    members = {"0.png": png(), "metadata.csv": b"file_name,label\n0.png,cat\n"}
    archive = with_members(tmp_path / "a.zip", members)
    archive.write_bytes(archive.read_bytes().replace(b"0.png,cat", b"0.png,dog"))
    with pytest.raises(DataError, match=r"metadata\.csv cannot be read: its checksum is wrong"):
        opened(ImageZip(path=str(archive)), tmp_path / "cache")


def test_a_zip_in_parts_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path / "set" / f"{seed}.bmp", noise(200, 200, 3, seed))
    split = ["zip", "-qr0", "-s", "100k", "../a.zip", "."]
    subprocess.run(split, cwd=tmp_path / "set", check=True)
    with pytest.raises(DataError, match="is the last part of a zip file; join all") as refused:
        opened(ImageZip(path=str(tmp_path / "a.zip")), tmp_path / "cache")
    subprocess.run(str(refused.value).split("`")[1].split(), cwd=tmp_path, check=True)
    whole = opened(ImageZip(path=str(tmp_path / "whole.zip")), tmp_path / "cache")
    assert len(whole.train) == 2


def damaged(change: Callable[[bytearray], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        changed = change(data)
        path.write_bytes(data if changed is None else changed)

    return apply


def flip_data(data: bytearray) -> None:
    data[100] ^= 0xFF


def encrypt(data: bytearray) -> None:
    data[data.rfind(b"PK\1\2") + 8] |= 1


DAMAGES = {
    "not a whole zip file: it ends at byte": damaged(lambda data: data[: len(data) // 2]),
    "it is an HTML page": damaged(lambda data: b"<!DOCTYPE html><html></html>"),
    "it has 0 bytes": damaged(lambda data: b""),
    "git-LFS pointer": damaged(lambda data: b"version https://git-lfs.github.com/spec/v1\n"),
    "not a zip file": damaged(lambda data: b"hello" * 100),
    "is encrypted; write the zip file without": damaged(encrypt),
    "its beginning is missing": damaged(lambda data: data[50:]),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_zip_that_cannot_be_read_has_its_sentence(message: str, tmp_path: Path) -> None:
    archive = with_members(tmp_path / "a.zip", {"0.png": png(), "1.png": png(1)})
    DAMAGES[message](archive)
    with pytest.raises(DataError, match=rf"^data\.path: [^\n]*{message}[^\n]*$"):
        opened(ImageZip(path=str(archive)), tmp_path / "cache")


def test_a_damaged_member_is_one_corrupt_image(tmp_path: Path) -> None:
    archive = with_members(tmp_path / "a.zip", {"0.png": png(), "1.png": png(1)})
    damaged(flip_data)(archive)
    with pytest.raises(DataError, match=r"a\.zip/0\.png cannot be decoded: its checksum is wrong"):
        opened(ImageZip(path=str(archive)), tmp_path / "cache")
    store = opened(ImageZip(path=str(archive)), tmp_path / "cache", on_corrupt="skip")
    assert (store.skipped, len(store.train)) == (1, 1)


def test_a_member_that_grows_beyond_its_size_is_stopped(tmp_path: Path) -> None:
    archive = with_members(
        tmp_path / "a.zip",
        {"0.png": bytes(10**8), "1.png": png()},
        compression=zipfile.ZIP_DEFLATED,
    )
    data = bytearray(archive.read_bytes())
    struct.pack_into("<L", data, data.find(b"PK\1\2") + 24, 1000)
    archive.write_bytes(data)
    store = opened(ImageZip(path=str(archive)), tmp_path / "cache", on_corrupt="skip")
    assert store.skipped == 1


@pytest.mark.parametrize(
    ("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")]
)
def test_other_compressions_are_refused(method: int, name: str, tmp_path: Path) -> None:
    archive = with_members(tmp_path / "a.zip", {"0.png": png()}, compression=method)
    with pytest.raises(DataError, match=rf"0\.png in .* is compressed with {name}"):
        opened(ImageZip(path=str(archive)), tmp_path / "cache")


def test_what_is_no_zip_file_at_all(tmp_path: Path) -> None:
    def refused(path: str | Path, message: str) -> None:
        with pytest.raises(DataError, match=message):
            opened(ImageZip(path=str(path)), tmp_path / "cache")

    refused(tmp_path / "nowhere.zip", "does not exist on the machine that reads it")
    refused(tmp_path, "is a folder; set data=folder:")
    refused("s3://bucket/a.zip", "is a URI, and zip files are read only from a disk")
    refused(with_members(tmp_path / "empty.zip", {}), "is empty; put images into it")
    no_images = with_members(tmp_path / "text.zip", {"a.txt": b"x"})
    refused(no_images, r"has no images, but has a\.txt")


def test_stylegan_and_imagenet_layouts_in_a_zip(tmp_path: Path) -> None:
    """StyleGAN's tool: stored PNG in numbered folders, and dataset.json with the labels."""
    labels = [[f"0000{i // 5}/img{i:08}.png", i % 3] for i in range(10)]
    members = {name: png(i) for i, (name, _) in enumerate(labels)}
    members["dataset.json"] = json.dumps({"labels": labels}).encode()
    archive = with_members(tmp_path / "a.zip", members, compression=zipfile.ZIP_STORED)
    store = opened(ImageZip(path=str(archive)), tmp_path / "cache")
    assert store.train.labels is not None
    assert store.train.labels.tolist() == [i % 3 for i in range(10)]
    assert not store.found.not_read


changes = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.one_of(st.none(), st.binary(max_size=8))),
    min_size=1,
    max_size=20,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    members = {f"{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(2)}
    deflated = with_members(folder / "a.zip", members, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        for name, data in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    files = {"deflated.zip": deflated, "64.zip": folder / "b.zip"}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = folder / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            for name, data in {**members, f"{'n' * 200}.png": png(), "cat/0.cls": b"1"}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("cat/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "0.png"
            archive.addfile(link)
        files[path.name] = path
    return {name: path.read_bytes() for name, path in files.items()}


@settings(deadline=None, max_examples=150)
@given(name=st.sampled_from(["deflated.zip", "64.zip", "1.tar", "2.tar"]), changed=changes)
def test_whatever_is_damaged_is_read_refused_or_corrupt(
    name: str, changed: list[tuple[float, bytes | None]], whole: dict[str, bytes]
) -> None:
    """Bytes are replaced, or (None) the rest is cut off."""
    data = bytearray(whole[name])
    for place, written in changed:
        at = int(place * len(data))
        if written is None:
            data = data[: max(1, at)]
        else:
            data[at : at + len(written)] = written
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{name[-4:]}"
        path.write_bytes(data)
        source = (ImageZip if name.endswith(".zip") else ImageTar)(path=str(path))
        with contextlib.suppress(DataError):
            for item in source.listing().items:
                with contextlib.suppress(CorruptImageError, OSError, SyntaxError, ValueError):
                    item.load()  # Pillow raises the others


@pytest.mark.parametrize("size", [b"abc", b"99999999999999999999", b"-5"])
def test_a_hostile_size_in_a_tar_header(size: bytes, tmp_path: Path) -> None:
    record = b" size=" + size + b"\n"
    record = str(len(record) + 2).encode() + record
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    image = tarfile.TarInfo("0.png")
    image.size = len(png())
    (tmp_path / "a.tar").write_bytes(
        info.tobuf() + record.ljust(512, b"\0") + image.tobuf() + png().ljust(512, b"\0")
    )
    message = "is cut off at byte" if size.isdigit() else "is damaged at byte"
    with pytest.raises(DataError, match=message):
        ImageTar(path=str(tmp_path / "a.tar")).listing()


def test_a_hostile_place_in_a_zip_directory(tmp_path: Path) -> None:
    archive = with_members(tmp_path / "a.zip", {"0.png": png(), "1.png": png(1)})
    data = bytearray(archive.read_bytes())
    at = data.rfind(b"PK\1\2")
    extra = struct.pack("<HHQQQ", 1, 24, 2**62, 2**62, 2**64 - 1)
    struct.pack_into("<LL", data, at + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<L", data, at + 42, 0xFFFFFFFF)
    struct.pack_into("<H", data, at + 30, len(extra))
    data[at + 46 + 5 : at + 46 + 5] = extra
    end = data.rfind(b"PK\5\6")
    (length,) = struct.unpack_from("<L", data, end + 12)
    struct.pack_into("<L", data, end + 12, length + len(extra))
    archive.write_bytes(data)
    store = opened(ImageZip(path=str(archive)), tmp_path / "cache", on_corrupt="skip")
    assert (store.skipped, len(store.train)) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_files_are_closed(tmp_path: Path) -> None:
    archive = with_members(tmp_path / "a.zip", {"0.png": png()})
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        ZipFiles(str(archive)).scan()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
