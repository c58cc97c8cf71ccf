"""`ray-gen data check`: every fault is named, duplicates are found, and the outlook is true."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_gen.cli import main
from ray_gen.data import DataError, ImageFolder, Mnist5k, Parquet
from ray_gen.data.check import (
    Asked,
    Checked,
    Findings,
    Looking,
    as_json,
    check,
    in_words,
    looked_at,
    page,
    row_group,
)
from ray_gen.data.check import duplicates as module
from ray_gen.data.check.damage import place_of_damage
from ray_gen.data.check.duplicates import groups_of
from ray_gen.data.check.prints import PRINT_BYTES, digest_of, print_of
from ray_gen.data.check.reading import contents_of, merged
from ray_gen.data.sources.archives import ImageZip
from ray_gen.data.sources.base import Source
from ray_gen.data.sources.joined import Joined
from ray_gen.data.store import wanted_of
from ray_gen.data.told import remarks, summary
from tests.data.faults import (
    CORRUPT,
    HOSTILE,
    JPEG,
    PNG,
    STEERING,
    UNREAD,
    encoded,
    faulty_folder,
    refused_folder,
    smooth,
)
from tests.data.pictures import noise, opened, write, write_classes
from tests.data.test_any_folder import ENTRIES, lay_out


def checked(source: Source, fraction: float = 0.0, corrupt: str = "stop", **pixels: Any) -> Checked:
    given = {"image_size": None, "center_crop": None, "channels": None, **pixels}
    asked = Asked(wanted_of(**given), fraction, corrupt == "skip", "data.path")
    return check(source, asked, lambda done, total, what: None)


def of_folder(path: Path, **given: Any) -> Checked:
    return checked(ImageFolder(path=str(path)), **given)


def named(groups: Any) -> list[list[str]]:
    return [[Path(image.name).name for image in copies.images] for copies in groups]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_folder(tmp_path_factory.mktemp("faulty") / "set")


@pytest.fixture(scope="module")
def of_faulty(faulty: Path) -> Checked:
    return of_folder(faulty)


# The folder of faults


@pytest.mark.parametrize("name", CORRUPT)
def test_every_corrupt_image_is_named_with_the_reason(name: str, of_faulty: Checked) -> None:
    reasons = {Path(fault.name).name: fault.reason for fault in of_faulty.found.corrupt}
    assert re.search(CORRUPT[name][1], reasons[name])
    others = {"gone.png": "link to nothing", "nan.tif": "not finite", "words.npy": "not numbers"}
    assert all(others[name] in reasons[name] for name in others)
    assert reasons.keys() == CORRUPT.keys() | others.keys()


@pytest.mark.parametrize("name", UNREAD)
def test_every_image_that_is_not_read_is_named_with_the_remedy(
    name: str, of_faulty: Checked
) -> None:
    reasons = {Path(fault.name).name: fault.reason for fault in of_faulty.contents.unread}
    assert UNREAD[name][1] in reasons[name] and reasons.keys() == UNREAD.keys()


def test_what_is_unusual_is_counted_and_named(of_faulty: Checked) -> None:
    found = of_faulty.found
    assert found.animated.count == 1 and "moving.gif has 3 images" in found.animated.names[0]
    assert found.misnamed.count == 1 and "misnamed.jpg is PNG" in found.misnamed.names[0]
    assert found.blank.count == 1 and found.blank.names[0].endswith("plain.png")
    assert found.seen.modes == {"RGB": 22, "RGBA": 1, "grey": 1}
    assert found.formats == {"PNG": 21, "JPEG": 1, "GIF": 1, "BMP": 1}
    told = {kind: named.count for kind, named in of_faulty.contents.others.items()}
    assert told == {".txt": 1, ".xlsx": 1, "without suffix": 1}


def test_leaks_and_copies_are_found(of_faulty: Checked) -> None:
    assert named(of_faulty.exact) == [["leak.png", "leak.bmp"]]
    assert of_faulty.exact[0].leaks
    assert named(of_faulty.near) == [["twin.jpg", "twin.png"]]
    assert not of_faulty.near[0].leaks
    first = next(in_words(of_faulty))
    assert first.startswith("leakage: 1 held-out image has duplicates among the training images")


def test_the_words_name_every_fault_and_steer_no_terminal(of_faulty: Checked) -> None:
    told = "\n".join(in_words(of_faulty))
    for name in (*CORRUPT, *UNREAD, "gone.png", "notes.txt", "moving.gif"):
        assert name in told
    assert "\x1b" not in told and told.isascii() is False
    told.encode()  # no surrogates


def test_json_holds_every_fault(of_faulty: Checked, faulty: Path) -> None:
    told = json.loads(json.dumps(as_json(of_faulty, "folder:x")))
    assert len(told["corrupt"]) == len(CORRUPT) + 3
    assert len(told["not_read_images"]) == len(UNREAD)
    assert told["images"] == {
        "listed": 43, "looked_at": 43, "read": 24, "train": 19, "held_out": 5,
    }  # fmt: skip
    assert told["classes"] == [
        {"name": "cat", "train": 7, "held_out": 3},
        {"name": "dog", "train": 12, "held_out": 2},
    ]
    assert told["duplicates"]["exact"][0]["images"][1] == {
        "name": str(faulty / "val/cat/leak.bmp"), "split": "held_out", "class": "cat",
    }  # fmt: skip
    assert told["training"]["would_start"] is False and told["complete"] is True
    histogram = told["values"][0]["histogram"]
    assert len(histogram) == 1 and sum(histogram[0]) == 64 * 64  # grey.png


def test_all_refusals_are_told_not_only_the_first(tmp_path: Path) -> None:
    outlook = of_folder(refused_folder(tmp_path / "set")).outlook
    patterns = (
        *(r"images beside class folders", r"set/bird is empty", r"set/fish is empty or a link"),
        *(r"class horse .* only images in HEIC", r"broken\.png cannot be decoded: it has 0 bytes"),
        r"images differ in size \(height×width\): .*0\.png is 64×64 .*2\.png 48×48",
        r"images differ in their channels",
    )
    for pattern in patterns:
        assert [refusal for refusal in outlook.refusals if re.search(pattern, refusal)], pattern
    assert len(outlook.refusals) == len(patterns)


# What training would do


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ENTRIES,
    st.sampled_from(["stop", "skip"]),
    st.sampled_from([None, 8, (6, 10)]),
    st.sampled_from([None, 1, 3, "auto"]),
    st.sampled_from([None, 6]),
    st.sampled_from([0.0, 0.3]),
)
def test_the_outlook_is_what_training_does(
    entries: Any, corrupt: str, size: Any, channels: Any, crop: int | None, fraction: float
) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "set"
        lay_out(root, entries)
        pixels = {"image_size": size, "channels": channels, "center_crop": crop}
        outlook = of_folder(root, fraction=fraction, corrupt=corrupt, **pixels).outlook
        try:
            store = opened(
                ImageFolder(path=str(root)), Path(place) / "cache", on_corrupt=corrupt,
                held_out_fraction=fraction, **pixels,
            )  # fmt: skip
        except DataError as refused:
            event("refused")
            field = str(refused).partition(":")[0]
            assert field in {refusal.partition(":")[0] for refusal in outlook.refusals}
            return
        event("read")
        assert outlook.refusals == ()
        assert outlook.line == summary(store)
        assert outlook.remarks == tuple(remarks(store))


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_images_are_told_as_training_tells_them(bits: int, tmp_path: Path) -> None:
    values = np.linspace(0, 2**bits - 1, 64 * 64).astype(np.uint16).reshape(64, 64)
    for number, image in enumerate((values, values.T)):
        write(tmp_path / "set" / f"{number}.png", Image.fromarray(image))
    this = of_folder(tmp_path / "set")
    store = opened(ImageFolder(path=str(tmp_path / "set")), tmp_path / "cache")
    assert this.outlook.line == summary(store)
    assert this.outlook.remarks == tuple(remarks(store))
    told = as_json(this, "")
    assert told["deep_values"] == [0, 2**bits - 1]
    assert told["values"][0]["mean"][0] == pytest.approx((2**bits - 1) / 2, rel=1e-3)
    page(this, "")


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "set", {"cat": 3})
    asked = Asked(wanted_of(8, None, 3), 0.0, False, "data.path", cache_folder=tmp_path / "no")
    source = ImageFolder(path=str(tmp_path / "set"))
    assert not check(source, asked, lambda *_: None).outlook.refusals
    usage = type("Usage", (), {"free": 3 * 8 * 8 * 3 - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    (refusal,) = check(source, asked, lambda *_: None).outlook.refusals
    assert "has no room for the decoded images" in refusal


# Damaged files

WHOLE = {
    "PNG": PNG,
    "JPEG": JPEG,
    "progressive": encoded(smooth(64, 1), "JPEG", progressive=True),
    **{kind: encoded(noise(24, 24, 3), kind) for kind in ("GIF", "WEBP", "BMP", "TIFF", "PPM")},
    **{kind: encoded(noise(24, 24, 3), kind) for kind in ("AVIF", "JPEG2000", "QOI")},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_file_is_not_called_damaged(kind: str) -> None:
    assert place_of_damage(WHOLE[kind]) is None


@given(st.sampled_from([*WHOLE]), st.floats(0, 1), st.binary(max_size=3))
def test_damage_is_a_sentence_and_never_an_error(kind: str, part: float, junk: bytes) -> None:
    data = WHOLE[kind]
    told = place_of_damage(data[: int(part * len(data))] + junk)
    assert told is None or told.startswith("it")


# Duplicates


def prints_of(images: list[np.ndarray]) -> bytes:
    return b"".join(print_of(image) for image in images)


def digests_of(images: list[np.ndarray]) -> bytes:
    return b"".join(digest_of(image) for image in images)


def digits(count: int) -> list[np.ndarray]:
    listing = Mnist5k().listing()
    found = []
    for _, item in zip(range(count), listing.items, strict=False):
        image, _ = item.load()
        found.append(np.asarray(image)[..., None])
    return found


def copy_of(pixels: np.ndarray, change: str) -> np.ndarray:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if change == "half":
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    elif change == "larger":
        image = image.resize((image.width * 3 // 2,) * 2, Image.Resampling.BICUBIC)
    else:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(change))
        image = Image.open(file)
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


@pytest.mark.parametrize("change", ["90", "75", "half", "larger"])
def test_copies_in_another_format_or_size_are_near(change: str) -> None:
    originals = [smooth(64, seed) for seed in range(60)]
    images = [*originals, *(copy_of(image, change) for image in originals)]
    near = groups_of(digests_of(images), prints_of(images)).near
    assert near == [[k, k + 60] for k in range(60)]


def test_different_digits_are_no_duplicates() -> None:
    """All pairs of 5,000 digits, which look alike: 12.5 million."""
    images = digits(5_000)
    groups = groups_of(digests_of(images), prints_of(images))
    assert groups.exact == [] and groups.near == [] and groups.complete


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.integers(0, 2**32 - 1), st.floats(0.5, 60))
def test_all_close_pairs_are_found(count: int, seed: int, spread: float) -> None:
    """Against a comparison of all pairs, on prints in clouds of different density."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 256, (5, PRINT_BYTES))
    prints = centres[random.integers(0, 5, count)] + random.normal(0, spread, (count, PRINT_BYTES))
    prints = prints.round().clip(0, 255).astype(np.uint8)
    digests = np.arange(2 * count, dtype=np.int64).tobytes()
    found = groups_of(digests, prints.tobytes())
    contrast = prints[:, :64].astype(np.float32).std(1)
    compared = np.flatnonzero(contrast >= module.PLAIN)
    tops = {int(k): int(k) for k in compared}
    for i in compared:
        for j in compared[compared > i]:
            difference = np.square(prints[i].astype(float) - prints[j])
            far = max(difference[:64].mean(), difference[64:].mean())
            if far <= min(module.NEAR, 0.1 * min(contrast[i], contrast[j])) ** 2:
                a, b = tops[int(i)], tops[int(j)]
                tops = {k: min(a, b) if top in (a, b) else top for k, top in tops.items()}
    groups: dict[int, list[int]] = {}
    for k, top in tops.items():
        groups.setdefault(top, []).append(k)
    assert found.complete
    assert found.near == [group for group in groups.values() if len(group) > 1]


