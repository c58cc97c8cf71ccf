"""`Run`: a run folder in Python: how far it is, its numbers, its pictures of them, its model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.launch.claim import living_writer
from ray_gen.runs.checkpoints import NEWEST, Choice, checkpoints, is_in_a_run
from ray_gen.runs.evaluations import evaluated
from ray_gen.runs.listing import Listed, listed
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.runs.names import run_folder
from ray_gen.runs.progress import METRICS_FILE, RunState, read_progress
from ray_gen.searches.records import SEARCH, TRIALS
from ray_gen.storage import Folder

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as plotly
    import torch

    from ray_gen.pipeline import Pipeline
    from ray_gen.pipeline.pretrained import Weights

_NO_CURVES = ("speed", "memory")
"""Groups of metrics that `Run.plot` leaves out."""


@dataclass(frozen=True)
class Ended:
    """How a training ended."""

    images: int
    stop: str
    metrics: Mapping[str, float]
    failure: str | None = None


class Run:
    """A run: what `ray_gen.train` returns, and how Python opens one that is there.

        run = ray_gen.Run("digits")      # a name in the storage, a path or a URI
        run.history()                    # its reports, a pandas DataFrame
        run.plot()                       # losses and scores over images, a plotly Figure
        run.load().grid(64)              # samples of its model

    It can be used as a path: `ray_gen.load(run)`. What `train` returned says how that training
    ended. A run that was opened reads its folder each time, also while it trains. Raises Refused if
    there is no such run.
    """

    def __init__(self, run: str | os.PathLike[str], ended: Ended | None = None) -> None:
        """ended: how its training ended, if that is known better than from its folder."""
        folder = run_folder(run) if ended is not None else existing(run)
        self.location, self.name = folder.location, folder.name
        self._folder, self._ended = folder, ended

    def __fspath__(self) -> str:
        return self.location

    def __repr__(self) -> str:
        if self._ended is not None:
            ended = self._ended
            return f"Run({self.name}: {ended.images:,} images, {ended.failure or ended.stop})"
        found = self._listed()
        total = "" if found.of is None else f" of {found.of:,}"
        scores = "".join(f", {name} {value:.4g}" for name, value in found.scores.items())
        return f"Run({self.name}: {found.state}, {found.done:,}{total} images{scores})"

    @property
    def state(self) -> RunState:
        """training, stopped, ended or failed. Raises Refused if the folder is damaged."""
        state = self._listed().state
        assert state not in ("search", "damaged")
        return state

    @property
    def images(self) -> int:
        """Number of training images that it has seen."""
        return self._ended.images if self._ended is not None else self._listed().done

    @property
    def stop(self) -> str | None:
        """Why it ended ("all images seen", "asked to stop", …). None: it trains, or it is
        unknown."""
        return self._ended.stop if self._ended is not None else self._listed().why

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of the last report, by tag: {"loss/kl": 9.1}. Empty before the first."""
        if self._ended is not None:
            return dict(self._ended.metrics)
        reports = self._reports()
        last = reports[max(reports)] if reports else {}
        return {tag: value for tag, value in last.items() if "/" in tag}

    @property
    def failure(self) -> str | None:
        """Why training no longer helped at its end, in the objective's words. None if it helped."""
        if self._ended is not None:
            return self._ended.failure
        return (read_progress(self._folder) or {}).get("failure")

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 130 after an interruption, as in shells; 1 after a failure
        that the objective has seen."""
        from ray_gen.training.loop import ASKED  # imports torch

        return 130 if self.stop == ASKED else int(self.failure is not None)

    @property
    def experiment(self) -> Experiment:
        """Its complete experiment: of the newest checkpoint, before the first of `train`."""
        for folder in (*checkpoints(self._folder), self._folder):
            if folder.exists(EXPERIMENT):
                return Experiment.from_yaml(folder.read_text(EXPERIMENT))
        raise Refused(f"{self.location}: has no {EXPERIMENT}; begin another run")

    def history(self) -> pandas.DataFrame:
        """Its reports, one row each, by the training images seen (the index, `images`).

        A column for each number, by its tag: `loss/kl`, `held_out/elbo`, `evaluation/fid`,
        `speed/images_per_second`, …, and `time` (seconds since 1970). NaN where a report has no
        such number. Scores that were measured beside the training stand in the row of their images.

            run.history()["held_out/elbo"].dropna().plot()
        """
        import pandas

        reports = self._reports()
        index = pandas.Index(sorted(reports), name="images", dtype="int64")
        return pandas.DataFrame([reports[images] for images in index], index=index)

    def plot(self) -> plotly.Figure:
        """Losses, discriminator and scores over the images seen, one chart for each group of tags.

        A notebook shows the figure; `.write_html(FILE)` writes it; `.show()` opens a browser.
        """
        from plotly.subplots import make_subplots

        history = self.history()
        groups: dict[str, list[str]] = {}
        for tag in history.columns:
            group, slash, _ = str(tag).partition("/")
            if slash and group not in _NO_CURVES and not str(tag).endswith("_spread"):
                groups.setdefault(group, []).append(str(tag))
        if not groups:
            raise Refused(f"{self.location}: has no report yet, so there is nothing to plot")
        figure: Any = make_subplots(
            len(groups), 1, shared_xaxes=True, subplot_titles=list(groups), vertical_spacing=0.08
        )
        for row, tags in enumerate(groups.values(), start=1):
            for tag in tags:
                values = history[tag].dropna()
                mode = "lines+markers" if len(values) < 50 else "lines"
                figure.add_scatter(x=values.index, y=values, name=tag, mode=mode, row=row, col=1)
        figure.update_xaxes(title_text="images", row=len(groups), col=1)
        figure.update_layout(title=self.name, height=120 + 240 * len(groups))
        return figure

    def load(
        self,
        *,
        weights: Weights = "ema",
        device: str | torch.device | None = None,
        checkpoint: Choice = NEWEST,
        trust_code: bool = False,
    ) -> Pipeline:
        """Its model: see `ray_gen.load`."""
        from ray_gen.pipeline import load

        return load(
            self, weights=weights, device=device, checkpoint=checkpoint, trust_code=trust_code
        )

    def _listed(self) -> Listed:
        """How far it is, as `ray-gen runs` says it. Raises Refused if the folder is damaged."""
        found = listed(self._folder, lambda run: living_writer(run) is not None)
        if not found or found[0].state == "damaged":
            why = found[0].why if found else "it is no longer a run"
            raise Refused(f"{self.location}: {why}")
        return found[0]

    def _reports(self) -> dict[int, dict[str, float]]:
        """Its reports by images. A run that repeats steps after a crash writes equal numbers."""
        reports: dict[int, dict[str, float]] = {}
        try:
            lines = self._folder.read_text(METRICS_FILE).splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                report = json.loads(line)
                images = int(report.pop("images"))
            except (ValueError, KeyError, AttributeError):  # cut short by a crash
                continue
            report.pop("step", None)
            reports[images] = report
        for images, scores in evaluated(self._folder).items():
            reports[images] = {**reports.get(images, {}), **scores}
        return reports


def existing(run: str | os.PathLike[str]) -> Folder:
    """The folder of a run that is there. Raises Refused if it is none, and says what it is."""
    folder = run_folder(run)
    if not folder.exists():
        raise Refused(f"{folder.location}: there is no such run; `ray-gen runs` lists all")
    if folder.exists(SEARCH):
        raise Refused(
            f"{folder.location}: is a search; it goes on by `ray-gen search` with the same --name, "
            f"and its runs lie in its folder {TRIALS}"
        )
    if is_in_a_run(folder.name) and folder.parent.exists(EXPERIMENT):
        raise Refused(
            f"{folder.location}: is a checkpoint, and not the run; name {folder.parent.location}"
        )
    if not (folder.exists(EXPERIMENT) or checkpoints(folder)):
        raise Refused(f"{folder.location}: is not the folder of a run; correct the path")
    return folder
