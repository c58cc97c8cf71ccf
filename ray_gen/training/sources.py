"""From `data` settings to a store: between the experiment and the data room, which do not know
each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_gen.data import Store, open_store, open_stream
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.data import Data, DataSettings, ParquetData
from ray_gen.training.build import import_target


def cache_folder() -> Path:
    """Where decoded images lie on this node: $RAY_GEN_CACHE, else ~/.cache/ray_gen."""
    return Path(os.environ.get("RAY_GEN_CACHE") or "~/.cache/ray_gen").expanduser()


def source_of(data: DataSettings) -> Any:
    """The source that the settings name. Reads nothing yet."""
    return import_target(data.targets["source"], "data.kind")(**data.arguments())


def open_source(data: Data, progress: Callable[[int, int], None] | None = None) -> Store:
    """The decoded images of a source, memory-mapped; decoded first if this node has not yet. Of a
    source that is streamed, a sample."""
    source = source_of(data)
    settings: dict[str, Any] = {
        "image_size": data.image_size,
        "center_crop": data.center_crop,
        "channels": data.channels,
        "held_out_fraction": data.held_out_fraction,
        "on_corrupt": data.on_corrupt,
        "cache_folder": cache_folder(),
        "progress": progress,
    }
    if data.placement != "stream":
        return open_store(source, **settings)
    assert isinstance(data, ParquetData)
    return open_stream(source, window=data.window_images, **settings)


def open_data(experiment: Experiment, progress: Callable[[int, int], None] | None = None) -> Store:
    """The data of an experiment, which has labels if the experiment needs them."""
    store = open_source(experiment.data, progress)
    if experiment.needs_labels and not store.label_count:
        raise ExperimentError(
            [
                "objective.conditional: the data has no labels to condition on; set it to false, "
                "or put the images in one folder a class (or name data.label_column)"
            ]
        )
    return store


def class_names(store: Store) -> tuple[str, ...]:
    """Names of the classes; their numbers where the data has no names; none without labels."""
    if store.class_names is not None:
        return store.class_names
    return tuple(str(label) for label in range(store.label_count or 0))
