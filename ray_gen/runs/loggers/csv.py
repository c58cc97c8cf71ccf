"""`metrics.csv`: a table of all reports."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from ray_gen.runs.loggers.logger import LoggedRun, Picture
from ray_gen.storage import Folder

FILE = "metrics.csv"


class Csv:
    """Writes `metrics.csv`: a row for each number of images, a column for each tag. Columns grow
    to the right."""

    def start(self, run: LoggedRun) -> None:
        """Drops the rows after the checkpoint: training repeats them."""
        self._folder = run.folder
        self._columns, self._rows = ["images"], dict[int, dict[str, str]]()
        try:
            reader = csv.DictReader(io.StringIO(Folder(run.location).read_text(FILE)))
        except FileNotFoundError:
            return
        for row in reader:
            images = row.get("images") or ""
            if images.isdecimal() and int(images) <= run.images:
                self._rows[int(images)] = {tag: value for tag, value in row.items() if value}
        self._columns = list(reader.fieldnames or self._columns)
        self._write()

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """Adds a row, or fills columns of a row that is there."""
        row = {"images": str(images), **{tag: repr(value) for tag, value in values.items()}}
        new = [tag for tag in row if tag not in self._columns]
        ends = not new and images > max(self._rows, default=-1)
        self._columns += new
        self._rows[images] = self._rows.get(images, {}) | row
        if ends and len(self._rows) > 1:
            with (self._folder / FILE).open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(row)
        else:
            self._write()

    def pictures(self, images: int, values: Mapping[str, Picture]) -> None:
        """Nothing: a table holds no pictures."""

    def end(self, how: str) -> None:
        """Nothing: every row is written at once."""

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows[images] for images in sorted(self._rows))
        Folder(str(self._folder)).write_text(FILE, text.getvalue())
