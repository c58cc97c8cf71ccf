"""Parquet that is streamed: which images a step sees, what is read, and that training is exact."""

from __future__ import annotations

import io
import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

from ray_gen import storage
from ray_gen.data import DataError, Parquet, Store, open_stream, sampled
from ray_gen.data.sources.parquet import raw_metadata
from ray_gen.data.stream import Streamed, Streams
from ray_gen.evaluation.evaluator import SplitImages
from ray_gen.experiment import Experiment, ExperimentError, differences
from ray_gen.storage import StorageError
from tests.data.pictures import noise
from tests.helpers import (
    PATIENCE_SECONDS,
    gan,
    largest_difference,
    trained,
    trained_by_workers,
    vae,
    weights,
)

SIDE = 8


def picture(number: int) -> np.ndarray:
    """A grey image that tells its number."""
    pixels = noise(SIDE, SIDE, 1, number).reshape(SIDE, SIDE, 1)
    pixels[0, :2, 0] = divmod(number, 256)
    return pixels


def number_of(pixels: Any) -> int:
    return int(pixels[0, 0, 0]) * 256 + int(pixels[0, 1, 0])


def write(
    path: Path, numbers: Sequence[int], raw: bool, group: int, corrupt: Sequence[int] = ()
) -> None:
    """A shard of numbered images, whose label is their number modulo 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if raw:
        stored = pa.array([picture(n).tobytes() for n in numbers], pa.binary(SIDE * SIDE))
        metadata = raw_metadata("image", (SIDE, SIDE, 1))
    else:
        encoded = []
        for number in numbers:
            file = io.BytesIO()
            Image.fromarray(picture(number)[:, :, 0]).save(file, "PNG")
            encoded.append(file.getvalue()[: 40 if number in corrupt else None])
        stored, metadata = pa.array(encoded), {}
    table = pa.table({"image": stored, "label": [n % 10 for n in numbers]})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)


@pytest.fixture(params=["raw", "encoded"])
def folder(request, tmp_path: Path) -> Path:
    """240 images in 3 shards of uneven row groups."""
    raw = request.param == "raw"
    for shard, (numbers, group) in enumerate(
        [(range(100), 10), (range(100, 170), 8), (range(170, 240), 7)]
    ):
        write(tmp_path / "data" / f"{shard}.parquet", numbers, raw, group)
    return tmp_path / "data"


def opened(path: Path, **changes: Any) -> Store:
    given: dict[str, Any] = {
        "image_size": None,
        "center_crop": None,
        "channels": None,
        "held_out_fraction": 0.1,
        "on_corrupt": "stop",
        "cache_folder": path.parent / "cache",
        "window": 24,
    }
    return open_stream(Parquet(path=str(path)), **{**given, **changes})


def streamed(store: Store, part: range = range(24), group: int = 6, seed: int = 0) -> Streamed:
    """The reader of a part of a global batch of 24."""
    assert store.stream is not None
    return Streamed(
        store.stream,
        seed=seed,
        streams=24 // group,
        group_size=group,
        part=part,
        labels=lambda classes, _: classes,
        pinned=False,
    )


def numbers(reader: Streamed, first: int, last: int) -> list[list[int]]:
    """The images of each step, and that their labels are their own."""
    found = []
    for images, labels in reader.batches(first, last):
        step = [number_of(image) for image in images]
        assert labels is not None
        assert labels.tolist() == [number % 10 for number in step]
        assert all(np.array_equal(i, picture(n)) for i, n in zip(images, step, strict=True))
        found.append(step)
    return found


@given(
    rows=some.lists(some.integers(1, 9), min_size=1, max_size=12),
    streams=some.integers(1, 5),
    window=some.integers(1, 30),
    seed=some.integers(0, 99),
)
def test_an_epoch_deals_every_row_to_one_stream(
    rows: list[int], streams: int, window: int, seed: int
) -> None:
    order = Streams(seed, rows, streams, window)
    dealt = [Counter[int]() for _ in range(3)]
    for stream in range(streams):
        blocks = order.blocks(stream, 0)
        for block, offset in itertools.takewhile(lambda found: found[0].epoch < 3, blocks):
            assert offset == 0
            assert sorted(order.within(stream, block)) == list(range(block.rows))
            assert block.rows == sum(rows[group] for group in block.groups)
            dealt[block.epoch].update(block.groups)
    assert dealt == [Counter(range(len(rows)))] * 3


@given(
    rows=some.lists(some.integers(1, 9), min_size=1, max_size=12),
    streams=some.integers(1, 5),
    window=some.integers(1, 30),
    position=some.integers(0, 200),
)
def test_a_stream_goes_on_where_it_was_left(
    rows: list[int], streams: int, window: int, position: int
) -> None:
    order = Streams(3, rows, streams, window)

    def places(start: int) -> Any:
        for block, offset in order.blocks(streams - 1, start):
            within = order.within(streams - 1, block)
            yield from ((block.groups, row) for row in within[offset:])

    from_the_start = itertools.islice(places(0), position, position + 40)
    assert list(itertools.islice(places(position), 40)) == list(from_the_start)


def test_seeds_and_epochs_have_orders_of_their_own(folder: Path) -> None:
    store = opened(folder)
    first = numbers(streamed(store, seed=0), 0, 9)
    assert numbers(streamed(store, seed=0), 0, 9) == first
    assert numbers(streamed(store, seed=1), 0, 9) != first
    assert numbers(streamed(store, seed=0), 9, 18) != first


def test_workers_share_out_what_one_reads(folder: Path) -> None:
    store = opened(folder)
    alone = numbers(streamed(store), 0, 30)
    for parts in ([range(12), range(12, 24)], [range(n, n + 6) for n in range(0, 24, 6)]):
        shares = [numbers(streamed(store, part), 0, 30) for part in parts]
        together = [list(itertools.chain(*step)) for step in zip(*shares, strict=True)]
        assert together == alone


def test_a_run_goes_on_with_the_images_that_would_have_come(folder: Path) -> None:
    store = opened(folder)
    whole = numbers(streamed(store), 0, 40)
    for step in (1, 7, 23):
        assert numbers(streamed(store), step, 40) == whole[step:]


def test_what_is_held_out_is_never_trained_on_and_the_rest_is(folder: Path) -> None:
    store = opened(folder, held_out_fraction=0.2)
    held_out = {number_of(image) for image in store.held_out.images_NHWC}
    trained_on = {number for step in numbers(streamed(store), 0, 40) for number in step}
    assert 0 < len(held_out) <= 48
    assert held_out.isdisjoint(trained_on)
    assert held_out | trained_on == set(range(240))
    assert store.stream is not None
    assert store.stream.rows == len(trained_on)
    assert {number_of(image) for image in store.train.images_NHWC} == trained_on


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_epoch_reads_the_data_once(folder: Path, workers: int, monkeypatch) -> None:
    store = opened(folder, held_out_fraction=0.0)
    read: list[tuple[str, int]] = []
    real = Parquet.read

    def counted(self: Parquet, group: Any, columns: Any) -> Any:
        read.append((group.shard.path, group.number))
        return real(self, group, columns)

    monkeypatch.setattr(Parquet, "read", counted)
    epochs = 10
    share = 24 // workers
    for rank in range(workers):
        part = range(rank * share, (rank + 1) * share)
        assert len(numbers(streamed(store, part), 0, epochs * 240 // 24)) == epochs * 10
    # Beside what the steps take, each stream has the next block in hand: 4 streams x 2 blocks.
    assert len(read) <= epochs * 29 + 4 * 2 * 4
    assert set(read) == {(group.shard.path, group.number) for group in store.stream.groups}  # type: ignore[union-attr]


def test_pixels_and_files_train_alike(tmp_path: Path) -> None:
    for kind in ("raw", "encoded"):
        write(tmp_path / kind / "a.parquet", range(120), kind == "raw", 10)
    raw, encoded = opened(tmp_path / "raw"), opened(tmp_path / "encoded")
    assert numbers(streamed(raw), 0, 20) == numbers(streamed(encoded), 0, 20)


def test_the_data_sets_own_splits(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-0.parquet", range(60), True, 10)
    write(tmp_path / "data" / "validation-0.parquet", range(60, 80), True, 10)
    store = opened(tmp_path / "data")
    assert {number_of(image) for image in store.held_out.images_NHWC} == set(range(60, 80))
    assert {n for step in numbers(streamed(store), 0, 9) for n in step} == set(range(60))


def test_too_few_row_groups_to_hold_some_out(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", range(60), True, 60)
    with pytest.raises(DataError, match=r"too few row groups \(1\).* data convert"):
        opened(tmp_path / "data")
    assert opened(tmp_path / "data", held_out_fraction=0.0).stream is not None


def test_corrupt_images_stop_a_run_or_give_way_to_the_next(tmp_path: Path) -> None:
    bad = {17, 18, 55}
    write(tmp_path / "data" / "a.parquet", range(120), False, 10, sorted(bad))
    with pytest.raises(DataError, match=r"row 1[78] cannot be decoded.*on_corrupt=skip"):
        opened(tmp_path / "data", held_out_fraction=0.0)
    store = opened(tmp_path / "data", held_out_fraction=0.0, on_corrupt="skip")
    skipping = streamed(store)
    seen = {number for step in numbers(skipping, 0, 30) for number in step}
    assert seen == set(range(120)) - bad
    assert numbers(skipping, 12, 30) == numbers(streamed(store), 0, 30)[12:]
    assert store.stream is not None
    stops = replace(store, stream=replace(store.stream, skip_corrupt=False))
    with pytest.raises(DataError, match=r"a\.parquet, row \d+ cannot be decoded"):
        numbers(streamed(stops), 0, 30)


def test_a_shard_that_went_away_stops_the_run(folder: Path) -> None:
    store = opened(folder)
    (folder / "1.parquet").unlink()
    with pytest.raises(DataError, match=r"1\.parquet cannot be read"):
        numbers(streamed(store), 0, 30)


def test_images_of_another_size_are_resized(folder: Path) -> None:
    store = opened(folder, image_size=4, channels=3)
    images, _ = next(iter(streamed(store).batches(0, 1)))
    assert images.shape == (24, 4, 4, 3)
    assert store.image_shape == (3, 4, 4)


def test_the_digest_is_of_the_data_and_not_of_where_it_lies(tmp_path: Path) -> None:
    for place, numbers_ in (("a", range(60)), ("b", range(60)), ("c", range(1, 61))):
        write(tmp_path / place / "data" / "x.parquet", numbers_, False, 10)
    a, b, c = (opened(tmp_path / place / "data").digest for place in "abc")
    assert a == b != c


def small(path: Path, *overrides: str, of: Any = vae) -> tuple[Experiment, Store]:
    """A small experiment on streamed data."""
    this = of(f"data=parquet:{path}", "data.placement=stream", *overrides)
    store = opened(path)
    assert store.class_names == tuple(str(n) for n in range(10))
    return this.resolved(store.image_shape, store.class_names, store.digest), store


@pytest.mark.parametrize("of", [vae, gan])
def test_training_resumed_is_training(folder: Path, of: Any) -> None:
    this, store = small(folder, of=of)
    whole, _ = trained(this, store)
    state, _ = trained(this.with_fields(training__images=24 * 7), store)
    state, _ = trained(this, store, state=state)
    assert largest_difference(weights(state), weights(whole)) == 0.0


def test_several_workers_train_what_one_does(folder: Path, tmp_path: Path) -> None:
    this, store = small(folder, "training.precision=fp64")
    alone, _ = trained(this, store)
    for count in (2, 3):
        (together,) = trained_by_workers(count, [this], store, tmp_path)
        assert largest_difference(together, weights(alone)) < 1e-12


def test_streaming_is_part_of_what_a_run_is(folder: Path) -> None:
    this, _ = small(folder)
    other = this.with_fields(data__placement="auto")
    assert [d.partition(":")[0] for d in differences(this, other)] == ["data.placement"]
    assert not list(differences(other, this.with_fields(data__placement="device")))[1:]
    assert not list(differences(other, other.with_fields(data__placement="host")))


def test_only_parquet_is_streamed() -> None:
    with pytest.raises(ExperimentError, match=r"data\.placement: stream .*Parquet"):
        vae("data.placement=stream")


def test_nothing_is_left_running(folder: Path) -> None:
    batches = streamed(opened(folder)).batches(0, 1000)
    before = set(threading.enumerate())
    next(batches)
    running = set(threading.enumerate()) - before
    assert running
    batches.close()  # type: ignore[attr-defined]
    for thread in running:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_a_group_of_the_batch_comes_from_one_stream(folder: Path) -> None:
    """Four streams of six images each. Within one epoch, no stream gives an image twice."""
    store = opened(folder, held_out_fraction=0.0)
    steps = numbers(streamed(store), 0, 8)
    for stream in range(4):
        seen = [n for step in steps for n in step[6 * stream : 6 * stream + 6]]
        assert len(set(seen)) == len(seen)


def test_torch_is_not_asked_for_randomness(folder: Path) -> None:
    before = torch.get_rng_state()
    numbers(streamed(opened(folder)), 0, 3)
    assert torch.equal(torch.get_rng_state(), before)


class Flaky:
    """A file system that fails `failures` times before it opens a file."""

    def __init__(self, system: Any, failures: int) -> None:
        self._system = system
        self.failures = failures

    def open_input_file(self, location: str) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError("AWS Error SLOW_DOWN (HTTP status 503) during GetObject operation: later")
        return self._system.open_input_file(location)


def uri_with(path: Path, failures: int, monkeypatch) -> tuple[Parquet, Any, Any, Flaky]:
    write(path / "a.parquet", range(20), raw=False, group=10)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    source = Parquet(path=path.as_uri())
    (first, _), columns = source.row_groups()
    source.file_system = flaky = Flaky(source.file_system, failures)
    return source, first, columns, flaky


def test_a_storage_that_fails_is_asked_again(tmp_path: Path, monkeypatch) -> None:
    source, first, columns, flaky = uri_with(tmp_path, 3, monkeypatch)
    rows = source.read(first, columns)
    assert rows.labels == list(range(10))
    assert flaky.failures == 0


def test_footers_and_labels_are_asked_for_again(tmp_path: Path, monkeypatch) -> None:
    _, _, _, flaky = uri_with(tmp_path, 3, monkeypatch)
    source = Parquet(path=tmp_path.as_uri())
    source.identity()  # lists the shards
    source.file_system = flaky
    groups, columns = source.row_groups()
    assert sum(group.rows for group in groups) == 20 and columns.label_count == 10
    assert flaky.failures == 0


def test_a_storage_that_is_gone_ends_the_run_in_words(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.2)
    source, first, columns, flaky = uri_with(tmp_path, 10**6, monkeypatch)
    with pytest.raises(StorageError, match=r"SLOW_DOWN.* failed for 0 s"):
        source.read(first, columns)
    flaky.failures = 0
    assert source.read(first, columns).labels == list(range(10))


def test_a_damaged_row_group_is_not_asked_for_again(tmp_path: Path, monkeypatch) -> None:
    source, first, columns, flaky = uri_with(tmp_path, 0, monkeypatch)
    file = tmp_path / "a.parquet"
    whole = bytearray(file.read_bytes())
    whole[4:400] = bytes(396)
    file.write_bytes(whole)
    flaky.failures = 1
    with pytest.raises(DataError, match=r"a\.parquet cannot be read"):
        source.read(first, columns)
    assert flaky.failures == 0


def test_classes_are_those_of_all_images(tmp_path: Path, monkeypatch) -> None:
    """Also of classes that neither the sample nor the images held out have."""
    labels = [number // 5 for number in range(500)]
    picture_bytes = [picture(number).tobytes() for number in range(500)]
    table = pa.table({"image": pa.array(picture_bytes, pa.binary(SIDE * SIDE)), "label": labels})
    table = table.replace_schema_metadata(raw_metadata("image", (SIDE, SIDE, 1)))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    monkeypatch.setattr(sampled, "SAMPLE_IMAGES", 50)
    monkeypatch.setattr(sampled, "HELD_OUT_IMAGES", 50)
    store = opened(tmp_path)
    assert store.train.labels is not None and len(set(store.train.labels.tolist())) == 10
    assert store.label_count == 100


def test_a_row_group_must_fit_into_the_window_of_a_stream(tmp_path: Path) -> None:
    for part in ("a", "b"):
        write(tmp_path / f"{part}.parquet", range(100), raw=True, group=100)
    with pytest.raises(DataError, match=r"row groups of 100 images.*data\.window_images=100"):
        opened(tmp_path, window=20)
    assert opened(tmp_path, window=25).stream is not None


def test_scores_say_that_they_compare_with_a_sample(tmp_path: Path) -> None:
    for part in ("a", "b", "c", "d"):
        write(tmp_path / f"{part}.parquet", range(100), raw=True, group=10)
    store = opened(tmp_path)
    assert store.stream is not None
    told = SplitImages(store, "train", "faces", torch.device("cpu")).description["split"]
    assert told == f"train, a sample of {len(store.train)} of {store.stream.rows} images"
    assert (
        SplitImages(store, "held_out", "faces", torch.device("cpu")).description["split"]
        == "held_out"
    )


def test_streams_do_not_all_begin_a_block_in_one_step() -> None:
    order = Streams(0, [10] * 1000, 50, 40)
    ends = Counter(next(order.blocks(stream, 0))[0].rows for stream in range(50))
    assert len(ends) == 4 and max(ends.values()) < 15
