"""The report of a check: one HTML page that loads nothing and runs nothing."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.check.checking import SHOWN_GROUPS, SHOWN_OF_GROUP, Checked, Copies
from ray_gen.data.check.findings import SHEET_CLASSES, Fault, Shown
from ray_gen.data.check.prints import as_bytes
from ray_gen.data.check.told import (
    class_counts,
    kinds_of,
    levels_of,
    ratios_of,
    sizes_of,
)
from ray_gen.data.errors import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_ROWS = 2_000
"""Number of faults in a table of the page. JSON has all."""
_FEW_CLASSES = 12
"""With so many classes or fewer, all kept images of a class are shown, else half of them."""
_BINS = 64
_COLOURS: dict[int, tuple[str, ...]] = {1: ("grey",), 3: ("red", "green", "blue")}


def page(checked: Checked, source: str) -> str:
    """The whole file. All names in it come from files of strangers, and are escaped."""
    body = "".join(
        (
            _headline(checked, source),
            _leakage(checked),
            _training(checked),
            _faults(checked),
            _classes(checked),
            _sheet(checked),
            _what(checked),
            _sizes(checked),
            _values(checked),
            _duplicates(checked),
        )
    )
    title = _escaped(f"Check of {source}")
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta name=color-scheme content="light dark">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data:;
style-src 'unsafe-inline'"><style>{_STYLE}</style><main>{body}</main></html>
"""


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _breakable(text: str) -> str:
    """Escaped, and allowed to break after a slash."""
    return _escaped(text).replace("/", "/<wbr>")


def _section(title: str, note: str, inner: str) -> str:
    told = f"<p class=note>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2>{told}{inner}</section>" if inner else ""


def _headline(checked: Checked, source: str) -> str:
    found, outlook = checked.found, checked.outlook
    refused = len(outlook.refusals)
    if not checked.complete:
        verdict = f"Interrupted: {found.looked_at:,} of {checked.contents.count:,} images"
        tone = "warn"
    elif refused:
        reasons = "1 reason" if refused == 1 else f"{refused:,} reasons"
        verdict, tone = f"Training would be refused, for {reasons}", "bad"
    else:
        verdict, tone = "Training would start", "good"
    held_out = sum(found.held_out)
    groups = (*checked.exact, *checked.near)
    rows = class_counts(checked)
    classes = len([row for row in rows if row.name is not None])
    facts = [
        (found.count, "image", ""),
        (found.count - held_out, "train", ""),
        (held_out, "held out", ""),
        (classes, "class" if classes == 1 else "classes", ""),
        (len(found.corrupt), "corrupt", "bad"),
        (len(checked.contents.unread), "not read", "warn"),
        (sum(len(copies.images) for copies in checked.exact), "exact duplicates", "warn"),
        (sum(len(copies.images) for copies in checked.near), "near duplicates", "warn"),
        (sum(copies.leaks for copies in groups), "groups in both splits", "bad"),
    ]
    told = "".join(
        f"<li><b{f' class={mood}' if mood else ''}>{number:,}</b>"
        f" {what}{'s' if what == 'image' and number != 1 else ''}"
        for number, what, mood in facts
        if number or what == "image"
    )
    return f"""<header><p class=above>Data set · {_breakable(source)}</p>
<h1 class={tone}>{verdict}</h1><ul>{told}</ul></header>"""


def _leakage(checked: Checked) -> str:
    leaks = [copies for copies in (*checked.exact, *checked.near) if copies.leaks]
    if not leaks:
        return ""
    held_out = sum(image.held_out for copies in leaks for image in copies.images)
    return _section(
        "Leakage between the splits",
        "",
        f"<p><b class=bad>{held_out:,}</b> held-out images have duplicates among the training"
        " images. Scores on held-out images will be too good. Remove the copies; the groups are"
        " below, first among the duplicates.</p>",
    )


def _training(checked: Checked) -> str:
    outlook = checked.outlook
    inner = "".join(f"<li>{_breakable(refusal)}" for refusal in outlook.refusals)
    inner = f"<ol class=refusals>{inner}</ol>" if inner else ""
    if outlook.line is not None:
        before = "Once that is mended, it would read:" if outlook.refusals else "It would read:"
        told = "".join(f"<li>{_breakable(remark)}" for remark in outlook.remarks)
        inner += f"<p>{before}<br><b>{_escaped(outlook.line)}</b></p><ul class=told>{told}</ul>"
    return _section("What training would do", "Under the given settings.", inner)


