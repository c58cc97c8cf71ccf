"""`convert`: writes a data set as sharded Parquet, in tasks on the CPU cores of a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError

from ray_gen.data.build import surveyed, with_shape_of_first
from ray_gen.data.convert import Conversion, Layout
from ray_gen.data.sources.base import Source
from ray_gen.data.sources.parquet import MANIFEST, PLAN
from ray_gen.data.store import wanted_of
from ray_gen.data.wanted import Wanted
from ray_gen.errors import Failed, Refused
from ray_gen.experiment import absolute_path
from ray_gen.experiment.data import DataSettings
from ray_gen.launch.claim import Claim
from ray_gen.launch.cluster import check_shared, connected
from ray_gen.launch.imports import import_failure
from ray_gen.storage import Folder, StorageError
from ray_gen.training.sources import source_of

_OF_PIXELS = ("center_crop", "channels")
_CHANGING = ("bits", "value_range", "fit", "pad", "jpeg_scaling", "max_pixels")
"""Settings of pixels. Files that are stored unchanged keep none of them."""
_LISTENING_SECONDS = 0.1
"""While Ray waits, it looks for Ctrl-C only once a second."""
ConvertProgress = Callable[[int, int, str], None]


def convert(
    data: DataSettings,
    destination: str,
    *,
    shard_images: int = 8192,
    group_images: int = 256,
    seed: int = 0,
    progress: ConvertProgress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Write the images of `data` as Parquet that can be streamed, and return its manifest.

    With `image_size`, stores uint8 pixels of that size. Training reads them some ten times faster
    than it decodes files. Without it, stores the files unchanged. Writes only parts that are
    missing. destination: folder or URI. shard_images: images in a file, at most.
    group_images: images in a row group, at most. seed: of the images' order. Raises Refused.
    """
    folder = Folder(absolute_path(destination))
    folder.check_writable("another DESTINATION")
    source = source_of(data)
    layout = Layout(
        _wanted(data, source, progress),
        data.held_out_fraction,
        data.on_corrupt == "skip",
        shard_images,
        group_images,
        seed,
    )
    conversion = Conversion(source, layout, folder)
    progress(0, 1, "listing")
    plan = conversion.plan
    with Claim(folder, other="another DESTINATION"):
        _check_same(folder, plan)
        missing = conversion.missing()
        if missing:
            with connected():
                check_shared(folder)
                _run(conversion, missing, progress)
        return conversion.finish()


def _wanted(data: DataSettings, source: Source, progress: ConvertProgress) -> Wanted | None:
    """The pixels to store; None to store files. Settings that are not given follow the images."""
    if data.image_size is None:
        changed = [name for name in _OF_PIXELS if getattr(data, name) is not None]
        for name, info in type(data).model_fields.items():
            if name in _CHANGING and getattr(data, name) != info.default:
                changed.append(name)
        if getattr(data, "frames", None) == "channels":
            changed.append("frames")
        if changed:
            raise Refused(
                f"data.image_size: is required with {' and '.join(changed)}; without it the image"
                " files are stored unchanged"
            )
        return None
    wanted = wanted_of(**data.pixels())
    listing = source.listing()
    found, items = with_shape_of_first(
        wanted, listing.items, source.field, data.on_corrupt == "skip"
    )
    if found.rules == 1 or not (found.guessed_channels or found.guessed_range):
        return found

    def looked_at(done: int, total: int) -> None:
        progress(done, total, "looking at headers")

    return surveyed(items, replace(wanted, size_HW=found.size_HW), listing.count, looked_at)


def _check_same(folder: Folder, plan: str) -> None:
    """Raises Refused if the folder holds something else than this conversion."""
    if folder.exists(PLAN):
        there, here = json.loads(folder.read_text(PLAN)), json.loads(plan)
        if there["plan"] != here["plan"]:
            raise Refused(
                f"{folder.location}: holds a conversion {_difference(there, here)}; "
                "choose another folder, or delete it"
            )
        return
    others = [name for name in folder.names() if not name.startswith((".", "_", "writer.json"))]
    if others or folder.exists(MANIFEST):
        raise Refused(f"{folder.location}: is not empty; choose another folder")
    folder.write_text(PLAN, plan)


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """How a conversion that was begun differs from the one that is asked for."""
    old = there.get("settings", {})
    changed = [
        name for name, value in here["settings"].items() if name in old and old[name] != value
    ]
    if not changed:
        return "of other data, or with other settings"
    return "with " + " and ".join(f"{name} {old[name]}" for name in changed)


def _run(conversion: Conversion, missing: list[int], progress: ConvertProgress) -> None:
    """Writes the missing parts, each in a task. At most one task per CPU core runs at a time."""

    @ray.remote(num_cpus=1, max_retries=3)
    def write(of: Conversion, part: int) -> int:
        record = of.write(part)
        return record["skipped"] + sum(split["images"] for split in record["splits"].values())

    shared = ray.put(conversion)
    waiting = iter(missing)
    total = conversion.count
    done = total - len(missing) * total // conversion.parts
    running = [write.remote(shared, part) for part in islice(waiting, _cores())]
    progress(done, total, "images")
    try:
        while running:
            finished, running = ray.wait(running, timeout=_LISTENING_SECONDS)
            for task in finished:
                done = min(total, done + ray.get(task))
                progress(done, total, "images")
                running += [write.remote(shared, part) for part in islice(waiting, 1)]
    except RayTaskError as error:
        for other in running:
            ray.cancel(other, force=True)
        raise _in_words(error, conversion.destination) from None
    except KeyboardInterrupt:
        progress(done, total, "stopping")  # Ray takes some seconds
        raise


def _in_words(error: RayTaskError, destination: Folder) -> Exception:
    """The exception that ended a task, without Ray's layers around it."""
    cause = error.cause
    if isinstance(cause, OSError):
        return StorageError(
            f"{destination.location}: a file could not be written ({cause.strerror or cause}); "
            "mend that, and give the same command again: it writes the missing files"
        )
    if isinstance(cause, Refused):
        return cause
    told = import_failure(str(error))
    return error if told is None else Failed(told)


def _cores() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
