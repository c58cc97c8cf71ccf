"""The report of a search: one HTML file, which needs no network and is forbidden to use one."""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_gen.experiment import Experiment
from ray_gen.experiment.search import Range, Search
from ray_gen.storage import Folder
from ray_gen.trials import REPORT, TRIALS, Mode, Trial, ranked

PICTURES = 4
"""Samples are shown of so many trials, the best."""
ENOUGH = 4
"""Judged trials from which on the importance of parameters is estimated."""

Plot = dict[str, Any]
"""A part of a figure, as plotly has it."""
INK, QUIET, LINES, ACCENT = "#22303c", "#6b7a88", "#e3e8ec", "#e8590c"
PALE, DARK = "#bfd0e0", "#173f66"
MARKS = {"done": "circle", "failed": "x-thin-open"}
"""Of states; all others ended early, or have not ended."""


def write_report(
    search: Folder, experiment: Experiment, trials: Sequence[Trial], mode: Mode
) -> None:
    """Write report.html into the search folder."""
    assert experiment.search is not None
    results = _Results(experiment.search, experiment.search_metric, mode, trials)
    body = _headline(search, results)
    if results.judged:
        body += _pictures(search, results) + _panels(results) + _parallel(results)
    body += _curves(results) + _table(results)
    search.write_text(REPORT, _page(f"{search.name}: {results.metric}", body))


class _Results:
    """The trials in the order of their rank, and the axes that they stand on."""

    def __init__(self, search: Search, metric: str, mode: Mode, trials: Sequence[Trial]) -> None:
        judged = [t for t in trials if t.state != "failed" and _finite(t.score) is not None]
        self.search, self.metric = search, metric
        self.mode: Mode = mode
        self.judged = ranked(judged, mode)
        self.trials = [*self.judged, *(trial for trial in trials if trial not in judged)]
        self.scores = [trial.score or 0.0 for trial in self.judged]
        self.score = _score_axis(metric, self.scores, mode)
        labels = zip(search.space, _labels(list(search.space)), strict=True)
        self.axes = {path: _axis_of(label, search.space[path]) for path, label in labels}

    def told(self, trial: Trial) -> str:
        """What a trial says where the pointer meets it."""
        values = (
            f"{axis.label} = {_shown(trial.values[path])}"
            for path, axis in self.axes.items()
            if path in trial.values
        )
        head = f"{trial.name}: {self.metric} {_number(trial.score)}"
        lines = [head, f"{trial.state} after {trial.images:,} images", *values]
        return "<br>".join(_plain(line) for line in lines)