def _faults(checked: Checked) -> str:
    contents = checked.contents
    tables = "".join(
        _table_of_faults(title, faults, contents.brief)
        for title, faults in (
            ("Corrupt images", checked.found.corrupt),
            ("Images that cannot be read", checked.found.refused),
            ("Images of formats that are not read", contents.unread),
        )
    )
    if contents.others:
        shown = "".join(
            f"<tr><td>{_escaped(suffix)}<td>{named.count:,}"
            f"<td>{_breakable(', '.join(map(contents.brief, named.names[:3])))}"
            for suffix, named in contents.others.items()
        )
        heads = ("suffix", "files", "first names")
        tables += f"<h3>Other files, not read</h3>{_table(heads, shown)}"
    for title, named in (
        ("Files of several images", checked.found.animated),
        ("Files with the name of another format", checked.found.misnamed),
        ("Images of one colour", checked.found.blank),
    ):
        if named.count:
            names = "".join(f"<li>{_breakable(contents.brief(name))}" for name in named.names)
            more = named.count - len(named.names)
            names += f"<li>and {more:,} more" if more else ""
            tables += f"<h3>{title}: {named.count:,}</h3><ul class=names>{names}</ul>"
    return _section("Faults, and files that are not read", "", tables)


def _table_of_faults(title: str, faults: Sequence[Fault], brief: Callable[[str], str]) -> str:
    if not faults:
        return ""
    rows = "".join(
        f"<tr><td>{_breakable(brief(fault.name))}<td>{_breakable(fault.reason)}"
        for fault in faults[:_MOST_ROWS]
    )
    more = len(faults) - _MOST_ROWS
    rows += f"<tr><td>and {more:,} more<td>" if more > 0 else ""
    return f"<h3>{title}: {len(faults):,}</h3>{_table(('file', 'reason'), rows)}"


def _table(heads: Iterable[str], rows: str) -> str:
    top = "".join(f"<th>{head}" for head in heads)
    return f"<div class=wide><table><thead><tr>{top}<tbody>{rows}</table></div>"


def _classes(checked: Checked) -> str:
    rows = class_counts(checked)
    if not rows or rows[0].name is None:
        return ""
    most = max(row.train + row.held_out for row in rows) or 1
    shown = ""
    for row in rows[:200]:
        name = "without a class" if row.name is None else row.name
        bar = "".join(
            f"<i class={part} style='width:{70 * count / most:.2f}%'></i>"
            for part, count in (("train", row.train), ("held", row.held_out))
            if count
        )
        shown += f"<dt>{_breakable(name)}<dd>{bar}{row.train:,} + {row.held_out:,}"
    if len(rows) > 200:
        shown += f"<dt>and {len(rows) - 200:,} more<dd>"
    note = "<i class='key train'></i> train <i class='key held'></i> held out"
    return _section("Classes", note, f"<dl class=bars>{shown}</dl>")


def _what(checked: Checked) -> str:
    found = checked.found
    columns = (
        ("format", dict(found.formats.most_common())),
        ("kind", kinds_of(found)),
        ("aspect ratio (width to height)", {k: n for k, n in ratios_of(found).items() if n}),
    )
    inner = "".join(_counted(title, counts) for title, counts in columns if counts)
    return _section("What the images are", "", f"<div class=three>{inner}</div>" if inner else "")


def _counted(title: str, counts: Mapping[str, int]) -> str:
    most = max(counts.values())
    rows = "".join(
        f"<dt>{_escaped(name)}"
        f"<dd><i class=train style='width:{60 * count / most:.2f}%'></i>{count:,}"
        for name, count in counts.items()
    )
    return f"<div><h3>By {title}</h3><dl class=bars>{rows}</dl></div>"


def _sizes(checked: Checked) -> str:
    found = checked.found
    if not found.count:
        return ""
    sizes = sizes_of(found)
    if sizes.distinct == 1:
        height, width, _ = sizes.common[0]
        return _section("Sizes", "", f"<p>All images are {height:,} × {width:,} pixels.</p>")
    charts = "".join(
        _figure(_histogram_of_sizes(values), f"{name}: {_spread_in_words(values)}")
        for name, values in (("height", sizes.heights), ("width", sizes.widths))
    )
    rows = "".join(f"<tr><td>{h:,} × {w:,}<td>{n:,}" for h, w, n in sizes.common[:10])
    more = sizes.distinct - 10
    rows += f"<tr><td>and {more:,} more sizes<td>" if more > 0 else ""
    table = _table(("height × width", "images"), rows)
    return _section(
        "Sizes", "Height × width, in pixels.", f"<div class=three>{charts}{table}</div>"
    )


