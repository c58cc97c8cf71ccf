"""The report of a search: one HTML file. It loads nothing from outside, and its policy
forbids that."""

from __future__ import annotations

from collections.abc import Sequence

from ray_gen.experiment import Experiment
from ray_gen.searches.records import REPORT, Mode, Trial
from ray_gen.searches.report.figures import curves, panels, parallel
from ray_gen.searches.report.page import page
from ray_gen.searches.report.results import Results
from ray_gen.searches.report.sections import headline, pictures, trials_table
from ray_gen.storage import Folder


def write_report(
    search: Folder, experiment: Experiment, trials: Sequence[Trial], mode: Mode
) -> None:
    """Write report.html into the search folder."""
    assert experiment.search is not None
    results = Results(experiment.search, experiment.search_metric, mode, trials)
    body = headline(search, results)
    if results.judged:
        body += pictures(search, results) + panels(results) + parallel(results)
    body += curves(results) + trials_table(results)
    search.write_text(REPORT, page(f"{search.name}: {results.metric}", body))