@dataclass(frozen=True)
class _Axis:
    """Numbers between two ends, or choices at 0, 1, 2..."""

    label: str
    low: float
    high: float
    log: bool = False
    choices: tuple[Any, ...] | None = None

    def place(self, value: Any) -> float | None:
        """The number that stands for a value; None where it has no place here."""
        if self.choices is not None:
            return self.choices.index(value) if value in self.choices else None
        number = _finite(value)
        return None if number is None else min(max(number, self.low), self.high)

    def share(self, value: Any) -> float | None:
        """How far along the axis a value stands, from 0 to 1."""
        place = self.place(value)
        if place is None:
            return None
        low, high, at = (math.log(n) if self.log else n for n in (self.low, self.high, place))
        return (at - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Shares and labels: of every choice, or of the ends and the middle."""
        if self.choices is not None:
            return [(self.share(c) or 0.0, _plain(_shown(c, 18))) for c in self.choices]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(i / 2, f"{v:.3g}") for i, v in enumerate((self.low, middle, self.high))]

    def layout(self) -> Plot:
        """As plotly has it."""
        if self.choices is not None:
            labels = [label for _, label in self.ticks()]
            return {"range": [self.low, self.high], "tickvals": [*range(len(labels))]} | {
                "ticktext": labels
            }
        low, high = (math.log10(n) if self.log else n for n in (self.low, self.high))
        room = 0.05 * (high - low)
        log = {"type": "log", "dtick": 1 if high - low > 1 else "D2"} if self.log else {}
        return {"range": [low - room, high + room], **log}


def _axis_of(label: str, values: Range) -> _Axis:
    low, high = values.bounds or (0, 0)
    few = values.randint and tuple(range(int(low), int(high)))
    choices = values.choice or (few if few and len(few) <= 8 else None)
    if choices:
        return _Axis(label, -0.5, len(choices) - 0.5, choices=choices)
    return _Axis(label, low, high, log=values.kind.startswith("log"))


def _score_axis(label: str, scores: Sequence[float], mode: Mode) -> _Axis:
    """From the best score to the worst that is no outlier (3 interquartile ranges beyond the
    quartile); logarithmic where the scores span more than a decade."""
    log = min(scores, default=0.0) > 0 and max(scores) > 10 * min(scores)
    drawn = [math.log(score) if log else score for score in scores] or [0.0]
    low, high = min(drawn), max(drawn)
    if len(drawn) >= 4:
        first, _, third = statistics.quantiles(drawn, method="inclusive")
        fence = 3 * (third - first)
        if fence and mode == "min":
            high = min(high, third + fence)
        elif fence:
            low = max(low, first - fence)
    if high - low <= 1e-9 * abs(high):
        low, high = low - 0.05 * (abs(low) or 1.0), high + 0.05 * (abs(high) or 1.0)
    return _Axis(label, *(math.exp(end) if log else end for end in (low, high)), log=log)


def _labels(paths: Sequence[str]) -> list[str]:
    """The shortest ends of dotted paths that tell them apart."""
    parts = [path.split(".") for path in paths]

    def label(path: list[str]) -> str:
        ends = (path[-n:] for n in range(1, len(path)))
        alone = (end for end in ends if sum(other[-len(end) :] == end for other in parts) == 1)
        return ".".join(next(alone, path))

    return [label(path) for path in parts]


def _headline(search: Folder, results: _Results) -> str:
    """The best trial in large, and what became of the others."""
    trials, judged = results.trials, results.judged
    states = [trial.state for trial in trials]
    facts = [
        (str(len(trials)), "trials"),
        (str(states.count("done")), "done"),
        (str(states.count("stopped")), "stopped early"),
        (str(states.count("failed")), "failed"),
        (str(sum(not trial.ended for trial in trials)), "not ended"),
        (f"{sum(trial.images for trial in trials):,}", "images trained in all"),
        (_time(sum(trial.seconds for trial in trials)), "of training"),
    ]
    told = "".join(f"<li><b>{n}</b> {what}" for n, what in facts if n != "0" or what == "trials")
    top, facts_list = f"<p class=above>Search · {_text(search.name)}</p>", f"<ul>{told}</ul>"
    if not judged:
        all_failed = trials and states.count("failed") == len(trials)
        why = "every one failed" if all_failed else "none was judged"
        return f"<header>{top}<h1>No trial came to a score: {why}.</h1>{facts_list}</header>"
    best = judged[0]
    values = "".join(f"<dt>{_text(p)}<dd>{_text(_shown(v))}" for p, v in best.values.items())
    return f"""<header>{top}<h1>{_text(results.metric)} <em>{_number(best.score)}</em></h1>
<p>by <b>{_text(best.name)}</b> after {best.images:,} images, the best of {len(judged)} judged;
{"lower" if results.mode == "min" else "higher"} is better.</p>{facts_list}</header>
<div class=two><section><h2>The best values</h2><dl>{values}</dl></section>
<section><h2>Importance</h2>{_importance(results)}</section></div>"""


def _importance(results: _Results) -> str:
    """A bar a parameter."""
    if len(results.judged) < ENOUGH:
        return f"<p>It takes {ENOUGH} judged trials to tell; here are {len(results.judged)}.</p>"
    shares = _shares(results)
    if not shares:
        return "<p>The scores do not differ, and so tell nothing of the parameters.</p>"
    bars = "".join(
        f"<dt title='{_text(path)}'>{_text(results.axes[path].label)}"
        f"<dd><i style='width:{75 * share:.1f}%'></i>{share:.0%}"
        for path, share in shares.items()
    )
    return f"""<dl class=bars>{bars}</dl><p class=note>Share of the score's variance that a
parameter explains by itself (fANOVA, Hutter et al. 2014). A hint, from {len(results.judged)} trials, of which
those that ended early count with their last score.</p>"""


def _shares(results: _Results) -> dict[str, float]:
    """fANOVA of what the figures show, so that one outlier is not all the variance: by path, the
    greatest first. Empty where too few trials have a value for every parameter, or scores differ."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    axes = results.axes
    distributions: dict[str, BaseDistribution] = {
        path: CategoricalDistribution([*range(len(axis.choices))])
        if axis.choices
        else FloatDistribution(0.0, 1.0)
        for path, axis in axes.items()
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for trial, score in zip(results.judged, results.scores, strict=True):
        given = {path: trial.values.get(path) for path in axes}
        params = {p: (a.place if a.choices else a.share)(given[p]) for p, a in axes.items()}
        if None not in params.values():
            value = results.score.share(score)
            done = optuna.trial.create_trial(
                params=params, distributions=distributions, value=value
            )
            study.add_trial(done)
    if len(study.trials) < ENOUGH or len({trial.value for trial in study.trials}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _pictures(search: Folder, results: _Results) -> str:
    """The newest samples of the best trials."""
    figures = ""
    for trial in results.judged[:PICTURES]:
        png = _newest_samples(search / TRIALS / trial.name / "samples")
        if png is not None:
            name, score = _text(trial.name), _number(trial.score)
            figures += f"""<figure><img alt='Samples of {name}'
src='data:image/png;base64,{base64.b64encode(png).decode()}'>
<figcaption><b>{name}</b> {score}</figcaption></figure>"""
    return _section("Samples of the best", "", f"<div class=samples>{figures}</div>", bool(figures))


def _newest_samples(folder: Folder) -> bytes | None:
    names = [n for n in folder.names() if n.startswith("samples_") and n.endswith(".png")]
    if not names:
        return None
    local = folder.fetch()
    try:
        return (local / names[-1]).read_bytes()
    finally:
        if not folder.is_local:
            shutil.rmtree(local)


def _panels(results: _Results) -> str:
    """The score against each parameter, the best trial on top of the others."""
    axis, most = results.score, max(1, *(trial.images for trial in results.judged))
    plots = ""
    for index, (path, across) in enumerate(results.axes.items()):
        points = [
            (k, trial, place + (0.3 * (k * 0.618 % 1 - 0.5) if across.choices else 0.0))
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
        x, y = {"title": _plain(across.label), **across.layout()}, axis.layout()
        plots += _plot(f"panel{index}", [marks], 240, xaxis=x, yaxis=y, dragmode="select")
    note = f"""<span class=scale></span> dark: {most:,} images trained. ● done ○ ended early
<em>●</em> the best. Drag over trials to see them alone in all figures; double-click for all."""
    if any(axis.place(score) != score for score in results.scores):
        note += " Outliers stand at the edge."
    title = f"{_text(results.metric)} against each parameter"
    return _section(title, note, f"<div class=panels>{plots}</div>")


def _parallel(results: _Results) -> str:
    """Parallel coordinates: a line a trial through its values to its score, the best at the top.
    Not plotly's own, which need WebGL and say nothing under the pointer."""
    flipped = results.mode == "min"
    traces: list[Plot] = []
    for k, trial in reversed([*enumerate(results.judged)]):
        shares = [axis.share(trial.values.get(path)) for path, axis in results.axes.items()]
        score = results.score.share(trial.score) or 0.0
        heights = [s for s in (*shares, 1 - score if flipped else score) if s is not None]
        if len(heights) > len(shares):
            traces.append(_line(results, k, *_curved(heights)))
    texts: list[Plot] = []
    for index, axis in enumerate([*results.axes.values(), results.score]):
        at = {"x": index, "showarrow": False}
        texts.append({**at, "y": 1.1, "text": f"<b>{_plain(axis.label)}</b>"})
        for share, label in axis.ticks():
            y = 1 - share if flipped and axis is results.score else share
            style = {"xanchor": "left", "xshift": 4, "bgcolor": "rgba(255,255,255,.8)"}
            texts.append({**at, **style, "y": y, "text": label, "font": {"color": QUIET}})
    places = range(len(results.axes) + 1)
    stems = [{"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1} for i in places]
    plot = _plot(
        "parallel",
        traces,
        360,
        xaxis={"range": [-0.5, len(stems) - 0.5], "visible": False},
        yaxis={"range": [-0.05, 1.2], "visible": False},
        annotations=texts,
        shapes=[{**stem, "layer": "below", "line": {"color": QUIET}} for stem in stems],
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        dragmode="select",
    )
    note = "The darker, the better its score; dotted: ended early. Drag over a stretch of an axis."
    inner = f"<div style='min-width:{120 * len(stems)}px'>{plot}</div>"
    return _section("All parameters together", note, f"<div class=wide>{inner}</div>")


def _curved(heights: Sequence[float], pieces: int = 12) -> tuple[list[float], list[float]]:
    """A line that crosses each axis level, with points between them for the pointer to meet."""
    x, y = [0.0], [heights[0]]
    for index, (left, right) in enumerate(itertools.pairwise(heights)):
        for t in ((step + 1) / pieces for step in range(pieces)):
            x.append(round(index + t, 3))
            y.append(round(left + (right - left) * t * t * (3 - 2 * t), 4))
    return x, y


def _curves(results: _Results) -> str:
    """The score of every trial while it trained."""
    traces: list[Plot] = []
    seen: list[float] = []
    for k, trial in reversed([*enumerate(results.trials)]):
        points = [(images, s) for images, s in trial.history if _finite(s) is not None]
        if points:
            images, scores = zip(*points, strict=True)
            line = _line(results, k, images, scores)
            line["hovertemplate"] = "%{y:.4g} after %{x:,} images<br>%{hovertext}<extra></extra>"
            sizes = [*(0 for _ in scores[1:]), 11 if k == 0 else 8]
            line["mode"], line["marker"]["size"] = "lines+markers", sizes
            traces.append(line)
            seen += scores
    if not traces:
        return ""
    y = _score_axis("", seen, results.mode).layout()
    x: Plot = {"title": "images", "rangemode": "tozero", "tickformat": "~s"}
    plot = _plot("curves", traces, 380, xaxis=x, yaxis=y)
    title = f"{_text(results.metric)} while training"
    note = "The darker, the better its last score. Drag to enlarge, double-click for all."
    return _section(title, note, plot)


def _line(results: _Results, k: int, x: Sequence[float], y: Sequence[float]) -> Plot:
    """A trial as a line, in the colour of its rank."""
    trial = results.trials[k]
    best = k == 0 and bool(results.judged)
    colour = _colour(1 - k / max(1, len(results.judged) - 1), best)
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
    """A figure as a part of the page."""
    import plotly.graph_objects as go

    plain = {"gridcolor": LINES, "zeroline": False, "exponentformat": "power", "fixedrange": False}
    axes = {axis: {**plain, **layout.pop(axis)} for axis in ("xaxis", "yaxis")}
    look = {
        "template": "none",
        "height": height,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "margin": {"l": 56, "r": 14, "t": 10, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "bordercolor": QUIET, "align": "left"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    base = {"type": "scatter", "hovertemplate": "%{hovertext}<extra></extra>"}
    figure = go.Figure([base | trace for trace in traces], {**look, **axes, **layout})
    config = {"responsive": True, "displayModeBar": False}
    return figure.to_html(config, include_plotlyjs=False, full_html=False, div_id=name)


def _table(results: _Results) -> str:
    """Every trial, by rank; a click on a heading sorts."""
    heads = ["", "trial", "state", results.metric, "images", "time"]
    titles = [*heads, *results.axes, "reason"]
    heads = [*heads, *(axis.label for axis in results.axes.values()), "reason"]
    top = "".join(f"<th title='{_text(t)}'>{_text(h)}" for t, h in zip(titles, heads, strict=True))
    rows = ""
    for k, t in enumerate(results.trials):
        rank = k + 1 if k < len(results.judged) else None
        cells: list[tuple[Any, str]] = [
            (rank, str(rank or "")),
            (t.name, t.name),
            (t.state, t.state),
            (t.score, _number(t.score)),
            (t.images, f"{t.images:,}"),
            (t.seconds, _time(t.seconds)),
            *((v := t.values.get(path), _shown(v)) for path in results.axes),
            (t.reason, t.reason or ""),
        ]
        rows += f"<tr data-k={k} class={t.state}>" + "".join(
            f"<td data-v='{_text('' if v is None else str(v))}'>{_text(s)}" for v, s in cells
        )
    inner = f"<table><thead><tr>{top}<tbody>{rows}</table>"
    return _section("All trials", "A click on a heading sorts.", f"<div class=wide>{inner}</div>")


def _section(title: str, note: str, inner: str, there: bool = True) -> str:
    told = f"<p class=note>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2>{told}{inner}</section>" if there else ""


def _finite(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if number else None


def _mark(trial: Trial) -> str:
    return MARKS.get(trial.state, "circle-open")


def _colour(share: float, best: bool) -> str:
    """From pale to dark; the best has its own."""
    share = min(max(share, 0.0), 1.0)
    ends = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (PALE, DARK))
    mixed = (round(p + (d - p) * share) for p, d in zip(*ends, strict=True))
    return ACCENT if best else f"rgb({','.join(map(str, mixed))})"


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.5g}"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min"
        if minutes > 99
        else (f"{minutes} min" if seconds > 99 else f"{seconds:.0f} s")
    )


def _shown(value: Any, width: int = 60) -> str:
    """A value as one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _text(text: str) -> str:
    """For the page."""
    return html.escape(text)


def _plain(text: str) -> str:
    """For plotly, which reads tags but knows no &quot;."""
    return html.escape(text, quote=False)


def _page(title: str, body: str) -> str:
    from plotly.offline import get_plotlyjs

    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title>
<meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data: blob:;
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{STYLE}</style><script>{get_plotlyjs()}</script><main>{body}</main>
<script>{SCRIPT}</script></html>"""


STYLE = f"""
body {{ margin: 0; background: #f6f7f8; color: {INK}; font: 15px/1.5 system-ui, sans-serif }}
main {{ max-width: 1240px; margin: 0 auto; padding: 40px 24px 80px }}
h1 {{ font-size: 34px; font-weight: 600; margin: 0 0 4px; letter-spacing: -.01em }}
h2 {{ font-size: 17px; font-weight: 600; margin: 0 0 8px }}
em {{ color: {ACCENT}; font-style: normal }}
.above, .note {{ color: {QUIET}; font-size: 13px; margin: 0 0 10px }}
header p {{ margin: 0 0 14px }}
header ul {{ display: flex; flex-wrap: wrap; gap: 4px 28px; list-style: none; margin: 0; padding: 0 }}
header li {{ color: {QUIET} }} header li b {{ color: {INK} }}
section {{ background: white; border: 1px solid {LINES}; border-radius: 10px; padding: 20px 24px; margin-top: 20px; min-width: 0 }}
.two {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); column-gap: 20px }}
dl {{ display: grid; grid-template-columns: minmax(0, auto) 1fr; gap: 5px 20px; margin: 0 0 12px }}
dt {{ color: {QUIET}; overflow-wrap: anywhere }} dd {{ margin: 0; font-weight: 600; overflow-wrap: anywhere }}
.bars dd {{ font-weight: 400; white-space: nowrap }}
.bars i {{ display: inline-block; height: 11px; min-width: 2px; margin-right: 8px; border-radius: 2px; background: {DARK} }}
.scale {{ display: inline-block; width: 70px; height: 9px; border-radius: 2px; background: linear-gradient(90deg, {PALE}, {DARK}) }}
.samples {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 16px }}
figure {{ margin: 0 }} img {{ width: 100%; border-radius: 4px }} figcaption {{ color: {QUIET} }}
figcaption b {{ color: {INK} }} figure:first-child b {{ color: {ACCENT} }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 8px 20px }}
.panels > div {{ min-width: 0 }} .wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px; width: 100% }}
th, td {{ text-align: left; padding: 5px 12px 5px 0; border-top: 1px solid {LINES}; vertical-align: top; font-variant-numeric: tabular-nums; white-space: nowrap }}
th {{ color: {QUIET}; font-weight: 500; border: 0; cursor: pointer }}
td:last-child {{ white-space: normal; min-width: 180px; color: {QUIET} }}
tr[data-k="0"]:not(.failed) td:nth-child(-n+4) {{ color: {ACCENT}; font-weight: 600 }}
.failed td:nth-child(3) {{ color: #b42318 }} tr.lit {{ background: #eef3f8 }}
.dim .js-line, .dim .points path {{ opacity: .08 !important }}
.dim .lit .js-line, .dim .lit .points path, .dim .points path.lit {{ opacity: 1 !important }}
"""

SCRIPT = """
// One trial under the pointer, or several in a frame, stand out in all figures and in the table.
const rows = [...document.querySelectorAll('tbody tr')];
let held = [];
function light(trials) {
  const lit = (e, k) => e.classList.toggle('lit', trials.includes(k));
  document.body.classList.toggle('dim', trials.length > 0);
  document.querySelectorAll('.scatterlayer .trace').forEach(e => lit(e, e.__data__?.[0]?.trace.meta));
  document.querySelectorAll('.points path').forEach(e => lit(e, e.__data__?.data));
  rows.forEach(e => lit(e, +e.dataset.k));
}
for (const plot of document.querySelectorAll('.js-plotly-plot')) {
  const trial = point => point.data.meta ?? point.customdata;
  const inside = ({x, y}) => plot.data.flatMap(t => [...t.x.keys()].filter(i =>
    x[0] <= t.x[i] && t.x[i] <= x[1] && y[0] <= t.y[i] && t.y[i] <= y[1]
  ).map(i => t.meta ?? t.customdata[i]));
  const sorted = range => ({x: [...range.x].sort((a, b) => a - b), y: [...range.y].sort((a, b) => a - b)});
  plot.on('plotly_hover', e => light([trial(e.points[0])]));
  plot.on('plotly_unhover', () => light(held));
  plot.on('plotly_selected', e => light(held = e?.range ? inside(sorted(e.range)) : []));
  plot.on('plotly_deselect', () => light(held = []));
}
rows.forEach(row => {
  row.onmouseenter = () => light([+row.dataset.k]);
  row.onmouseleave = () => light(held);
});
document.querySelectorAll('th').forEach((head, column) => head.onclick = () => {
  const sign = head.sign = -(head.sign ?? -1);
  const value = row => row.cells[column].dataset.v;
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === '' || y === '') return (x === '') - (y === '');
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  }).forEach(row => row.parentNode.append(row));
});
"""
