"""Whatever lies in a folder: every file is read, counted, or the reason of one true sentence."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_gen.data import DataError, ImageFolder
from ray_gen.data.sources.files import is_data
from ray_gen.data.told import remarks, summary
from tests.data.pictures import noise, opened

FOLDERS = (
    *("", "cat", "dog", "train", "Test", "val", "training", "eval", "a b", "ж", "@eaDir"),
    *(".hidden", "train/cat", "train/dog", "test/cat", "set/train", "set/test", "x/y/z"),
    *("trainA", "testA", "seg_train", "holdout", "dog/test"),
)
SUFFIXES = (
    *(".png", ".PNG", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".tif", ".npy", ".heic"),
    *(".txt", ".md", ".tga", ""),
)
STEMS = st.text(st.sampled_from("abc.-_ 0éж中'\"%#"), min_size=1, max_size=6)


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(noise(size[1], size[0], 4, seed=size[0]))
    if mode in ("I;16", "I", "F"):
        values = np.asarray(image.convert("L"))
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(values.astype(kind))
    return image.convert(mode)


def encoded(mode: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    kind = "TIFF" if mode in ("F", "I", "CMYK", "LAB") else "PNG"
    picture(mode, size).save(file, kind)
    return file.getvalue()


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK")
IMAGES = st.builds(
    encoded, st.sampled_from(MODES), st.tuples(st.integers(1, 20), st.integers(1, 20))
)
CONTENTS = st.one_of(
    IMAGES,
    st.builds(lambda data, part: data[: len(data) * part // 8], IMAGES, st.integers(0, 7)),
    st.sampled_from(
        [
            b"",
            b"<html></html>",
            b"text",
            bytes(80),
            b"%!PS-Adobe",
            b"\x93NUMPY",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            b"GIF89a",
            b"P6\n1 1\n",
        ]
    ),
    st.just("link to nothing"),
    st.just("link to itself"),
    st.just("folder"),
)
LAYOUTS = (("",), ("cat", "dog"), ("train/cat", "test/cat"), ("set/train", "set/test"), FOLDERS)
ENTRIES = st.sampled_from(LAYOUTS).flatmap(
    lambda folders: st.lists(
        st.tuples(st.sampled_from(folders), STEMS, st.sampled_from(SUFFIXES), CONTENTS),
        max_size=12,
    )
)


def lay_out(root: Path, entries: list[tuple[str, str, str, Any]]) -> None:
    root.mkdir()
    for folder, stem, suffix, content in entries:
        path = root / folder / (stem + suffix)
        if path.exists() or path.is_symlink() or path.name in (".", ".."):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == "folder":
            path.mkdir()
        elif content == "link to nothing":
            path.symlink_to(root / "there is no such file")
        elif content == "link to itself":
            path.symlink_to(root)
        else:
            path.write_bytes(content)


def visible_files(root: Path) -> int:
    """Number of files that may be data, links to nothing included."""
    count = 0
    for where, folders, files in os.walk(root):
        folders[:] = [
            name for name in folders if is_data(name) and not (Path(where) / name).is_symlink()
        ]
        count += sum(is_data(name) for name in files)
    return count


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ENTRIES, st.sampled_from(["stop", "skip"]), st.sampled_from([8, (6, 10)]))
def test_every_file_is_read_or_counted_or_named(
    entries: list[tuple[str, str, str, Any]], on_corrupt: str, size: Any
) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "set"
        lay_out(root, entries)
        try:
            store = opened(
                ImageFolder(path=str(root)),
                Path(place) / "cache",
                image_size=size,
                on_corrupt=on_corrupt,
            )
        except DataError as refused:
            message = str(refused)
            event(message.split(":")[0])
            assert message.startswith("data.") and ("; " in message or "set " in message), message
            return
        read = len(store.train) + len(store.held_out)
        unused = sum(int(n.split()[0]) for n in store.found.notes if n.endswith("are not read"))
        counted = read + store.skipped + sum(store.found.not_read.values()) + unused
        event("read")
        assert counted == visible_files(root)
        assert summary(store).startswith(f"{read} image")
        assert all(isinstance(remark, str) for remark in remarks(store))
        assert store.train.images_NHWC.shape[1:3] == ((8, 8) if size == 8 else size)
