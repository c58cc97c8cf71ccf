"""Scores as a Markdown table: a row for each value, a column for each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray_gen.evaluation.metrics import BETTER, metric_of
from ray_gen.evaluation.scores import Score, Scores

ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
"""Sign beside the name of a value: whether lower or higher is better."""
LONGEST_UNIT = 30
"""Characters of the longest unit that stands beside a name."""

_MOST_PLACES = 8
"""Places after the point. Numbers with more are written with an exponent."""

ESSENTIAL = (
    (("extractor",), ("extractor_weights",)),
    (("seen_as",),),
    (("samples",),),
    (("pixels",),),
    (("warning",),),
)
"""Protocol entries of a single metric that are always shown. So are those in which runs differ."""

_GROUPS = ("generated", "originals", "")
"""Entries that only protocols of samples and of reconstructions have. Empty: all others."""

_Facts = dict[tuple[str, ...], Any]
"""A protocol as {path of an entry: value}."""


def table(runs: Sequence[tuple[str, Scores]], *, verbose: bool = False) -> str:
    """A Markdown table of runs and their scores, and below it how they were measured: the entries
    that all protocols share, then those of single runs, then the metrics that were left out.

    verbose: also show the entries of single metrics.
    """
    found: dict[str, Score] = {}
    for _, scores in runs:
        for score in scores:
            found.setdefault(score.name, score)
    order = {name: place for place, name in enumerate(BETTER)}
    names = sorted(found, key=lambda name: order.get(name, len(order)))
    rows = [["", *(run for run, _ in runs)]]
    for name in names:
        values = [{s.name: _cell(s) for s in scores}.get(name, "") for _, scores in runs]
        rows.append([_heading(found[name]), *values])
    lines = [*_aligned(rows), ""]
    for group in _GROUPS:
        lines += _protocols(runs, group, verbose)
    lines += dict.fromkeys(f"- left out: {why}" for _, scores in runs for why in scores.without)
    return "\n".join(lines).rstrip("\n")


def _heading(score: Score) -> str:
    unit = score.protocol.get("unit")
    fits = isinstance(unit, str) and len(unit) <= LONGEST_UNIT
    return f"{score.name}{ARROWS[BETTER.get(score.name)]}{f' ({unit})' if fits else ''}"


def _cell(score: Score) -> str:
    """The value with five digits, but with no more than its spread allows, which has two."""
    value, spread = score.value, score.spread
    if spread is None:
        return f"{value:.5g}"
    if not (spread > 0 and math.isfinite(spread) and math.isfinite(value)):
        return f"{value:.5g} ± {spread:.2g}"
    places = 1 - _exponent(spread, 2)
    return f"{_rounded(value, min(places, 4 - _exponent(value, 5)))} ± {_rounded(spread, places)}"


def _exponent(value: float, digits: int) -> int:
    """The power of ten of the first digit, after rounding to this number of digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _rounded(value: float, places: int) -> str:
    """A number with so many places after the point; below 0 it is rounded to tens, hundreds, …"""
    if places > _MOST_PLACES:
        return f"{value:.{max(places + _exponent(value, 1), 0)}e}"
    return f"{round(value, places) + 0.0:.{max(places, 0)}f}"  # + 0.0: no minus before a zero


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a Markdown table. Numbers are aligned to the right."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = [
        f"| {row[0]:<{widths[0]}} | "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]


def _group(score: Score) -> str:
    return next((name for name in _GROUPS if name in score.protocol), "")


def _protocols(runs: Sequence[tuple[str, Scores]], group: str, verbose: bool) -> list[str]:
    """Lines about how the scores of a group were measured."""
    measured = [
        {score.name: _facts(score.protocol) for score in scores if _group(score) == group}
        for _, scores in runs
    ]
    all_of_them = [facts for of_run in measured for facts in of_run.values()]
    if not all_of_them:
        return []
    common = _shared(all_of_them)
    names = dict.fromkeys(name for of_run in measured for name in of_run)
    metrics = dict.fromkeys(map(_metric, names))
    head = "samples" if group == "generated" else ", ".join(metrics)
    lines = [f"- {head}: {_words(common)}"] if common else []
    differing = {name: _differing([of[name] for of in measured if name in of]) for name in names}
    own: dict[str, list[tuple[int, str]]] = {}
    for number, ((run, _), of_run) in enumerate(zip(runs, measured, strict=True)):
        shared = _shared(list(of_run.values()))
        rest = {path: value for path, value in shared.items() if path not in common}
        if rest:
            lines.append(f"- {run}: {_words(rest)}")
        for name, facts in of_run.items():
            told = {path: value for path, value in facts.items() if path not in shared}
            groups = [*ESSENTIAL, *((path,) for path in differing[name])]
            brief = [{path: told[path] for path in group if path in told} for group in groups]
            for part in [told] if verbose else brief:
                if part:
                    own.setdefault(_words(part), []).append((number, name))
    for words, places in own.items():
        names = list(dict.fromkeys(name for _, name in places))
        words = words.removeprefix("warning ")
        if len(places) == sum(name in of_run for of_run in measured for name in names):
            lines.append(f"- {', '.join(names)}: {words}")  # in all runs alike
            continue
        for number, (run, _) in enumerate(runs):
            here = [name for place, name in places if place == number]
            if here:
                lines.append(f"- {run}, {', '.join(here)}: {words}")
    return lines


def _differing(protocols: Sequence[_Facts]) -> list[tuple[str, ...]]:
    """Entries of one value, in several runs, that are not equal, but for what is always shown.
    Numbers with a fraction and lists are results."""
    shown = {path for group in ESSENTIAL for path in group}
    shown |= _shared(protocols).keys()
    paths = dict.fromkeys(path for facts in protocols for path in facts if path not in shown)
    return [
        path
        for path in paths
        if not any(isinstance(facts.get(path), (float, list)) for facts in protocols)
    ]


def _metric(score: str) -> str:
    """The metric that a value is of; the value itself if no metric here yields it."""
    return metric_of(score) if score in BETTER else score


def _facts(protocol: Mapping[str, Any], above: tuple[str, ...] = ()) -> _Facts:
    facts: _Facts = {}
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            facts |= _facts(value, (*above, key))
        elif value is not None:
            facts[(*above, key)] = value
    return facts


def _shared(protocols: Sequence[_Facts]) -> _Facts:
    """The entries that are equal in all protocols."""
    first = protocols[0] if protocols else {}
    return {
        path: value
        for path, value in first.items()
        if all(path in facts and facts[path] == value for facts in protocols)
    }


def _words(facts: _Facts) -> str:
    """Facts in a line. Facts below the same key stand together."""
    told: dict[str, list[str]] = {}
    for (first, *below), value in facts.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        name = " ".join(below).replace("_", " ")
        told.setdefault(first.replace("_", " "), []).append(f"{name} {text}" if name else text)
    return ", ".join(
        f"{key} ({', '.join(values)})" if len(values) > 1 else f"{key} {values[0]}"
        for key, values in told.items()
    )
