"""The figures, drawn with plotly. All figures use the same colour scale and the same trial
numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from ray_gen.searches.records import Trial
from ray_gen.searches.report.page import ACCENT, DARK, FONT, INK, LINES, PALE, QUIET, section
from ray_gen.searches.report.results import Results, finite, score_axis
from ray_gen.searches.report.texts import escaped, escaped_for_plotly, number_of

Plot = dict[str, Any]
"""A part of a figure, in plotly's format."""
MARKS = {"done": "circle", "failed": "x-thin-open"}
"""Marker of each state. A trial in any other state ended early or has not ended."""


def panels(results: Results) -> str:
    """The score against each parameter, the best trial on top of the others."""
    axis, most = results.score, max(1, *(trial.images for trial in results.judged))
    plots = ""
    for index, (path, across) in enumerate(results.axes.items()):
        points = [
            (k, trial, place + across.spread(k))
            for k, trial in reversed([*enumerate(results.judged)])
            if (place := across.place(trial.values.get(path))) is not None
        ]
        colours = [_colour(trial.images / most, k == 0) for k, trial, _ in points]
        marks = {
            "mode": "markers",
            "x": [x for _, _, x in points],
            "y": [axis.place(trial.score) for _, trial, _ in points],
            "customdata": [k for k, *_ in points],
            "hovertext": [results.told(trial) for _, trial, _ in points],
            "cliponaxis": False,
            "marker": {
                "size": [13 if k == 0 else 9 for k, *_ in points],
                "symbol": [_mark(trial) for _, trial, _ in points],
                "color": colours,
                "opacity": 1.0,
                "line": {"width": 1.8, "color": colours},
            },
        }
        x, y = {"title": escaped_for_plotly(across.label), **across.layout()}, axis.layout()
        plots += _plot(f"panel{index}", [marks], 240, xaxis=x, yaxis=y, dragmode="select")
    note = f"""0 <span class=scale></span> {most:,} images trained &ensp; ● done &ensp;
○ ended early &ensp; <em>●</em> the best<br>
Drag over trials to see only them in all figures; double-click to see all."""
    if not all(math.isclose(axis.place(score) or 0.0, score) for score in results.scores):
        note += " Outliers are drawn at the edge."
    title = f"{escaped(results.metric)} against each parameter"
    return section(title, note, f"<div class=panels>{plots}</div>")


