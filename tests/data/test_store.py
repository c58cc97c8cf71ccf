"""The cache: decoded once, whole or not at all, mapped and not copied."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_gen.data import DataError, ImageFolder, Mnist5k, Store
from ray_gen.data import build as build_module
from tests.data.pictures import noise, opened, write, write_classes
from tests.helpers import wait_until

ROOT = Path(__file__).parents[2]

# Opens images/ with a progress callback that appends to progress.txt, then runs the given lines.
PROLOGUE = """
    import sys, time
    from pathlib import Path
    from ray_gen.data import DataError, ImageFolder, Mnist5k, open_store
    here = Path(sys.argv[1])
    def opened(source, progress=None):
        return open_store(
            source, image_size=None, center_crop=None, channels=None, held_out_fraction=0.25,
            on_corrupt="stop", cache_folder=here / "cache", progress=progress)
"""


def start(here: Path, program: str) -> subprocess.Popen[str]:
    """Runs Python lines in a process of its own, in which `here` is the folder of the test."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROLOGUE) + textwrap.dedent(program), str(here)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def calls(source: Any, cache: Path, **settings: Any) -> int:
    """How often a decoding reported its progress: 0 if the store was mapped as it was."""
    seen: list[tuple[int, int]] = []
    opened(source, cache, progress=lambda done, total: seen.append((done, total)), **settings)
    return len(seen)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """100 RGB images of 16×16 in two classes."""
    return write_classes(tmp_path / "images", {"a": 50, "b": 50}, size=16)


def equal(one: Store, other: Store) -> bool:
    return all(
        torch.equal(a.images_NHWC, b.images_NHWC)
        and a.labels is not None
        and b.labels is not None
        and torch.equal(a.labels, b.labels)
        for a, b in ((one.train, other.train), (one.held_out, other.held_out))
    )


def test_mnist5k_is_complete(tmp_path: Path) -> None:
    store = opened(Mnist5k(), tmp_path)
    assert store.image_shape == (1, 28, 28)
    assert store.class_names == tuple("0123456789")
    assert store.path.parent == tmp_path
    assert store.path.name.startswith("mnist5k-")
    for split, per_class in ((store.train, 400), (store.held_out, 100)):
        assert split.labels is not None
        assert torch.bincount(split.labels).tolist() == [per_class] * 10
        assert 30 < split.images_NHWC.float().mean() < 36  # MNIST's mean is 33.3


def test_images_are_the_mapped_file_and_aligned(tmp_path: Path, images: Path) -> None:
    """For several shapes and class counts, since both move the images within the file."""
    for size in (None, 5, 9, 12):
        store = opened(
            ImageFolder(path=str(images)), tmp_path, image_size=size, held_out_fraction=0.2
        )
        mapped = [
            tuple(int(bound, 16) for bound in line.split()[0].split("-"))
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(f"{store.path}/train.arrow")
        ]
        for tensor in (store.train.images_NHWC, store.train.labels):
            assert tensor is not None
            assert tensor.is_contiguous()
            assert any(low <= tensor.data_ptr() < high for low, high in mapped)
        assert store.train.images_NHWC.data_ptr() % 64 == 0
        assert store.held_out.images_NHWC.data_ptr() % 64 == 0


def test_the_files_are_arrow_that_others_can_read(tmp_path: Path, images: Path) -> None:
    import pyarrow as pa

    store = opened(ImageFolder(path=str(images)), tmp_path)
    table = pa.ipc.open_file(str(store.path / "train.arrow")).read_all()
    assert store.train.labels is not None
    assert table["label"].to_pylist() == store.train.labels.tolist()
    assert table["image"][7].as_py() == store.train.images_NHWC[7].numpy().tobytes()


def test_a_second_opening_decodes_nothing(tmp_path: Path, images: Path) -> None:
    assert calls(ImageFolder(path=str(images)), tmp_path / "cache") > 0
    assert calls(ImageFolder(path=str(images)), tmp_path / "cache") == 0


def test_progress_ends_with_all_images(tmp_path: Path, images: Path) -> None:
    seen: list[tuple[int, int]] = []
    opened(ImageFolder(path=str(images)), tmp_path, progress=lambda *state: seen.append(state))
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 8},
        {"image_size": (8, 9)},
        {"center_crop": 4},
        {"channels": 1},
        {"held_out_fraction": 0.5},
        {"on_corrupt": "skip"},
    ],
)
def test_other_settings_are_another_entry(
    tmp_path: Path, images: Path, change: dict[str, Any]
) -> None:
    usual = opened(ImageFolder(path=str(images)), tmp_path)
    assert opened(ImageFolder(path=str(images)), tmp_path, **change).path != usual.path


