"""Opens the store that `data` settings describe. Connects the packages `experiment` and `data`:
neither imports the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ray_gen.data import DataError, Split, Store, open_store, open_stream
from ray_gen.data.sources.latents import LatentManifest, Latents, autoencoder_beside
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.data import Data, DataSettings, JoinedData, LatentsData, ParquetData
from ray_gen.experiment.named_data import named_by, named_data
from ray_gen.training.build import import_target
from ray_gen.training.labels import labels_of


def cache_folder() -> Path:
    """Folder of the decoded images on this node: $RAY_GEN_CACHE, else ~/.cache/ray_gen."""
    return Path(os.environ.get("RAY_GEN_CACHE") or "~/.cache/ray_gen").expanduser()


def source_of(data: DataSettings) -> Any:
    """The source that the settings name. Reads nothing yet."""
    made = import_target(data.source, "data.kind")
    if isinstance(data, JoinedData):
        return made(sources=[source_of(source) for source in data.sources])
    return made(**data.arguments())


def open_source(data: DataSettings, progress: Callable[[int, int], None] | None = None) -> Store:
    """The decoded images of a source, memory-mapped. Decodes them first if this node has not yet
    done so. For a streamed source: a decoded sample, and the stream."""
    source = source_of(data)
    settings: dict[str, Any] = {
        **data.reading(),
        "cache_folder": cache_folder(),
        "progress": progress,
    }
    if data.placement == "stream":
        assert isinstance(data, (ParquetData, LatentsData))
        store = open_stream(source, window=data.window_images, **settings)
    else:
        store = open_store(source, **settings)
    if isinstance(data, LatentsData):
        return _of_latents(data, source, store)
    _check_shares(data, store)
    size = data.height_and_width()
    return store if data.random_crop_from is None or size is None else store.cropped(size)


_HELD_OUT = LatentsData.model_fields["held_out_fraction"].default


def _of_latents(data: LatentsData, source: Latents, store: Store) -> Store:
    """A store of moments, as training uses them. Raises DataError for what they cannot give."""
    moments = replace(source.manifest.moments, samples=data.sample)
    _, height, width = moments.shape_CHW
    if data.height_and_width() not in (None, (height, width)):
        raise DataError(
            f"data.image_size: {data.image_size}, and the latents in {data.path} have"
            f" {height}x{width}; leave it out, or encode images of another size"
        )
    if data.channels not in (None, moments.shape_CHW[0]):
        raise DataError(
            f"data.channels: {data.channels}, and the latents in {data.path} have"
            f" {moments.shape_CHW[0]}; leave it out"
        )
    encoded = source.manifest.of_latents.get("source", {}).get("held_out_fraction")
    if data.held_out_fraction not in (_HELD_OUT, encoded):
        raise DataError(
            f"data.held_out_fraction: {data.held_out_fraction}, and the latents in {data.path} were"
            " held out when they were encoded, as the autoencoder's run holds out images; leave it"
            " out"
        )
    if data.flip and not moments.has_flips:
        raise DataError(
            f"data.flip: {data.path} holds no latents of mirrored images, and latents of an image"
            " cannot be mirrored in their place; set data.flip=false, or encode again with --flips"
        )
    return store.with_moments(moments)


def as_begun(
    experiment: Experiment, before: Experiment | None, say: Callable[[str], None]
) -> Experiment:
    """The experiment, which reads the files that its run began with: by the same rules, and on the
    Hugging Face hub at the same commit.

    before: of the run, which goes on. None: it begins. Then each place on the hub gets the commit
    that it has now, so all processes read the same files. say: told if a place has moved since.
    """
    if before is not None:
        experiment = experiment.with_rules_of(before)
    data = at_commits(experiment.data, None if before is None else before.data, say)
    if data == experiment.data:
        return experiment
    return experiment.with_fields(data=data.model_dump(mode="json"))


def at_commits(
    data: DataSettings, before: DataSettings | None = None, say: Callable[[str], None] | None = None
) -> DataSettings:
    """The data, with a commit in each place on the hub: see `as_begun`. Raises DataError."""
    from ray_gen.data.sources import hub

    kept: dict[tuple[str, str], str] = {}

    def keep(place: str) -> str:
        if place.startswith(hub.SCHEME) and hub.is_commit(hub.revision_of(place)):
            kept[hub.repository_and_path(place)] = place
        return place

    def change(place: str) -> str:
        if not place.startswith(hub.SCHEME) or hub.is_commit(hub.revision_of(place)):
            return place
        earlier = kept.get(hub.repository_and_path(place))
        if earlier is None:
            return hub.at_commit(place)
        with suppress(DataError):  # the hub may have lost the branch: the run needs only its commit
            now, then = (hub.revision_of(p) for p in (hub.at_commit(place), earlier))
            if now != then and say is not None:
                say(f"data: {place} is now at commit {now}; the run goes on with its own, {then}")
        return earlier

    if before is not None:
        before.with_places(keep)
    return data.with_places(change)


def named_source(
    text: str, option: str, decoding: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> Data:
    """See `ray_gen.experiment.named_data`; a place on the hub gets the commit that it has now.
    Raises Refused."""
    found = named_data(text, option, decoding, own)
    with named_by(option):
        return at_commits(found)  # pyright: ignore[reportReturnType]


def data_as_in_run(text: str, option: str, experiment: Experiment) -> Data:
    """The data settings for a path, a URI or a short form: images that are read, and held out, as
    a run reads its own. option: what named them, for messages. Raises Refused."""
    own = experiment.data.pictures
    kept = {"held_out_fraction": own.held_out_fraction, "on_corrupt": own.on_corrupt}
    found = named_source(text, option, {}, {**own.pixel_fields(), **kept})
    if own.placement == "stream" and isinstance(found, ParquetData):  # holds out whole row groups
        return found.model_copy(update={"placement": "stream"})
    return found


def _check_shares(data: DataSettings, store: Store) -> None:
    """Raises ExperimentError if a source has a share of the training images, but none itself."""
    empty = next((n for n, count in enumerate(store.sources) if not count), None)
    if data.shares() is not None and empty is not None:
        raise ExperimentError(
            [
                f"data.weights: data.sources.{empty} has no training image to draw; remove it and"
                " its weight, or set weights to null"
            ]
        )


def open_data(experiment: Experiment, progress: Callable[[int, int], None] | None = None) -> Store:
    """The data of an experiment. Raises ExperimentError if the experiment needs labels and the data
    has none."""
    store = open_source(experiment.data, progress)
    for condition in store.conditions:
        if not condition.deviation:
            raise DataError(
                f"data.conditions: {condition.name} is {condition.low:g} for all training images,"
                " so nothing can be conditioned on it; leave it out"
            )
    if experiment.needs_labels and not store.label_count and not store.conditions:
        raise ExperimentError([f"objective.conditional: {_without_classes(store)}"])
    return store


def _without_classes(store: Store) -> str:
    """Why images have no classes, and what to do about it."""
    found = store.found
    why = found.no_classes
    if not why and found.unlabelled:
        why = f"{found.unlabelled:,} images have no class"
    if why:
        return (
            f"the data has no classes to condition on: {why}; or set objective.conditional to false"
        )
    return (
        "the data has no labels to condition on; set objective.conditional to false, put the images"
        " of each class in a folder of its own, or give a file of names and classes with"
        " data.labels"
    )


def with_classes(store: Store, names: Sequence[str], option: str) -> Store:
    """The store, with its labels numbered as in `names`, the classes of a run. The classes are
    matched by name; numbers 0, 1, … of as many classes as the run has are those of the run.

    option: what named the data, for messages. Raises DataError if images have a class that the run
    does not have.
    """
    theirs = class_names(store)
    numbers = tuple(map(str, range(len(names))))
    if not theirs or theirs == tuple(names):
        return store
    if theirs == numbers and not set(theirs) & set(names):
        return store
    place = {name: i for i, name in enumerate(names)}
    index = torch.tensor([place.get(name, -1) for name in theirs])

    def renumbered(split: Split) -> Split:
        if split.labels is None:
            return split
        labels = index[split.labels]
        if len(labels) and labels.min() < 0:
            name = theirs[int(split.labels[labels.argmin()])]
            raise DataError(
                f"{option}: its images have the class {name!r}, which the run does not have; name"
                f" images of the run's classes ({', '.join(names[:8])}{', …' if names[8:] else ''})"
            )
        return replace(split, labels=labels)

    return replace(
        store,
        train=renumbered(store.train),
        held_out=renumbered(store.held_out),
        class_names=tuple(names),
        label_count=len(names),
    )


def with_labels_of(store: Store, experiment: Experiment, option: str) -> Store:
    """The store, with labels as the networks of a run get them (`labels_of`); None if the run is
    not conditional. Classes are matched as in `with_classes`.

    option: what named the data, for messages. Raises DataError if images lack the numbers of the
    run.
    """
    wanted = [one.name for one in experiment.data.condition_statistics or ()]
    if experiment.label_numbers and [one.name for one in store.conditions] != wanted:
        raise DataError(
            f"{option}: its images have not the numbers {', '.join(wanted)}, on which the run is"
            " conditioned; compare with the run's own data, or move them and name them with --data"
        )
    if experiment.label_count:
        store = with_classes(store, experiment.data.classes or (), option)

    def labelled(split: Split) -> Split:
        return replace(split, labels=labels_of(experiment, split.labels, split.conditions))

    return replace(store, train=labelled(store.train), held_out=labelled(store.held_out))


def resolved_by(
    experiment: Experiment, store: Store, group_size: int | Literal["auto"] | None = None
) -> Experiment:
    """The experiment, with the fields that only its data can give. group_size: see
    `Experiment.resolved`."""
    resolved = experiment.resolved(
        store.image_shape,
        class_names(store),
        store.digest,
        group_size,
        store.found.value_range,
        [asdict(condition) for condition in store.conditions],
        store.opacity,
    )
    if not isinstance(experiment.data, LatentsData):
        return resolved
    manifest = LatentManifest.read(experiment.data.path)
    autoencoder, digest = autoencoder_beside(experiment.data.path, manifest)
    return resolved.with_fields(
        data__autoencoder=autoencoder,
        data__autoencoder_digest=digest,
        data__encoded=manifest.of_latents["source"],
    )


def class_names(store: Store) -> tuple[str, ...]:
    """Names of the classes. Their numbers if the data has no names; empty without labels."""
    if store.class_names is not None:
        return store.class_names
    return tuple(str(label) for label in range(store.label_count or 0))
