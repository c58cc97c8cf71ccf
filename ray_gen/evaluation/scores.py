"""Scores: values, each with the protocol that it was measured by. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["lower", "higher"] | None
"""Which of two values is the better one. None: neither extreme is."""


@dataclass(frozen=True)
class Score:
    """A value and the protocol that it was measured by. Without a protocol it compares with
    nothing."""

    name: str
    value: float
    spread: float | None
    """Standard deviation over subsets or splits, or standard error, as the protocol says. None:
    the metric has none."""
    protocol: Mapping[str, Any]
    """JSON-like."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation found: `scores["fid"].value`."""

    scores: tuple[Score, ...]
    without: tuple[str, ...] = ()
    """Metrics that were left out and why, where nobody named the metrics."""

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(f"{name}; there are {', '.join(score.name for score in self.scores)}")

    def as_json(self) -> dict[str, Any]:
        """All of it, JSON-like."""
        found = [
            {"name": s.name, "value": s.value, "spread": s.spread, "protocol": dict(s.protocol)}
            for s in self.scores
        ]
        return {"scores": found, "without": list(self.without)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Scores:
        """The scores that `as_json` gave."""
        return cls(tuple(Score(**score) for score in given["scores"]), tuple(given["without"]))

    def as_metrics(self) -> dict[str, float]:
        """Values by the tags that a report has for them."""
        metrics: dict[str, float] = {}
        for score in self.scores:
            metrics[f"evaluation/{score.name}"] = score.value
            if score.spread is not None:
                metrics[f"evaluation/{score.name}_spread"] = score.spread
        return metrics


def score_in(
    report: Mapping[str, float], name: str, otherwise: float | None = None
) -> float | None:
    """The score of this name in the metrics of a report: the objective's own held-out score, else
    an evaluation's."""
    return report.get(f"held_out/{name}", report.get(f"evaluation/{name}", otherwise))
