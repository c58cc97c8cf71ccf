"""`check`: looks at the row groups of Parquet files in tasks on the CPU cores of a Ray cluster."""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice

import ray
from ray.exceptions import RayError

from ray_gen.data.check import Contents, Findings, Looking, Progress, row_group
from ray_gen.data.sources.parquet import Columns, Parquet, RowGroup
from ray_gen.errors import Refused
from ray_gen.launch.cluster import connected
from ray_gen.launch.failures import of_a_task

_AHEAD = 4
"""Number of row groups under way, for each core: a slow one does not stop the others."""


def looked_at_on_cluster(
    contents: Contents, looking: Looking, progress: Progress
) -> Generator[Findings]:
    """What is found in each row group, in order. As `ray_gen.data.check.looked_at`, with each row
    group in a task of its own. Raises Refused for other sources than Parquet."""
    if contents.listing is not None and contents.columns is None:
        raise Refused(
            "--cluster: reads the row groups of Parquet files only; leave it out, or write the data"
            " with `ray-gen data convert` first"
        )
    if contents.columns is None:
        return
    with connected():
        yield from _in_tasks(contents, contents.columns, looking, progress)


def _in_tasks(
    contents: Contents, columns: Columns, looking: Looking, progress: Progress
) -> Generator[Findings]:
    @ray.remote(num_cpus=1, max_retries=3)
    def look(source: Parquet, group: RowGroup, columns: Columns, looking: Looking) -> Findings:
        return row_group(source, group, columns, looking)

    assert isinstance(contents.source, Parquet)
    source, described, settings = ray.put(contents.source), ray.put(columns), ray.put(looking)
    waiting = iter(contents.groups)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def started(count: int) -> list[ray.ObjectRef[Findings]]:
        return [look.remote(source, group, described, settings) for group in islice(waiting, count)]

    running = started(_AHEAD * cores)
    done = 0
    progress(0, contents.count, "images")
    try:
        while running:
            try:
                found = ray.get(running.pop(0))
            except RayError as error:
                raise of_a_task(error, "it looks at all images") from None
            done += found.looked_at
            yield found
            progress(done, contents.count, "images")
            running += started(1)
    finally:
        for task in running:
            ray.cancel(task, force=True)
