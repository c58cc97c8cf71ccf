"""Reading the reports of a run while it trains."""

from __future__ import annotations

from pathlib import Path

from ray_gen.runs.reports import ReportReader
from ray_gen.storage import Folder
from tests.loggers.helpers import BATCH, numbers, run, short
from tests.s3 import S3


def test_each_report_is_read_once_also_if_a_worker_dies(store_8, tmp_path: Path) -> None:
    folder, this = tmp_path / "run", short()
    reader = ReportReader(Folder(str(folder)))
    assert reader.new() == []
    run(this, folder, store_8, until=4, save=tmp_path / "saved")
    first = reader.new()
    assert dict(first) == numbers(folder)
    assert reader.new() == []
    run(this, folder, store_8, checkpoint=tmp_path / "saved")
    second = reader.new()
    assert [images for images, _ in (*first, *second)] == [BATCH * n for n in range(1, 7)]
    assert dict(second).items() <= numbers(folder).items()


def test_a_resume_reads_no_reports_of_before(store_8, tmp_path: Path) -> None:
    folder, this = tmp_path / "run", short()
    run(this, folder, store_8, until=4, save=tmp_path / "saved")
    reader = ReportReader(Folder(str(folder)), images=2 * BATCH)
    run(this, folder, store_8, checkpoint=tmp_path / "saved")
    assert [images for images, _ in reader.new()] == [BATCH * n for n in range(3, 7)]


def test_a_line_that_is_not_yet_written_to_its_end_is_read_later(tmp_path: Path) -> None:
    reader, file = ReportReader(Folder(str(tmp_path))), tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "images": 24, "time": 1.5, "loss/a": 1.0}\n{"step": 2, "ima')
    assert reader.new() == [(24, {"loss/a": 1.0})]
    with file.open("a") as end:
        end.write('ges": 48, "time": 1.6, "loss/a": 2}\n')
    assert reader.new() == [(48, {"loss/a": 2.0})]


def test_reports_behind_a_uri(s3: S3) -> None:
    folder = Folder(s3.new_bucket()) / "run"
    reader = ReportReader(folder)
    assert reader.new() == []
    folder.write_text("metrics.jsonl", '{"step": 1, "images": 24, "loss/a": 1.0}\n')
    assert reader.new() == [(24, {"loss/a": 1.0})]
    assert reader.new() == []
