"""Opens the store that `data` settings describe. Connects the packages `experiment` and `data`:
neither imports the other."""

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
    """Folder of the decoded images on this node: $RAY_GEN_CACHE, else ~/.cache/ray_gen."""
    return Path(os.environ.get("RAY_GEN_CACHE") or "~/.cache/ray_gen").expanduser()


def source_of(data: DataSettings) -> Any:
    """The source that the settings name. Reads nothing yet."""
    return import_target(data.targets["source"], "data.kind")(**data.arguments())


def open_source(data: Data, progress: Callable[[int, int], None] | None = None) -> Store:
    """The decoded images of a source, memory-mapped. Decodes them first if this node has not yet
    done so. For a streamed source: a decoded sample, and the stream."""
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
    """The data of an experiment. Raises ExperimentError if the experiment needs labels and the data
    has none."""
    store = open_source(experiment.data, progress)
    if experiment.needs_labels and not store.label_count:
        raise ExperimentError(
            [
                "objective.conditional: the data has no labels to condition on; set "
                "objective.conditional to false, put the images of each class in a folder of its "
                "own, or set data.label_column"
            ]
        )
    return store


def class_names(store: Store) -> tuple[str, ...]:
    """Names of the classes. Their numbers if the data has no names; empty without labels."""
    if store.class_names is not None:
        return store.class_names
    return tuple(str(label) for label in range(store.label_count or 0))
