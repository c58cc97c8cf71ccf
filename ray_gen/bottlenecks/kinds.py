"""A bottleneck by its name in the settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ray_gen.bottlenecks.codebook import Codebook
from ray_gen.bottlenecks.fsq import Fsq
from ray_gen.bottlenecks.lfq import Lfq


def quantiser_of(
    *, kind: str, channels: int, positions: Sequence[int], **options: Any
) -> Codebook | Fsq | Lfq:
    """A discrete bottleneck, a `Quantiser`. kind: "vq", "fsq" or "lfq". channels: of encodings and
    codes; fsq and lfq know them by their options. positions: (h, w) of a map of encodings."""
    if kind == "vq":
        return Codebook(options.pop("codes"), channels, positions, **options)
    return Fsq(**options) if kind == "fsq" else Lfq(**options)


def code_count_of(*, kind: str, **options: Any) -> int:
    """`Quantiser.code_count` of `quantiser_of`, which is not made: a codebook may be large."""
    if kind == "vq":
        return options["codes"]
    return math.prod(options["levels"]) if kind == "fsq" else 1 << options["bits"]