def test_a_million_alike_take_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: of 3,000 that are all close to each other, each is compared with the next 20."""
    monkeypatch.setattr(module, "COMPARED", 3_000)
    prints = np.tile(np.arange(PRINT_BYTES, dtype=np.uint8), (3_000, 1))
    groups = groups_of(np.arange(6_000, dtype=np.int64).tobytes(), prints.tobytes())
    assert not groups.complete
    assert groups.near == [[*range(3_000)]]


def test_opacity_counts_only_where_it_is_kept(tmp_path: Path) -> None:
    clear = smooth(64, 5, 4)
    other = clear.copy()
    other[clear[..., 3] == 0] = (9, 9, 9, 0)  # what nobody sees
    clear[0, 0], other[0, 0] = (1, 2, 3, 0), (200, 100, 0, 0)
    write(tmp_path / "set" / "0.png", clear)
    write(tmp_path / "set" / "1.png", other)
    assert named(of_folder(tmp_path / "set").exact) == [["0.png", "1.png"]]
    assert of_folder(tmp_path / "set", channels=4).exact == []


# Parts, threads, machines


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of small row groups, with damage, deep images and a duplicate."""
    root = tmp_path_factory.mktemp("shards")
    deep = io.BytesIO()
    values = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(deep, "TIFF")
    for shard in range(3):
        files = [encoded(smooth(48, 1000 * shard + k), "PNG") for k in range(150)]
        files[3] = b"broken"
        files[7] = encoded(smooth(48, 1), "PNG")
        files[8] = deep.getvalue()
        table = pa.table({"image": files, "label": [k % 3 for k in range(150)]})
        pq.write_table(table, root / f"{('train', 'train', 'test')[shard]}-{shard}.parquet", 70)
    return root


