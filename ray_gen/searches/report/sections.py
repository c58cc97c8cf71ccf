"""The sections of the report that are text, tables and pictures."""

from __future__ import annotations

import base64
from typing import Any

from ray_gen.searches.records import TRIALS
from ray_gen.searches.report.importance import ENOUGH, TRUSTED, shares_of
from ray_gen.searches.report.page import section
from ray_gen.searches.report.results import Results
from ray_gen.searches.report.texts import breakable, escaped, number_of, shown, time_of
from ray_gen.storage import Folder

PICTURES = 4
"""The number of best trials with samples in the report."""


def headline(search: Folder, results: Results) -> str:
    """The best trial in large type, and the number of trials in each state."""
    trials, judged = results.trials, results.judged
    states = [trial.state for trial in trials]
    facts = [
        (str(len(trials)), "trial" if len(trials) == 1 else "trials"),
        (str(states.count("done")), "done"),
        (str(states.count("stopped")), "stopped early"),
        (str(states.count("failed")), "failed"),
        (str(sum(not trial.ended for trial in trials)), "not ended"),
        (f"{sum(trial.images for trial in trials):,}", "images trained in all"),
        (time_of(sum(trial.seconds for trial in trials)), "of training"),
    ]
    told = "".join(f"<li><b>{n}</b> {what}" for n, what in facts if n != "0" or what == "trials")
    top, facts_list = f"<p class=above>Search · {escaped(search.name)}</p>", f"<ul>{told}</ul>"
    if not judged:
        all_failed = trials and states.count("failed") == len(trials)
        why = "all failed" if all_failed else "none was judged"
        return f"<header>{top}<h1>No trial has a score: {why}.</h1>{facts_list}</header>"
    best = judged[0]
    values = "".join(f"<dt>{breakable(p)}<dd>{escaped(shown(v))}" for p, v in best.values.items())
    return f"""<header>{top}<h1>{escaped(results.metric)} <em>{number_of(best.score)}</em></h1>
<p>by <b>{escaped(best.name)}</b> after {best.images:,} images, the best of {len(judged)} judged;
{"lower" if results.mode == "min" else "higher"} is better.</p>{facts_list}</header>
<div class=two><section><h2>The best values</h2><dl>{values}</dl></section>
<section><h2>Importance</h2>{_importance(results)}</section></div>"""


def _importance(results: Results) -> str:
    """One bar per parameter."""
    if len(results.judged) < ENOUGH:
        here = len(results.judged)
        return f"<p>An estimate needs {ENOUGH} judged trials; this search has {here}.</p>"
    shares = shares_of(results)
    if not shares:
        return "<p>No estimate is possible: all scores or all values are equal or missing.</p>"
    bars = "".join(
        f"<dt title='{escaped(path)}'>{breakable(results.axes[path].label)}"
        f"<dd><i style='width:{75 * share:.1f}%'></i>{share:.0%}"
        for path, share in shares.items()
    )
    few = len(results.judged) < TRUSTED * len(results.axes)
    doubt = "<b>Only a guess: with so few trials the differences may be chance.</b>" if few else ""
    return f"""<dl class='bars{" guess" if few else ""}'>{bars}</dl>
<p class=note>{doubt} Share of the score's variance that a parameter explains alone (fANOVA,
Hutter et al. 2014), from {len(results.judged)} trials for {len(results.axes)} parameters. Trials
that ended early count with their last score.</p>"""


def pictures(search: Folder, results: Results) -> str:
    """The newest samples of the best trials."""
    figures = ""
    for trial in results.judged[:PICTURES]:
        png = _newest_samples(search / TRIALS / trial.name / "samples")
        if png is not None:
            name, score = escaped(trial.name), number_of(trial.score)
            tag = "em" if trial is results.judged[0] else "b"
            figures += f"""<figure><img alt='Samples of {name}'
src='data:image/png;base64,{base64.b64encode(png).decode()}'>
<figcaption><{tag}>{name}</{tag}> {score}</figcaption></figure>"""
    return section("Samples of the best", "", f"<div class=samples>{figures}</div>", bool(figures))


def _newest_samples(folder: Folder) -> bytes | None:
    names = [n for n in folder.names() if n.startswith("samples_") and n.endswith(".png")]
    if not names:
        return None
    return folder.read_bytes(names[-1])


def trials_table(results: Results) -> str:
    """All trials, by rank. A click on a heading sorts."""
    heads = ["", "trial", "state", results.metric, "images", "time"]
    titles = [*heads, *results.axes, "reason"]
    heads = [*heads, *(axis.label for axis in results.axes.values()), "reason"]
    top = "".join(
        f"<th title='{escaped(t)}'>{breakable(h)}" for t, h in zip(titles, heads, strict=True)
    )
    rows = ""
    for k, t in enumerate(results.trials):
        rank = k + 1 if k < len(results.judged) else None
        best = " best" if rank == 1 else ""
        cells: list[tuple[Any, str]] = [
            (rank, str(rank or "")),
            (t.name, t.name),
            (t.state, t.state),
            (t.score, number_of(t.score)),
            (t.images, f"{t.images:,}"),
            (t.seconds, time_of(t.seconds)),
            *((v := t.values.get(path), shown(v)) for path in results.axes),
            (t.reason, t.reason or ""),
        ]
        rows += f"<tr data-k={k} class='{escaped(t.state)}{best}'>" + "".join(
            f"<td data-v='{escaped('' if v is None else str(v))}'>{escaped(s)}" for v, s in cells
        )
    inner = f"<table><thead><tr>{top}<tbody>{rows}</table>"
    return section("All trials", "A click on a heading sorts.", f"<div class=wide>{inner}</div>")