def _spread_in_words(values: NDArray[np.int64]) -> str:
    least, most = int(values.min()), int(values.max())
    if least == most:
        return f"all {least:,}"
    return f"{least:,} to {most:,}, median {np.median(values):,.0f}"


def _histogram_of_sizes(values: NDArray[np.int64]) -> str:
    low, high = float(values.min()), float(values.max())
    low, high = (low - 1, high + 1) if low == high else (low, high)
    logarithmic = low > 0 and high / low > 8
    edges = np.geomspace(low, high, 33) if logarithmic else np.linspace(low, high, 33)
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    ends = (f"{edges[0]:,.0f}", f"{edges[-1]:,.0f}" + (" (log)" if logarithmic else ""))
    return _bars([counts.astype(float)], ("ink",), ends)


def _values(checked: Checked) -> str:
    found = checked.found
    inner = ""
    mean = _mean_image(checked)
    if mean is not None:
        height, width, _ = mean[1]
        ratio = f"style='aspect-ratio:{width}/{height}'"
        inner += f"<figure><img class=mean {ratio} alt='' src='{_data_uri(mean[0])}'>"
        inner += "<figcaption>the mean of all images</figcaption></figure>"
    for row in levels_of(found):
        channels = int(row["channels"])
        counts = np.asarray(row["histogram"], float).reshape(channels, _BINS, -1).sum(2)
        colours = _COLOURS.get(channels, ("ink",) * channels)
        top = "255" if row["type"] == "uint8" else "65,535"
        names = [str(k + 1) for k in range(channels)]
        names = [""] if channels == 1 else colours if channels == 3 else names
        told = "; ".join(
            f"{name} {mean:.4g} ± {std:.4g}".strip()
            for name, mean, std in zip(names, row["mean"], row["std"], strict=True)
        )
        kind = "" if row["type"] == "uint8" else " of 16 bits"
        label = f"{channels} channel{'s' if channels > 1 else ''}{kind}: {told}"
        inner += _figure(_bars(list(counts), colours, ("0", top)), label)
    if found.seen.types:
        types = ", ".join(sorted(found.seen.types))
        inner += (
            f"<p>Deep images ({_escaped(types)}) hold values from {found.seen.low:,.6g} to"
            f" {found.seen.high:,.6g}.</p>"
        )
    note = "Mean ± standard deviation. The end bins are often high; bars show the square root."
    return _section("Values", note, f"<div class=three>{inner}</div>" if inner else "")


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_escaped(caption)}</figcaption></figure>"


def _bars(series: Sequence[NDArray[Any]], colours: Sequence[str], ends: tuple[str, str]) -> str:
    """A histogram as SVG, each series over the others; heights are square roots of counts."""
    most = max((float(counts.max()) for counts in series), default=0.0) or 1.0
    paths = ""
    for counts, colour in zip(series, colours, strict=True):
        step = 320 / len(counts)
        points = "".join(
            f"V{100 - 92 * math.sqrt(count / most):.1f}H{(k + 1) * step:.1f}"
            for k, count in enumerate(counts.tolist())
        )
        paths += f"<path class={colour} d='M0 100{points}V100Z'/>"
    left, right = (_escaped(end) for end in ends)
    return f"""<svg viewBox='0 0 320 118' role=img>{paths}
<path class=axis d='M0 100H320'/><text x=0 y=114>{left}</text>
<text x=320 y=114 text-anchor=end>{right}</text></svg>"""


def _mean_image(checked: Checked) -> tuple[NDArray[np.uint8], tuple[int, int, int]] | None:
    """The mean of all images, uint8 (H, W, 1 or 3), and the shape that training gives them."""
    found, outlook = checked.found, checked.outlook
    if outlook.shape_HWC is None or not found.sums:
        return None
    low, high = outlook.wanted.value_range or (0.0, 255.0)
    colours = max(channels for channels, _ in found.sums)
    total: Any = 0.0
    count = 0
    for (channels, deep), part in sorted(found.sums.items()):
        if channels not in (1, colours):
            continue
        values = np.asarray(part.values_HWC, np.float64)
        if deep:
            values = (values - low * part.count) / (high - low) * 255
        total = total + np.broadcast_to(values, (*values.shape[:2], colours))
        count += part.count
    return _visible(np.rint(total / count).clip(0, 255).astype(np.uint8)), outlook.shape_HWC