def as_plain(found: Findings) -> dict[str, Any]:
    """Findings with their arrays as lists, to be compared."""
    plain = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    plain["histograms"] = {k: v.tolist() for k, v in found.histograms.items()}
    plain["sums"] = {k: (v.count, v.values_HWC.tolist()) for k, v in found.sums.items()}
    plain["sheet"] = {
        label: [(one.rank, one.values_HWC.tolist(), one.ratio) for one in shown]
        for label, shown in found.sheet.items()
    }
    return plain


def test_results_do_not_depend_on_the_number_of_threads(
    faulty: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = (lambda: ImageFolder(path=str(faulty)), lambda: Parquet(path=str(shards)))
    for source in sources:
        told = []
        for threads in (1, 2, 7):
            monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=threads: set(range(n)))
            this = checked(source())
            told.append((as_plain(this.found), as_json(this, ""), page(this, "")))
        assert told[0] == told[1] == told[2]


def test_row_groups_together_are_the_whole(shards: Path) -> None:
    contents = contents_of(Parquet(path=str(shards)))
    assert len(contents.groups) == 9 and contents.columns is not None
    looking = Looking(wanted_of(None, None, None), 0.1, "data.path")
    whole = merged(looked_at(contents, looking, lambda *_: None))
    source = contents.source
    assert isinstance(source, Parquet)
    apart = merged(row_group(source, g, contents.columns, looking) for g in contents.groups)
    assert as_plain(apart) == as_plain(whole)
    assert whole.looked_at == 450 and len(whole.corrupt) == 3
    listed = [item.name for item in source.listing().items]
    assert contents.names([0, 69, 70, 449]) == {k: listed[k] for k in (0, 69, 70, 449)}
    items = contents.items([0, 69, 70, 449])
    assert {k: item.name for k, item in items.items()} == {k: listed[k] for k in items}


