"""The page around the sections: its style, and the script that reacts to the pointer."""

from __future__ import annotations

from ray_gen.searches.report.texts import escaped

INK, QUIET, LINES, ACCENT = "#22303c", "#6b7a88", "#e3e8ec", "#e8590c"
FONT = "system-ui, sans-serif"
PALE, DARK = "#a3bcd4", "#173f66"


def section(title: str, note: str, inner: str, there: bool = True) -> str:
    """A card. title and note are HTML."""
    told = f"<p class=note>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2>{told}{inner}</section>" if there else ""


def page(title: str, body: str) -> str:
    """The whole file. The policy in its head forbids loading anything from outside the file."""
    from plotly.offline import get_plotlyjs

    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>{escaped(title)}</title>
<meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data: blob:;
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{STYLE}</style><script>{get_plotlyjs()}</script><main>{body}</main>
<script>{SCRIPT}</script></html>"""


STYLE = f"""
body {{ margin: 0; background: #f6f7f8; color: {INK}; font: 15px/1.5 {FONT} }}
main {{ max-width: 1240px; margin: 0 auto; padding: 40px 24px 80px }}
h1 {{ font-size: 34px; font-weight: 600; margin: 0 0 4px; overflow-wrap: anywhere }}
h2 {{ font-size: 17px; font-weight: 600; margin: 0 0 8px }}
em {{ color: {ACCENT}; font-style: normal }}
.above, .note {{ color: {QUIET}; font-size: 13px; margin: 0 0 10px }}
header p {{ margin: 0 0 14px }}
header ul {{ display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 0; padding: 0 }}
header li {{ color: {QUIET}; list-style: none }}
b {{ color: {INK} }}
section {{ margin-top: 20px; padding: 20px 24px; min-width: 0; background: white;
  border: 1px solid {LINES}; border-radius: 10px }}
.two {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  column-gap: 20px }}
dl {{ display: grid; grid-template-columns: fit-content(70%) minmax(80px, 1fr); gap: 5px 20px;
  margin: 0 0 12px }}
dt, dd {{ color: {QUIET}; margin: 0; overflow-wrap: anywhere }}
dd {{ color: {INK}; font-weight: 600 }}
.bars dd {{ font-weight: 400; white-space: nowrap }}
.bars i {{ display: inline-block; height: 11px; min-width: 2px; margin-right: 8px;
  border-radius: 2px; background: {DARK} }}
.guess i {{ background: {PALE} }}
.scale {{ display: inline-block; width: 70px; height: 9px; border-radius: 2px;
  background: linear-gradient(90deg, {PALE}, {DARK}) }}
.samples {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr));
  gap: 16px }}
figure {{ margin: 0 }}
img {{ width: 100%; border-radius: 4px }}
figcaption {{ color: {QUIET} }}
figcaption em {{ font-weight: 700 }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr));
  gap: 8px 20px }}
.panels > div {{ min-width: 0 }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px; width: 100% }}
th, td {{ text-align: left; padding: 5px 12px 5px 0; font-variant-numeric: tabular-nums }}
th {{ color: {QUIET}; font-weight: 500; cursor: pointer; vertical-align: bottom }}
td {{ border-top: 1px solid {LINES}; vertical-align: top; white-space: nowrap }}
td:last-child {{ white-space: normal; min-width: 180px; color: {QUIET} }}
.best td:nth-child(-n+4) {{ color: {ACCENT}; font-weight: 600 }}
.failed td:nth-child(3) {{ color: #b42318 }}
tr.lit {{ background: #eef3f8 }}
.dim .js-line, .dim .points path {{ opacity: .08 !important }}
.dim .lit .js-line, .dim .lit .points path, .dim .points path.lit {{ opacity: 1 !important }}
"""

SCRIPT = """
// Highlights trials in all figures and in the table: under the pointer, or in a frame.
const plots = [...document.querySelectorAll('.js-plotly-plot')];
const rows = [...document.querySelectorAll('tbody tr')];
const all = (selector, act) => document.querySelectorAll(selector).forEach(act);
let held = [];
function light(trials) {
  const lit = (element, k) => element.classList.toggle('lit', trials.includes(k));
  document.body.classList.toggle('dim', trials.length > 0);
  all('.scatterlayer .trace', e => lit(e, e.__data__?.[0]?.trace.meta));
  all('.points path', e => lit(e, e.__data__?.data));
  rows.forEach(row => lit(row, +row.dataset.k));
}
function inside(plot, {x, y}) {
  const within = (value, [a, b]) => Math.min(a, b) <= value && value <= Math.max(a, b);
  return plot.data.flatMap(({x: xs, y: ys, meta, customdata}) =>
    xs.flatMap((_, i) => within(xs[i], x) && within(ys[i], y) ? [meta ?? customdata[i]] : []));
}
for (const plot of plots) {
  plot.on('plotly_hover', ({points: [p]}) => light([p.data.meta ?? p.customdata]));
  plot.on('plotly_unhover', () => light(held));
  plot.on('plotly_deselect', () => light(held = []));
  plot.on('plotly_selected', event => {
    if (!event?.range) return;
    plots.filter(other => other !== plot && other.layout.selections?.length)
      .forEach(other => Plotly.relayout(other, {selections: []}));
    light(held = inside(plot, event.range));
  });
}
rows.forEach(row => {
  row.onmouseenter = () => light([+row.dataset.k]);
  row.onmouseleave = () => light(held);
});
all('th', (head, column) => head.onclick = () => {
  const sign = head.sign = -(head.sign ?? -1);
  const value = row => row.cells[column].dataset.v;
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === '' || y === '') return (x === '') - (y === '');
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  }).forEach(row => row.parentNode.append(row));
});
"""