def test_a_changed_file_is_another_entry_and_a_moved_folder_is_not(
    tmp_path: Path, images: Path
) -> None:
    source = ImageFolder(path=str(images))
    usual = opened(source, tmp_path / "cache")
    moved = shutil.copytree(images, tmp_path / "moved")  # copies the times, too
    assert opened(ImageFolder(path=str(moved)), tmp_path / "cache").path == usual.path
    os.utime(images / "a" / "000.png", ns=(0, 0))
    touched = opened(source, tmp_path / "cache")  # the same object sees the change
    assert touched.path != usual.path
    (images / "a" / "001.png").rename(images / "a" / "renamed.png")
    assert opened(source, tmp_path / "cache").path not in (usual.path, touched.path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (entry / "manifest.json").write_text('{"key": '),
        lambda entry: (entry / "manifest.json").write_text('{"key": "another"}'),
        lambda entry: (entry / "manifest.json").write_text("[]"),
        lambda entry: (entry / "held_out.arrow").unlink(),
        lambda entry: (entry / "train.arrow").write_bytes(
            bytes((entry / "train.arrow").stat().st_size)
        ),
        lambda entry: os.truncate(entry / "train.arrow", 1000),
        lambda entry: shutil.rmtree(entry),
    ],
)
def test_an_entry_that_is_not_whole_is_made_again(tmp_path: Path, images: Path, harm: Any) -> None:
    source = ImageFolder(path=str(images))
    whole = opened(source, tmp_path / "cache")
    kept = whole.train.images_NHWC.clone()
    entry = whole.path
    del whole
    harm(entry)
    assert calls(source, tmp_path / "cache") > 0
    again = opened(source, tmp_path / "cache")
    assert torch.equal(again.train.images_NHWC, kept)
    assert sorted(file.name for file in again.path.iterdir()) == [
        "held_out.arrow",
        "manifest.json",
        "train.arrow",
    ]


def test_of_racing_processes_one_decodes_and_the_others_wait(tmp_path: Path, images: Path) -> None:
    program = """
        calls = []
        def progress(done, total):
            calls.append(done)
            time.sleep(0.3)   # the others arrive while this one decodes
        (here / f"ready-{sys.argv[0]}{time.time_ns()}").touch()
        while len(list(here.glob("ready-*"))) < 2:
            time.sleep(0.005)
        store = opened(ImageFolder(path=str(here / "images")), progress)
        print(len(calls), len(store.train), int(store.train.images_NHWC.sum()))
    """
    outputs = [finished(p).split() for p in [start(tmp_path, program) for _ in range(2)]]
    decoded = sorted(int(calls) for calls, *_ in outputs)
    assert decoded[0] == 0
    assert decoded[1] > 0
    assert outputs[0][1:] == outputs[1][1:]


def test_a_decoder_that_is_killed_leaves_no_entry_and_no_lock(tmp_path: Path, images: Path) -> None:
    program = """
        def progress(done, total):
            (here / "decoding").touch()
            time.sleep(600)
        opened(ImageFolder(path=str(here / "images")), progress)
    """
    process = start(tmp_path, program)
    decodes = tmp_path / "decoding"
    wait_until(lambda: decodes.exists() or process.poll() is not None, "the first image")
    assert decodes.exists()
    cache = tmp_path / "cache"
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".partial"]
    process.kill()
    process.communicate()
    # Even one of other settings clears away what the dead process left.
    opened(ImageFolder(path=str(images)), cache, image_size=4)
    assert not list(cache.glob("*.partial"))
    source = ImageFolder(path=str(images))
    assert calls(source, cache, held_out_fraction=0.25) > 0
    fresh = opened(source, tmp_path / "other", held_out_fraction=0.25)
    assert equal(opened(source, cache, held_out_fraction=0.25), fresh)


