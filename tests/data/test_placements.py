"""The same images are the same data in every place: folder, zip, tar, list, Parquet, stream."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ray_gen.data import (
    ArrowFolder,
    ImageFolder,
    ImageList,
    ImageTar,
    ImageZip,
    Joined,
    Parquet,
    Store,
    open_stream,
)
from ray_gen.data.decode import decode
from ray_gen.data.wanted import Pixels
from tests.data.pictures import noise, opened, write
from tests.data.test_archives import zipped
from tests.data.test_convert import converted
from tests.data.test_parquet import hf, write_table
from tests.data.test_rows import saved

SIZE = {"image_size": (12, 10)}
FRACTION = 0.3


def pictures(root: Path, folders: list[str]) -> Path:
    """Images of many kinds, each with pixels of its own."""
    for number, folder in enumerate(folders):
        for index in range(8):
            seed, path = 100 * number + index, root / folder
            write(path / f"{index}.png", noise(16 + index, 20, 3, seed))
            write(path / f"{index}.jpg", noise(24, 16 + index, 3, seed + 20), quality=95)
            write(path / f"grey{index}.png", noise(14, 14, 1, seed + 40))
            write(path / f"alpha{index}.webp", noise(15, 15, 4, seed + 60), lossless=True)
        palette = Image.fromarray(noise(20, 20, 3, 900 + number)).convert("P")
        write(root / folder / "palette.gif", palette)
    (root / "README").write_text("text")
    return root


def labelled(store: Store) -> dict[str, dict[bytes, str | None]]:
    """The class name of each image, by its pixels, in each split."""
    found: dict[str, dict[bytes, str | None]] = {}
    for name in ("train", "held_out"):
        split = getattr(store, name)
        names: list[str | None] = [None] * len(split)
        if store.class_names is not None:
            names = [store.class_names[label] for label in split.labels.tolist()]
        pixels = [image.numpy().tobytes() for image in split.images_NHWC]
        found[name] = dict(zip(pixels, names, strict=True))
        assert len(found[name]) == len(split) > 0
    return found


def streamed(path: Path, cache: Path) -> dict[str, dict[bytes, str | None]]:
    """`labelled`, of Parquet files that are streamed."""
    store = open_stream(
        Parquet(path=str(path)),
        center_crop=None,
        channels=None,
        held_out_fraction=FRACTION,
        on_corrupt="stop",
        cache_folder=cache,
        window=16,
        **SIZE,
    )
    stream = store.stream
    assert stream is not None
    found = labelled(store)
    found["train"] = {}
    for group in range(len(stream.groups)):
        for item in stream.read(group):
            result = decode(item, stream.wanted, "data.path")
            assert isinstance(result, Pixels)
            names = store.class_names
            name = None if names is None or result.label is None else names[result.label]
            found["train"][result.values_HWC.tobytes()] = name
    return found


LAYOUTS = {
    "classes": ["cat", "dog", "ünïcode & spaces"],
    "no classes": [""],
    "splits": ["train/cat", "train/dog", "val/cat", "val/dog"],
    "splits without classes": ["train", "test"],
    "classes in folders": ["cat/a", "cat/b", "dog"],
    "a wrapping folder": ["set/cat", "set/dog"],
}


@pytest.mark.parametrize("folders", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_images_are_the_same_data_in_every_place(
    folders: list[str], tmp_path: Path
) -> None:
    root = pictures(tmp_path / "set", folders)
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "."], cwd=root, check=True)
    subprocess.run(["tar", "-cf", tmp_path / "b.tar", "set"], cwd=tmp_path, check=True)
    sources: dict[str, Any] = {
        "folder": ImageFolder(path=str(root)),
        "zip": ImageZip(path=str(zipped(root, tmp_path / "a.zip"))),
        "zip of the folder": ImageZip(path=str(zipped(root, tmp_path / "b.zip", "whole/"))),
        "tar": ImageTar(path=str(tmp_path / "a.tar")),
        "tar of the folder": ImageTar(path=str(tmp_path / "b.tar")),
    }

    if folders == [""]:  # a folder of images is a class, in archives too
        for name in ("zip of the folder", "tar of the folder"):
            assert opened(sources.pop(name), tmp_path / "cache", **SIZE).label_count == 1

    def open_one(source: Any) -> Store:
        return opened(source, tmp_path / "cache", held_out_fraction=FRACTION, **SIZE)

    stores = {name: open_one(source) for name, source in sources.items()}
    assert {store.digest for store in stores.values()} == {stores["folder"].digest}
    assert len({store.path for store in stores.values()}) == len(stores)
    expected = labelled(stores["folder"])
    for name, store in stores.items():
        assert labelled(store) == expected, name

    for name in ("folder", "zip", "tar"):
        target = tmp_path / f"{name}.parquet"
        converted(sources[name], target, None, held_out_fraction=FRACTION)
        store = open_one(Parquet(path=str(target)))
        assert labelled(store) == expected and store.class_names == stores["folder"].class_names
        assert streamed(target, tmp_path / "cache") == expected


def test_shards_and_a_list_hold_the_same_images(tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", ["cat", "dog"])
    files = sorted(file.relative_to(root) for file in root.rglob("*.*"))
    for shard in range(3):
        target = tmp_path / "shards" / f"{shard}.tar"
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["tar", "-cf", target, *files[shard::3]], cwd=root, check=True)
    lines = [f"set/{file}\t{file.parent}" for file in files]
    (tmp_path / "list.txt").write_text("\n".join(lines))

    def images(source: Any) -> dict[bytes, str | None]:
        store = opened(source, tmp_path / "cache", held_out_fraction=FRACTION, **SIZE)
        splits = labelled(store)
        return splits["train"] | splits["held_out"]

    expected = images(ImageFolder(path=str(root)))
    assert images(ImageTar(path=str(tmp_path / "shards"))) == expected
    assert images(ImageList(path=str(tmp_path / "list.txt"))) == expected


def test_sources_travel_to_other_processes(tmp_path: Path) -> None:
    """As Ray sends them: before and after they were listed."""
    root = pictures(tmp_path / "set", ["cat", "dog"])
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "."], cwd=root, check=True)
    (tmp_path / "list.txt").write_text("set/cat/0.png\tcat\nset/dog/0.jpg\tdog")
    write_table(tmp_path / "a.parquet", image=hf(range(5)), label=["a", "b", "a", "b", "a"])
    sources: list[Any] = [
        ImageFolder(path=str(root)),
        ImageZip(path=str(zipped(root, tmp_path / "a.zip"))),
        ImageTar(path=str(tmp_path / "a.tar")),
        ImageList(path=str(tmp_path / "list.txt")),
        Parquet(path=str(tmp_path / "a.parquet")),
        ArrowFolder(path=str(saved(tmp_path / "saved", range(5), label=[0, 1, 0, 1, 0]))),
    ]

    def content(source: Any) -> list[tuple[str, str, Any, int | None, bytes]]:
        listing = source.listing()
        assert listing.class_names
        return [
            (item.key, item.name, item.split, item.load()[1], item.encoded())
            for item in listing.items
        ]

    for source in (*sources, Joined(sources=sources)):
        fresh = pickle.loads(pickle.dumps(source))
        source.identity()
        expected = content(source)
        assert content(fresh) == content(pickle.loads(pickle.dumps(source))) == expected
