"""Writes the parts of a conversion: in this process, or in tasks on a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from ray_gen.data.convert import PARTS, Conversion
from ray_gen.data.sources.parquet import MANIFEST, PLAN
from ray_gen.errors import Refused
from ray_gen.launch.claim import Claim
from ray_gen.storage import Folder, StorageError

_LISTENING_SECONDS = 0.1
"""While Ray waits, it looks for Ctrl-C only once a second."""
_AGAIN = "it writes the missing files"
Progress = Callable[[int, int, str], None]


def written(
    conversion: Conversion,
    progress: Progress,
    *,
    holds: str = "a conversion",
    made: bool = False,
    begin: Callable[[], None] = lambda: None,
    in_process: Callable[[Sequence[int]], bool] = lambda missing: False,
    with_gpu: bool = False,
) -> dict[str, Any]:
    """Write all parts that are missing, then the manifest. Returns it.

    holds: what the folder holds, for messages. made: whether this command has made the folder,
    which then goes if there is nothing to write. begin: called before the parts are written, even
    if none is missing. in_process: whether this process writes these parts itself; else Ray does.
    with_gpu: give each task a GPU, if the cluster has any. Raises Refused.
    """
    folder = conversion.destination
    progress(0, 1, "listing")
    try:
        plan = conversion.plan
    except BaseException:
        if made:
            folder.remove_if_empty()
        raise
    with Claim(folder, other="another folder"):
        _check_same(folder, plan, holds)
        missing = conversion.missing()
        begin()
        if missing:
            run = _in_this_process if in_process(missing) else _on_ray
            run(conversion, missing, progress, with_gpu)
        return conversion.finish()


def _check_same(folder: Folder, plan: str, holds: str) -> None:
    """Raises Refused if the folder holds something else than this conversion. A plan of which
    nothing was written is replaced."""
    names = folder.names()
    shards = any(name.endswith(".parquet") for name in names)
    if MANIFEST in names or (shards and PLAN in names) or (folder / PARTS).names():
        there, here = _read(folder), json.loads(plan)
        if there["plan"] != here["plan"]:
            raise Refused(
                f"{folder.location}: holds {holds} {_difference(there, here)}; "
                "choose another folder, or delete it"
            )
        return
    if PLAN in names:
        _read(folder)
    elif any(not name.startswith((".", "_", "writer.json")) for name in names):
        raise Refused(f"{folder.location}: is not empty; choose another folder")
    folder.write_text(PLAN, plan)


def _read(folder: Folder) -> dict[str, Any]:
    """The plan of what a folder holds. Raises Refused."""
    if not folder.exists(PLAN):
        raise Refused(f"{folder.location}: is not empty; choose another folder")
    text = folder.read_text(PLAN)
    try:
        told = json.loads(text)
        if isinstance(told["plan"], str):
            return told
    except (ValueError, KeyError, TypeError):
        pass
    raise Refused(
        f"{folder.location}/{PLAN} is damaged, so what lies there is unknown; choose another"
        " folder, or delete it"
    )


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """How a conversion that was begun differs from the one that is asked for."""
    old = there.get("settings", {})
    changed = [
        name for name, value in here["settings"].items() if name in old and old[name] != value
    ]
    if not changed:
        return "of other data, or with other settings"
    return "with " + " and ".join(f"{name} {old[name]}" for name in changed)


def _done(conversion: Conversion, missing: Sequence[int]) -> int:
    """Number of images in the parts that are there, nearly."""
    return conversion.count - len(missing) * conversion.count // conversion.parts


def _written(conversion: Conversion, part: int) -> int:
    """Writes a part. Returns the number of its images."""
    record = conversion.write(part)
    return record["skipped"] + sum(split["images"] for split in record["splits"].values())


def _in_this_process(
    conversion: Conversion, missing: Sequence[int], progress: Progress, with_gpu: bool
) -> None:
    done, total = _done(conversion, missing), conversion.count
    progress(done, total, "images")
    for part in missing:
        try:
            done = min(total, done + _written(conversion, part))
        except OSError as error:
            raise _not_written(error, conversion.destination) from error
        progress(done, total, "images")


def _on_ray(
    conversion: Conversion, missing: Sequence[int], progress: Progress, with_gpu: bool
) -> None:
    """Writes each part in a task. At most one task per CPU core, or per GPU, runs at a time."""
    import ray
    from ray.exceptions import RayError

    from ray_gen.launch.cluster import check_shared, connected
    from ray_gen.launch.failures import of_a_task

    with connected():
        check_shared(conversion.destination)
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if with_gpu else 0
        at_once = gpus or max(1, int(there.get("CPU", 1)))
        write: Any = ray.remote(num_cpus=1, num_gpus=min(1, gpus), max_retries=3)(_written)
        shared = ray.put(conversion)
        waiting = iter(missing)
        done, total = _done(conversion, missing), conversion.count
        running = [write.remote(shared, part) for part in islice(waiting, at_once)]
        progress(done, total, "images")
        try:
            while running:
                finished, running = ray.wait(running, timeout=_LISTENING_SECONDS)
                for task in finished:
                    done = min(total, done + ray.get(task))
                    progress(done, total, "images")
                    running += [write.remote(shared, part) for part in islice(waiting, 1)]
        except RayError as error:
            for other in running:
                ray.cancel(other, force=True)
            found = of_a_task(error, _AGAIN)
            if isinstance(found, OSError):
                found = _not_written(found, conversion.destination)
            raise found from None
        except KeyboardInterrupt:
            progress(done, total, "stopping")  # Ray takes some seconds
            raise


def _not_written(error: OSError, destination: Folder) -> StorageError:
    return StorageError(
        f"{destination.location}: a file could not be written ({error.strerror or error}); "
        f"mend that, and give the same command again: {_AGAIN}"
    )