def test_an_error_while_decoding_leaves_nothing(tmp_path: Path, images: Path) -> None:
    (images / "b" / "049.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b/049\.png cannot be decoded"):
        opened(ImageFolder(path=str(images)), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_disk_that_fills_up_leaves_nothing_and_says_so(tmp_path: Path, images: Path) -> None:
    """A limit on the size of files stands for the disk: the system refuses to write on."""
    program = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))   # of 76,800 bytes
        try:
            opened(ImageFolder(path=str(here / "images")))
        except DataError as error:
            print(error)
    """
    message = finished(start(tmp_path, program))
    assert f"data cache {tmp_path}/cache has no room" in message
    assert "another disk" in message
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_disk_without_room_is_refused_before_decoding(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100 * 16 * 16 * 3 - 1)
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"no room for the decoded images .* GiB"):
        opened(ImageFolder(path=str(images)), tmp_path / "cache")


def test_threads_change_nothing(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "TASK_IMAGES", 3)
    stores = []
    for threads in (1, 5):
        cores = set(range(threads))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        stores.append(opened(ImageFolder(path=str(images)), tmp_path / str(threads)))
    assert equal(*stores)
    assert stores[0].digest == stores[1].digest


def digest_of(store: Store) -> str:
    """The digest from the tensors alone."""
    _, *shape_HWC = store.train.images_NHWC.shape
    told = (2, "uint8", tuple(shape_HWC))  # the rules of reading, the type, the shape
    whole = hashlib.blake2b(repr(told).encode(), digest_size=16)
    for split in (store.train, store.held_out):
        content = hashlib.blake2b(split.images_NHWC.numpy().tobytes(), digest_size=16)
        if split.labels is not None:
            content.update(split.labels.numpy().tobytes())
        whole.update(content.digest())
    return whole.hexdigest()


def test_the_digest_is_that_of_the_pixels_and_labels_in_their_order(
    tmp_path: Path, images: Path
) -> None:
    for settings in ({}, {"held_out_fraction": 0.25}, {"image_size": (4, 6), "channels": 1}):
        store = opened(ImageFolder(path=str(images)), tmp_path, **settings)
        assert store.digest == digest_of(store)
        assert opened(ImageFolder(path=str(images)), tmp_path, **settings).digest == store.digest
    flat = opened(ImageFolder(path=str(images / "a")), tmp_path)
    assert flat.train.labels is None
    assert flat.digest == digest_of(flat)


def test_the_digest_knows_content_and_neither_place_nor_time(tmp_path: Path, images: Path) -> None:
    usual = opened(ImageFolder(path=str(images)), tmp_path / "cache")
    moved = Path(shutil.copytree(images, tmp_path / "moved", copy_function=shutil.copyfile))
    again = opened(ImageFolder(path=str(moved)), tmp_path / "other cache")
    assert again.path.name != usual.path.name  # the times are new
    assert again.digest == usual.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "007.png").unlink(),
        lambda root: write(root / "a" / "007.png", noise(16, 16, 3, seed=99)),
        lambda root: write(root / "a" / "999.png", noise(16, 16, 3, seed=99)),
        lambda root: (root / "a" / "007.png").rename(root / "a" / "999.png"),  # another order
        lambda root: (root / "a" / "049.png").rename(root / "b" / "!.png"),  # another label
    ],
    ids=["removed", "changed", "added", "order", "label"],
)
def test_another_content_is_another_digest(tmp_path: Path, images: Path, change: Any) -> None:
    usual = opened(ImageFolder(path=str(images)), tmp_path / "cache").digest
    change(images)
    assert opened(ImageFolder(path=str(images)), tmp_path / "cache").digest != usual


def test_other_splits_are_another_digest(tmp_path: Path, images: Path) -> None:
    source = ImageFolder(path=str(images))
    digests = {
        opened(source, tmp_path, held_out_fraction=fraction).digest for fraction in (0.0, 0.1, 0.3)
    }
    assert len(digests) == 3


def test_a_warm_store_is_opened_without_the_libraries_that_decode(tmp_path: Path) -> None:
    """Importing torchvision alone costs seconds, and every worker would pay them."""
    program = """
        def heavy():
            return sorted({"PIL", "torchvision", "pydantic", "ray"} & {*sys.modules})
        print(*heavy())
        opened(Mnist5k())   # imports pyarrow
        print(*heavy())
    """
    opened(Mnist5k(), tmp_path / "cache", held_out_fraction=0.25)
    assert finished(start(tmp_path, program)) == "\n\n"


def test_the_manifest_tells_what_the_entry_holds(tmp_path: Path, images: Path) -> None:
    write(images / "a" / "empty.png", noise(16, 16, 3)).write_bytes(b"")
    store = opened(
        ImageFolder(path=str(images)), tmp_path, on_corrupt="skip", image_size=(4, 6), channels=1
    )
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["counts"] == {"train": 100, "held_out": 0}
    assert manifest["shape_HWC"] == [4, 6, 1]
    assert manifest["skipped"] == 1
    assert store.image_shape == (1, 4, 6)