def _sheet(checked: Checked) -> str:
    found = checked.found
    if not found.sheet:
        return ""
    names = checked.class_names
    few = len(found.sheet) <= _FEW_CLASSES
    inner = ""
    for label, shown in sorted(found.sheet.items(), key=lambda one: (one[0] < 0, one[0])):
        kept = shown if few or label < 0 else shown[: len(shown) // 2 or 1]
        pictures = "".join(_picture(one, checked) for one in kept)
        title = names[label] if 0 <= label < len(names) else "without a class"
        head = f"<h3>{_breakable(title)}</h3>" if len(found.sheet) > 1 or label >= 0 else ""
        inner += f"{head}<div class=sheet>{pictures}</div>"
    note = "Chosen by a hash of their names; cut as training cuts them."
    if len(names) > SHEET_CLASSES:
        note += f" The first {SHEET_CLASSES} of {len(names):,} classes."
    return _section("Contact sheet", note, inner)


def _picture(one: Shown, checked: Checked) -> str:
    values = one.values_HWC
    if one.deep:
        values = as_bytes(values, *(checked.outlook.wanted.value_range or (0.0, 255.0)))
    uri = _data_uri(_visible(values))
    return f"<img alt='' style='aspect-ratio:{one.ratio:.4f}' src='{uri}'>"


def _visible(values_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As grey or RGB: two channels are red and green, of more the first three are shown."""
    if values_HWC.shape[2] == 2:
        return np.concatenate([values_HWC, np.zeros_like(values_HWC[..., :1])], axis=2)
    return values_HWC[..., :3]


def _duplicates(checked: Checked) -> str:
    pictures = checked.pictures()
    inner = "".join(
        _groups(title, groups, pictures, checked)
        for title, groups in (
            ("Exact duplicates", checked.exact),
            ("Near duplicates", checked.near),
        )
    )
    note = (
        "Exact: the decoded pixels are equal. Near: copies in another size, file format or quality;"
        " look at them before you remove any."
    )
    if checked.plain:
        note += f" {checked.plain:,} images without contrast were not compared."
    if not checked.all_compared:
        note += " Too many images are alike to compare all: there may be more."
    return _section("Duplicates", note, inner)


def _groups(
    title: str,
    groups: Sequence[Copies],
    pictures: Mapping[int, NDArray[np.uint8]],
    checked: Checked,
) -> str:
    if not groups:
        return ""
    images = sum(len(copies.images) for copies in groups)
    number = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
    cards = "".join(_card(copies, pictures, checked) for copies in groups[:SHOWN_GROUPS])
    more = len(groups) - SHOWN_GROUPS
    rest = f"<p class=note>and {more:,} more groups: see the JSON</p>" if more > 0 else ""
    return f"<h3>{title}: {images:,} images in {number}</h3><div class=groups>{cards}</div>{rest}"


def _card(copies: Copies, pictures: Mapping[int, NDArray[np.uint8]], checked: Checked) -> str:
    figures = ""
    for image in copies.telling():
        small = pictures.get(image.position)
        picture = "" if small is None else f"<img alt='' src='{_data_uri(_visible(small))}'>"
        split = "held out" if image.held_out else "train"
        figures += (
            f"<figure>{picture}<figcaption><b class={'held' if image.held_out else 'quiet'}>"
            f"{split}</b> {_breakable(checked.contents.brief(image.name))}</figcaption></figure>"
        )
    more = len(copies.images) - SHOWN_OF_GROUP
    figures += f"<p class=note>and {more:,} more</p>" if more > 0 else ""
    leak = "<p class=bad>in both splits</p>" if copies.leaks else ""
    return f"<div class='card{' leak' if copies.leaks else ''}'>{leak}<div>{figures}</div></div>"


def _data_uri(values_HWC: NDArray[np.uint8]) -> str:
    """A picture as PNG, or as JPEG if that is much smaller."""
    from PIL import Image

    values = values_HWC[..., 0] if values_HWC.shape[2] == 1 else values_HWC
    image = Image.fromarray(np.ascontiguousarray(values))
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    image.save(jpeg, "JPEG", quality=85)
    kind, file = ("png", png) if png.tell() <= 2 * jpeg.tell() else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


_STYLE = """
:root { --ink: #22303c; --quiet: #6b7a88; --lines: #e3e8ec; --back: #f6f7f8; --card: #fff;
  --train: #2f6ea8; --held: #e8590c; --bad: #b42318; --warn: #b25e09; --good: #1a7f4b;
  --red: #d6453d; --green: #2c9a52; --blue: #3b6fd4 }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe7ee; --quiet: #93a3b1; --lines: #33404c;
  --back: #12181e; --card: #1b232b; --train: #6aa5dc; --held: #ff9650; --bad: #ff8a7d;
  --warn: #f2b05e; --good: #5fd197; --red: #ff7b72; --green: #58c97b; --blue: #79a6ff } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 80px }
h1 { font-size: 34px; line-height: 1.2; font-weight: 600; margin: 0 0 12px;
  overflow-wrap: anywhere }
h2 { font-size: 17px; font-weight: 600; margin: 0 0 8px }
h3 { font-size: 14px; font-weight: 600; margin: 18px 0 6px; overflow-wrap: anywhere }
h2 + h3, h2 + div h3, .note + h3, .three h3 { margin-top: 0 }
p { margin: 0 0 10px; overflow-wrap: anywhere }
section > :last-child { margin-bottom: 0 }
.above, .note, figcaption { color: var(--quiet); font-size: 13px }
.bad { color: var(--bad) } .warn { color: var(--warn) } .good { color: var(--good) }
header ul { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 0; padding: 0 }
header li { color: var(--quiet); list-style: none }
b { font-weight: 600 }
header b:not([class]) { color: var(--ink) }
section { margin-top: 20px; padding: 20px 24px; min-width: 0; background: var(--card);
  border: 1px solid var(--lines); border-radius: 10px }
ol, ul { margin: 0 0 12px; padding-left: 22px }
li { overflow-wrap: anywhere; margin: 3px 0 }
.refusals li::marker { color: var(--bad); font-weight: 600 }
.told li, .names li { color: var(--quiet) }
.names { font-size: 13px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; width: 100% }
th, td { text-align: left; padding: 5px 12px 5px 0; font-variant-numeric: tabular-nums;
  vertical-align: top; overflow-wrap: anywhere }
th { color: var(--quiet); font-weight: 500; white-space: nowrap }
td { border-top: 1px solid var(--lines) }
td:first-child { min-width: 140px }
dl { display: grid; grid-template-columns: fit-content(45%) minmax(90px, 1fr); gap: 4px 16px;
  margin: 0; font-size: 13px }
dt, dd { margin: 0; overflow-wrap: anywhere }
dd { white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--quiet) }
.bars i { display: inline-block; height: 11px; min-width: 2px; vertical-align: -1px }
.bars i:last-of-type { margin-right: 8px; border-radius: 0 2px 2px 0 }
i.train { background: var(--train) } i.held { background: var(--held) }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; vertical-align: -1px;
  margin-left: 6px }
.key:first-child { margin-left: 0 }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr));
  gap: 16px 32px; align-items: start }
