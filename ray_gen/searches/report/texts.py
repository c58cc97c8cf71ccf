"""Numbers and values in words, for HTML and for plotly."""

from __future__ import annotations

import html
import json
import re
from typing import Any


def number_of(score: float | None) -> str:
    """Five digits; nothing for None."""
    return "" if score is None else f"{score:.5g}"


def time_of(seconds: float) -> str:
    """A duration, to two units at most."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def shown(value: Any, width: int = 60) -> str:
    """A value as one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    line = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def text(line: str) -> str:
    """For the page, attributes in quotes included."""
    return html.escape(line)


def breakable(path: str) -> str:
    """For the page, where it may break after a dot or an underscore."""
    return re.sub(r"([._])", r"\1<wbr>", text(path))


def plain(line: str) -> str:
    """For plotly, which reads tags but knows no &quot;."""
    return html.escape(line, quote=False)
