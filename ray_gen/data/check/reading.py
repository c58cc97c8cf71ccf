"""Reads all images of a source once, in parallel, and keeps only what `Findings` holds of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ray_gen.data.build import TASK_IMAGES
from ray_gen.data.check.findings import Fault, Findings, Named
from ray_gen.data.check.look import Looking
from ray_gen.data.errors import DataError, Refuse
from ray_gen.data.formats import format_named, remedy
from ray_gen.data.sources.base import Item, Listing, Source
from ray_gen.data.sources.images import Images
from ray_gen.data.sources.joined import Joined
from ray_gen.data.sources.parquet import Columns, Parquet, RowGroup
from ray_gen.data.threads import in_threads, pieces

Progress = Callable[[int, int, str], None]
"""Called with what is done, the total, and what it is: "listing", "images", "duplicates"."""


@dataclass
class Contents:
    """What a source holds, not yet read."""

    source: Source
    listing: Listing | None = None
    """None if the source cannot be listed. Its items are used up: see `items`."""
    refused: list[str] = field(default_factory=list[str])
    """Why training would refuse it, before it reads an image."""
    unread: list[Fault] = field(default_factory=list[Fault])
    """Images of formats that are not read, with the remedy."""
    others: dict[str, Named] = field(default_factory=dict[str, Named])
    """Files that are no images, by suffix."""
    groups: Sequence[RowGroup] = ()
    columns: Columns | None = None
    """Of Parquet files: what is read at once, and how."""

    def brief(self, name: str) -> str:
        """A name without the place of the data set, which is the same for all."""
        source = self.source
        root = source.files.root if isinstance(source, Images) else getattr(source, "path", "")
        return name.removeprefix(f"{root}/") if root else name

    @property
    def count(self) -> int:
        """Number of images."""
        return 0 if self.listing is None else self.listing.count

    def names(self, positions: Iterable[int]) -> dict[int, str]:
        """The names of images, by their places among all."""
        if self.columns is None:
            return {position: item.name for position, item in self.items(positions).items()}
        first_rows = self._first_rows()
        return {
            position: f"{group.shard.location}, row {first_rows[number] + row}"
            for number, group, row, position in self._rows(positions)
        }

    def items(self, positions: Iterable[int]) -> dict[int, Item]:
        """Images by their places among all, to be read again. Reads the row groups of Parquet."""
        if self.columns is None:
            chosen = set(positions)
            if not chosen:
                return {}
            items = enumerate(_listed(self.source, lambda error: None).items)
            some = itertools.islice(items, max(chosen) + 1)
            return {position: item for position, item in some if position in chosen}
        assert isinstance(self.source, Parquet)
        found: dict[int, Item] = {}
        by_group = itertools.groupby(self._rows(positions), key=lambda place: place[0])
        for number, places in by_group:
            rows = self.source.read(self.groups[number], self.columns)
            found |= {position: rows[row] for _, _, row, position in places}
        return found

    def _first_rows(self) -> list[int]:
        """The first row of each row group, counted in its file."""
        found: list[int] = []
        for _, groups in itertools.groupby(self.groups, key=lambda group: group.shard):
            found += itertools.accumulate((group.rows for group in groups), initial=0)
            found.pop()
        return found

    def _rows(self, positions: Iterable[int]) -> Iterator[tuple[int, RowGroup, int, int]]:
        """(number of the row group, row group, row in it, position), in order."""
        starts = list(itertools.accumulate((group.rows for group in self.groups), initial=0))
        number = 0
        for position in sorted(set(positions)):
            while position >= starts[number + 1]:
                number += 1
            yield number, self.groups[number], position - starts[number], position


def contents_of(source: Source) -> Contents:
    """What a source holds. Raises nothing that training would refuse: it is noted."""
    contents = Contents(source)

    def refuse(error: DataError) -> None:
        contents.refused.append(str(error))

    try:
        for one in source.sources if isinstance(source, Joined) else (source,):
            if isinstance(one, Images):
                _tell_apart(one, contents, refuse)
        contents.listing = _listed(source, refuse)
        _count_others(contents, contents.listing)
        if isinstance(source, Parquet):
            contents.groups, contents.columns = source.row_groups()
    except DataError as error:
        refuse(error)
    return contents


def _listed(source: Source, refuse: Refuse) -> Listing:
    return source.listing(refuse) if isinstance(source, Images) else source.listing()


def _tell_apart(source: Images, contents: Contents, refuse: Refuse) -> None:
    """Notes the names of the files that are not read."""
    found = source.found(refuse)
    for image in found.unread:
        known = image.known or ""
        promised = format_named(image.path)
        named = "" if promised in (None, known) else f" with the name of {promised}"
        reason = f"it is {known}{named}, which is not read; {remedy(known)}"
        contents.unread.append(Fault(source.files.name(image.path), reason))
    for path in found.others:
        kind = PurePosixPath(path).suffix.lower() or "without suffix"
        contents.others.setdefault(kind, Named()).add(source.files.name(path))


def _count_others(contents: Contents, listing: Listing) -> None:
    """Leaves the kinds of files that the listing does not read either: files of labels are read."""
    counts = {kind: count for kind, count in listing.not_read.items() if not kind.endswith(")")}
    contents.others = {
        kind: Named(count, contents.others[kind].names if kind in contents.others else [])
        for kind, count in counts.items()
    }


def looked_at(contents: Contents, looking: Looking, progress: Progress) -> Generator[Findings]:
    """What is found in the parts of a source, in order: to be merged. Threads read ahead."""
    total = contents.count
    progress(0, total, "images")
    done = 0
    parts = _row_groups if contents.columns is not None else _pieces
    with closing(parts(contents, looking)) as found:
        for part in found:
            done += part.looked_at
            yield part
            progress(done, total, "images")


def _pieces(contents: Contents, looking: Looking) -> Generator[Findings]:
    if contents.listing is not None:
        yield from _in_threads(contents.listing.items, looking)


def _row_groups(contents: Contents, looking: Looking) -> Generator[Findings]:
    """One at a time, while the next one is read."""
    source, columns = contents.source, contents.columns
    assert isinstance(source, Parquet) and columns is not None
    reads = ThreadPoolExecutor(1, "row groups")
    following = (reads.submit(source.read, group, columns) for group in contents.groups)
    rows = next(following, None)
    try:
        while rows is not None:
            this, rows = rows.result(), next(following, None)
            yield merged(_in_threads(iter(this), looking))
    finally:
        reads.shutdown(wait=False, cancel_futures=True)


def row_group(source: Parquet, group: RowGroup, columns: Columns, looking: Looking) -> Findings:
    """What is found in one row group. The same as `looked_at` finds in it."""
    rows = iter(source.read(group, columns))
    return merged(looking.at(piece) for piece in pieces(rows, TASK_IMAGES))


def merged(parts: Iterable[Findings]) -> Findings:
    """All parts together."""
    total = Findings()
    for part in parts:
        total.merge(part)
    return total


def _in_threads(items: Iterator[Item], looking: Looking) -> Generator[Findings]:
    """What is found in each 64 images, in order. Nobody waits for threads if it is closed."""
    return in_threads(items, looking.at, TASK_IMAGES, name="check", waits=False)
