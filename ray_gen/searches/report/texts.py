"""Numbers and values as text, for HTML and for plotly."""

from __future__ import annotations

import html
import json
import re
from typing import Any


def number_of(score: float | None) -> str:
    """A score with five digits; empty for None."""
    return "" if score is None else f"{score:.5g}"


def time_of(seconds: float) -> str:
    """A duration in at most two units."""
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


def escaped(line: str) -> str:
    """Escape text for the page, also for attributes in quotes."""
    return html.escape(line)


def breakable(path: str) -> str:
    """Escape text for the page and allow line breaks after a dot or an underscore."""
    return re.sub(r"([._])", r"\1<wbr>", escaped(path))


def escaped_for_plotly(line: str) -> str:
    """Escape text for plotly. plotly reads tags but does not know &quot;."""
    return html.escape(line, quote=False)