def parallel(results: Results) -> str:
    """Parallel coordinates: one line per trial, through its values to its score, the best at the
    top. Does not use plotly's own type of figure: it needs WebGL and shows no hover text."""
    flipped = results.mode == "min"
    traces: list[Plot] = []
    for k, trial in reversed([*enumerate(results.judged)]):
        shares = [axis.share(trial.values.get(path)) for path, axis in results.axes.items()]
        score = results.score.share(trial.score) or 0.0
        heights = [
            share + axis.spread(k) / (axis.high - axis.low)
            for axis, share in zip(results.axes.values(), shares, strict=True)
            if share is not None
        ]
        heights.append(1 - score if flipped else score)
        if len(heights) > len(shares):
            traces.append(_line(results, k, *_curved(heights)))
    texts: list[Plot] = []
    for index, axis in enumerate([*results.axes.values(), results.score]):
        at = {"x": index, "showarrow": False}
        name = escaped_for_plotly(axis.label).replace(".", ".<br>")
        texts.append({**at, "y": 1.05, "yanchor": "bottom", "text": f"<b>{name}</b>"})
        for value, label in axis.ticks():
            share = axis.share(value) or 0.0
            y = 1 - share if flipped and axis is results.score else share
            style = {"xanchor": "left", "xshift": 4, "bgcolor": "rgba(255,255,255,.8)"}
            style["yshift"] = 12 if axis.choices else 0
            texts.append({**at, **style, "y": y, "text": label, "font": {"color": QUIET}})
    places = range(len(results.axes) + 1)
    stems = [{"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1} for i in places]
    plot = _plot(
        "parallel",
        traces,
        360,
        xaxis={"range": [-0.5, len(stems) - 0.5], "visible": False},
        yaxis={"range": [-0.05, 1.25], "visible": False},
        annotations=texts,
        shapes=[{**stem, "layer": "below", "line": {"color": QUIET}} for stem in stems],
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        dragmode="select",
    )
    note = (
        "Darker lines have better scores; dotted lines ended early. Drag along a part of an axis "
        "to select trials."
    )
    inner = f"<div style='min-width:{120 * len(stems)}px'>{plot}</div>"
    return section("All parameters together", note, f"<div class=wide>{inner}</div>")


def _curved(heights: Sequence[float], pieces: int = 12) -> tuple[list[float], list[float]]:
    """A line that is horizontal at each axis. It has points between the axes, so that the pointer
    can hit it."""
    x, y = [0.0], [heights[0]]
    for index, (left, right) in enumerate(itertools.pairwise(heights)):
        for t in ((step + 1) / pieces for step in range(pieces)):
            x.append(round(index + t, 3))
            y.append(round(left + (right - left) * t * t * (3 - 2 * t), 4))
    return x, y


def curves(results: Results) -> str:
    """The score of every trial during its training."""
    traces: list[Plot] = []
    seen: list[float] = []
    for k, trial in reversed([*enumerate(results.trials)]):
        points = [(images, s) for images, s in trial.history if finite(s) is not None]
        if points:
            images, scores = zip(*points, strict=True)
            line = _line(results, k, images, scores)
            told = [f"<b>{number_of(s)}</b> after {n:,} images<br>" for n, s in points]
            line["hovertext"] = [here + line["hovertext"] for here in told]
            sizes = [*(0 for _ in scores[1:]), 11 if k == 0 else 8]
            line["mode"], line["marker"]["size"] = "lines+markers", sizes
            traces.append(line)
            seen += scores
    if not traces:
        return ""
    y = score_axis("", seen, results.mode).layout()
    x: Plot = {"title": "images", "rangemode": "tozero", "tickformat": "~s"}
    plot = _plot("curves", traces, 380, xaxis=x, yaxis=y)
    title = f"{escaped(results.metric)} while training"
    note = "Darker lines have better last scores. Drag to zoom in, double-click to see all."
    return section(title, note, plot)


def _line(results: Results, k: int, x: Sequence[float], y: Sequence[float]) -> Plot:
    """A trial as a line, in the colour of its rank."""
    trial = results.trials[k]
    best = k == 0 and bool(results.judged)
    colour = _colour(max(0.0, 1 - k / max(1, len(results.judged) - 1)) ** 2, best)
    dash = "solid" if trial.state == "done" else "dot"
    return {
        "mode": "lines",
        "x": x,
        "y": y,
        "meta": k,
        "line": {"color": colour, "width": 3 if best else 1.5, "dash": dash},
        "marker": {"color": colour, "symbol": _mark(trial), "opacity": 1.0, "line": {"width": 1.8}},
        "hovertext": results.told(trial),
    }


def _plot(name: str, traces: Sequence[Plot], height: int, **layout: Any) -> str:
    """A figure as HTML for the page."""
    import plotly.graph_objects as go

    grid = {"gridcolor": LINES, "zeroline": False, "exponentformat": "e", "fixedrange": False}
    axes = {axis: {**grid, **layout.pop(axis)} for axis in ("xaxis", "yaxis")}
    look = {
        "template": "none",
        "height": height,
        "font": {"family": FONT, "size": 12, "color": INK},
        "margin": {"l": 56, "r": 14, "t": 10, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "bordercolor": LINES, "align": "left"}
        | {"font": {"family": FONT, "size": 12, "color": INK}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    base = {"type": "scatter", "hoverinfo": "text"}
    figure = go.Figure([base | trace for trace in traces], {**look, **axes, **layout})
    config = {"responsive": True, "displayModeBar": False}
    return figure.to_html(config, include_plotlyjs=False, full_html=False, div_id=name)


def _mark(trial: Trial) -> str:
    return MARKS.get(trial.state, "circle-open")


def _colour(share: float, best: bool) -> str:
    """From pale to dark. The best trial has its own colour."""
    share = min(max(share, 0.0), 1.0)
    ends = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (PALE, DARK))
    mixed = (round(p + (d - p) * share) for p, d in zip(*ends, strict=True))
    return ACCENT if best else f"rgb({','.join(map(str, mixed))})"
