"""`resume`: a run goes on by its own experiment, without the recipe or file that began it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ray_gen import temporary
from ray_gen.errors import Refused
from ray_gen.experiment import Experiment, differences
from ray_gen.experiment.reading import Changes, apply_changes
from ray_gen.experiment.tree import Change
from ray_gen.launch.claim import Claim
from ray_gen.launch.progress import watched
from ray_gen.launch.run import Run, existing
from ray_gen.pipeline.loading import trust
from ray_gen.runs.checkpoints import checkpoint_name, checkpoints, commit
from ray_gen.runs.manifest import EXPERIMENT, CheckpointError, Manifest
from ray_gen.runs.names import called
from ray_gen.runs.reports import OnReport
from ray_gen.settings import is_marked
from ray_gen.storage import Folder
from ray_gen.training.build import distrust
from ray_gen.training.state import copy_of


def resume(
    run: str | os.PathLike[str],
    changes: Changes = (),
    *,
    show: bool | None = None,
    local: bool | None = None,
    on_report: OnReport | None = None,
    trust_code: bool = False,
) -> Run:
    """Go on with a run from its newest whole checkpoint, by its own experiment, and return it.

        ray_gen.resume("digits", {"training.images": 200_000})

    run: its path, its URI, or its name in the storage. changes: new values of fields, in the forms
    that `ray_gen.train` takes: of `free` fields (the line above trains longer), and of
    `live` fields, which change at the images of the checkpoint and are recorded in `lineage`.
    show, local, on_report: as for `ray_gen.train`. trust_code: train with the source files of own
    classes that the run holds, and first say on stderr which; without it, with those that an import
    finds.

    Raises Refused if the run cannot go on, or if another field would change; Failed if it did not
    end well.
    """
    from ray_gen.launch.driver import train

    show = watched() if show is None else show
    folder = _folder_of(run)
    before = _experiment_of(folder)
    if trust_code:
        trust(folder.location)
    given = before.model_dump(mode="json")
    paths = apply_changes(given, changes, Experiment)
    experiment = Experiment.of(given)
    manifest = _newest(folder)
    if manifest is not None:
        experiment = _as_it_goes_on(folder, before, experiment, paths, manifest.step)
    if show:
        print(_told(folder, experiment, manifest), file=sys.stderr)
    storage = folder.parent.location
    return train(
        experiment,
        storage=storage,
        name=folder.name,
        show=show,
        local=local,
        on_report=on_report,
    )


def _folder_of(run: str | os.PathLike[str]) -> Folder:
    """The folder of a run that can go on. Its modules are not imported."""
    folder = existing(run)
    if folder.is_local:
        distrust(folder.path)
    return folder


def _experiment_of(folder: Folder) -> Experiment:
    """The experiment of a run: of its newest checkpoint, with the `free` fields of experiment.yaml.
    What else differs in that file was edited, and the run cannot go on with it."""
    from ray_gen.launch.driver import experiment_before

    saved = experiment_before(folder)
    if saved is None:
        return Experiment.from_yaml(folder.read_text(EXPERIMENT))
    with suppress(Refused, FileNotFoundError):
        newer = Experiment.from_yaml(folder.read_text(EXPERIMENT))
        if not any(differences(newer, saved)):
            return newer
    return saved


def _newest(folder: Folder) -> Manifest | None:
    """The manifest of the newest checkpoint that has one. `train` checks the files."""
    for checkpoint in checkpoints(folder):
        with suppress(CheckpointError, FileNotFoundError):
            return Manifest.unchecked(checkpoint)
    return None


def _as_it_goes_on(
    folder: Folder, before: Experiment, changed: Experiment, paths: Sequence[str], step: int
) -> Experiment:
    """The changed experiment as the run goes on with it: `live` fields keep their value up to the
    newest checkpoint, at this step, and change there. Raises Refused if a field changes that
    cannot."""
    now = next(stage for first, stage in reversed(before.stages()) if first <= step)
    values = {path: changed.value_at(path) for path in paths if is_marked(before, path, "live")}
    kept = changed.with_values({path: before.value_at(path) for path in values})
    # The driver compares the data: only it knows what `auto` stands for.
    different = list(differences(kept.model_copy(update={"data": before.data}), before))
    if different:
        raise Refused(
            "\n".join(
                [
                    f"{folder.location}: a run that goes on keeps the fields that identify it; "
                    "leave these out, or begin another run: ray-gen train "
                    f"{(folder / EXPERIMENT).location} PATH=VALUE",
                    *(f"  {difference}" for difference in different),
                ]
            )
        )
    values = {path: value for path, value in values.items() if now.value_at(path) != value}
    return _with_change(folder, kept, values) if values else kept


def _with_change(folder: Folder, experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Records a change of `live` fields in the run's newest checkpoint. Returns its experiment."""
    with Claim(folder):
        newest = checkpoints(folder)[0]
        with newest.fetched() as here, temporary.folder("changed-") as work:
            images = Manifest.verified(here).images
            lineage = list(experiment.lineage)
            source = None
            if lineage and lineage[-1].images == images:  # it has not trained since
                last = lineage.pop()
                values, source = {**last.values, **values}, last.source
            lineage.append(Change(images=images, values=dict(values), source=source))
            given = [change.model_dump(mode="json") for change in lineage]
            experiment = experiment.absolute().with_fields(lineage=given)
            copy_of(here, work, experiment)
            commit(work, folder, checkpoint_name(images))
        folder.write_text(EXPERIMENT, experiment.to_yaml())
    return experiment


def _told(folder: Folder, experiment: Experiment, manifest: Manifest | None) -> str:
    """Where the run goes on, in a sentence."""
    if manifest is None:
        return f"{folder.name}: nothing was saved yet; beginning anew"
    images = manifest.images
    if manifest.step >= experiment.steps:
        more = f"ray-gen resume {shlex.quote(called(folder))} training.images={2 * images}"
        return f"{folder.name}: has seen all its {images:,} images; to train longer: {more}"
    return f"{folder.name}: going on from {images:,} images, to {experiment.training.images:,}"