def test_parquet_is_checked_like_a_folder(shards: Path) -> None:
    this = checked(Parquet(path=str(shards)), corrupt="skip", image_size=16)
    assert not this.outlook.refusals
    assert "447 images (298 train, 149 held out) of 16×16, RGB, 3 classes" in str(this.outlook.line)
    leaks = [copies for copies in this.exact if copies.leaks]
    assert len(leaks) == 2  # the picture, and the deep one
    assert any("-2.parquet, row 7" in image.name for image in leaks[0].images)
    page(this, "")


def test_a_zip_is_checked_like_a_folder(faulty: Path, of_faulty: Checked, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for path in sorted(faulty.rglob("*")):
            if path.is_file() and path.name.isprintable():
                file.write(path, path.relative_to(faulty))
    this = checked(ImageZip(path=str(tmp_path / "set.zip")))
    assert {fault.reason for fault in this.found.corrupt} == {
        fault.reason for fault in of_faulty.found.corrupt if "link to nothing" not in fault.reason
    }
    assert [fault.reason for fault in this.contents.unread] == [
        fault.reason for fault in of_faulty.contents.unread
    ]
    assert named(this.exact) == named(of_faulty.exact)
    assert named(this.near) == named(of_faulty.near)


def test_joined_sources_are_checked_together(tmp_path: Path) -> None:
    for number in range(2):
        write_classes(tmp_path / f"{number}", {"cat": 4, "dog": 3})
        (tmp_path / f"{number}" / "cat" / "phone.heic").write_bytes(UNREAD["phone.heic"][0])

    def source() -> Joined:
        return Joined(sources=[ImageFolder(path=str(tmp_path / f"{n}")) for n in range(2)])

    this = checked(source())
    store = opened(source(), tmp_path / "cache")
    assert not this.outlook.refusals and this.outlook.line == summary(store)
    assert [Path(fault.name).parts[-3] for fault in this.contents.unread] == ["0", "1"]
    assert len(this.exact) == 4  # the pictures of each folder are the same
    page(this, "")


def test_a_file_that_is_no_parquet_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1 and nothing else")
    outlook = checked(Parquet(path=str(tmp_path))).outlook
    assert len(outlook.refusals) == 1 and "0.parquet" in outlook.refusals[0]


# The page


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_and_runs_nothing(of_faulty: Checked) -> None:
    shown = Page(page(of_faulty, f"folder:/{HOSTILE}"))
    for tag, attributes in shown.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "a", "form")
        assert (attributes.get("src") or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    policies = [a["content"] for _, a in shown.tags if "http-equiv" in a]
    assert "default-src 'none'" in str(policies) and "script-src" not in str(policies)


def test_the_page_names_every_fault(of_faulty: Checked) -> None:
    text = Page(page(of_faulty, "x")).text
    for name in (*CORRUPT, *UNREAD, "gone.png", "leak.bmp", "twin.jpg", "moving.gif"):
        assert name in text
    assert of_faulty.outlook.line is not None and of_faulty.outlook.line in text


def test_hostile_names_of_duplicates_and_faults_are_text(tmp_path: Path) -> None:
    for name in (HOSTILE, STEERING):
        write(tmp_path / "set" / "<b>cat" / name, smooth(32, 1))
    (tmp_path / "set" / "<b>cat" / f"empty{HOSTILE}").write_bytes(b"")
    html = page(of_folder(tmp_path / "set"), "x")
    shown = Page(html)
    assert HOSTILE in shown.text and "<b>cat" in shown.text and "\x1b" not in html
    assert not [a for _, a in shown.tags if a.get("src") == "x"]


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_images_of_any_channels_have_a_page(channels: int, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        np.save(tmp_path / "set" / f"{number}.npy", noise(20, 24, max(channels, 2), number))
    this = of_folder(tmp_path / "set", corrupt="skip")
    assert "<img" in page(this, "")
    assert "20×24" in "\n".join(in_words(this))


# The command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["data", "check", *arguments])


def test_exit_codes_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    folder = str(write_classes(tmp_path / "set", {"cat": 20, "dog": 20}))
    page_file, json_file = tmp_path / "page.html", tmp_path / "all.json"
    done = run(folder, "--report", str(page_file), "--json", str(json_file))
    assert done.exit_code == 0, done.output
    assert "training would read:\n  40 images (" in done.stdout
    assert page_file.read_text().startswith("<!doctype html>")
    assert json.loads(json_file.read_text())["training"]["would_start"] is True
    (tmp_path / "set" / "cat" / "bad.png").write_bytes(b"")
    assert run(folder).exit_code == 1
    assert run(folder, "data.on_corrupt=skip").exit_code == 0
    told = json.loads(run(folder, "--json", "-").stdout)
    assert told["training"]["refusals"] and told["source"] == f"folder:{folder}"
    refused = run(folder, "--report", str(tmp_path / "page.pdf"))
    assert refused.exit_code == 2 and "--report: " in refused.stderr
    missing = run(f"folder:{tmp_path / 'nowhere'}")
    assert missing.exit_code == 1 and "does not exist" in missing.stdout
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("option", ["--report", "--json"])
def test_a_place_for_the_answer_is_looked_at_before_the_data(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    suffix = {"--report": "html", "--json": "json"}[option]
    refused = run(str(tmp_path / "file"), option, str(tmp_path / "file" / f"x.{suffix}"))
    assert refused.exit_code == 2 and not refused.stdout
    assert f"error: {option}: {tmp_path}/file/x.{suffix} cannot be written: " in refused.stderr
    assert refused.stderr.rstrip().endswith("; give another file")
    write(tmp_path / "set" / "0.png", noise(6, 6, 3))
    inner = tmp_path / "new" / "folder" / f"x.{suffix}"
    assert run(f"folder:{tmp_path / 'set'}", option, str(inner)).exit_code == 0
    assert inner.stat().st_size > 0


def test_joined_sources(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name / "0.png", noise(6, 6, 3, ord(name)))
    sources = f"[folder:{tmp_path}/a, folder:{tmp_path}/b]"
    done = run(f"{{kind: joined, sources: {sources}}}", "data.weights=[1, 2]")
    assert done.exit_code == 0 and "2 images (2 train" in done.stdout


def test_a_stream_is_told_as_training_tells_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_GEN_CACHE", str(tmp_path / "cache"))
    common = ("data.image_size=16", "data.on_corrupt=skip", "data.placement=stream")
    done = run(f"parquet:{shards}", *common, "data.value_range=full")
    assert done.exit_code == 0 and "447 images" not in done.stdout
    assert "448 images" not in done.stdout and "train" in done.stdout
    done = run(f"parquet:{shards}", *common, "data.window_images=8")
    assert done.exit_code == 1 and "row groups of 70 images" in done.stdout


def test_an_interrupt_is_heard_and_what_was_found_is_printed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    picture = Image.fromarray(smooth(1200, 1))
    write(folder / "00.png", picture)
    for number in range(1, 3000):  # more than a busy machine reads before the signal comes
        (folder / f"{number:02}.png").hardlink_to(folder / "00.png")
    (folder / "000.png").write_bytes(b"")
    command = [sys.executable, "-m", "ray_gen", "data", "check", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while process.stderr.readline().strip() != "images":
        assert process.poll() is None
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.match(r"interrupted: \d+ of 3,001 images were looked at", out)
    assert "Traceback" not in err


def test_the_help_names_the_keys_of_the_json(of_faulty: Checked) -> None:
    told = run("--help").stdout
    keys = as_json(of_faulty, "")
    assert [key for key in keys if key not in told] == []
    nested = ("training", "images")
    assert [k for name in nested for k in keys[name] if k not in told] == []