figure { margin: 0; min-width: 0 }
svg { display: block; width: 100%; max-width: 400px; height: auto; overflow: visible }
svg text { fill: var(--quiet); font: 11px system-ui, sans-serif }
.axis { stroke: var(--lines); fill: none }
path.ink { fill: var(--train) } path.grey { fill: var(--quiet) }
path.red { fill: var(--red) } path.green { fill: var(--green) } path.blue { fill: var(--blue) }
path.red, path.green, path.blue { opacity: .5 }
.mean { width: 192px; max-width: 100%; border-radius: 4px; display: block; margin-bottom: 4px }
.sheet { display: flex; flex-wrap: wrap; gap: 4px }
.sheet img { height: 64px; max-width: 100%; border-radius: 3px; background: var(--lines) }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr));
  gap: 12px; align-items: start }
.card { border: 1px solid var(--lines); border-radius: 8px; padding: 10px }
.card > div { display: grid; grid-template-columns: 1fr 1fr; gap: 10px }
.card img { height: 96px; max-width: 100%; object-fit: contain; border-radius: 3px;
  image-rendering: auto; display: block; margin-bottom: 4px; background: var(--lines) }
.card figcaption { font-size: 11px; line-height: 1.35; overflow-wrap: anywhere }
.card p { margin: 0 0 6px; font-size: 12px }
.leak { border-color: var(--bad) }
b.held { color: var(--held) } b.quiet { color: var(--quiet) }
@media (max-width: 600px) { main { padding: 24px 12px 48px } section { padding: 16px 14px }
  h1 { font-size: 25px } .sheet img { height: 48px } dl { grid-template-columns: 1fr }
  dd { margin-bottom: 6px } }
"""
