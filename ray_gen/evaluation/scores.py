"""Scores: values with their protocols. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["lower", "higher"] | None
"""Which of two values is better. None: neither a low nor a high value is good in itself."""


SHOWN = 6
"""Most scores that the repr of `Scores` names."""


@dataclass(frozen=True)
class Score:
    """A value and its protocol: how it was measured. Only values with equal protocols are
    comparable."""

    name: str
    value: float
    spread: float | None
    """Standard deviation over subsets or splits, or standard error of a mean over images. None: the
    metric has no spread."""
    protocol: Mapping[str, Any]
    """Counts, split, weights, seed, unit, ... Values that JSON can hold."""


@dataclass(frozen=True)
class Scores:
    """The scores of one evaluation, by name: `scores["fid"].value`. Raises KeyError for others."""

    scores: tuple[Score, ...]
    without: tuple[str, ...] = ()
    """Sentences: metrics that were left out, and why. Empty if the user named the metrics."""

    def __repr__(self) -> str:
        shown = [f"{score.name} {score.value:.4g}" for score in self.scores[:SHOWN]]
        return f"Scores({', '.join([*shown, *(['…'] if len(self) > SHOWN else [])])})"

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
        """All scores as values that JSON can hold."""
        found = [
            {"name": s.name, "value": s.value, "spread": s.spread, "protocol": dict(s.protocol)}
            for s in self.scores
        ]
        return {"scores": found, "without": list(self.without)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Scores:
        """The scores from the result of `as_json`."""
        return cls(tuple(Score(**score) for score in given["scores"]), tuple(given["without"]))

    def as_metrics(self) -> dict[str, float]:
        """Values and spreads by tag, as a report holds them: "evaluation/fid"."""
        metrics: dict[str, float] = {}
        for score in self.scores:
            metrics[f"evaluation/{score.name}"] = score.value
            if score.spread is not None:
                metrics[f"evaluation/{score.name}_spread"] = score.spread
        return metrics


def score_in(
    report: Mapping[str, float], name: str, otherwise: float | None = None
) -> float | None:
    """The score `name` in the metrics of a report: the objective's own held-out score, else the
    evaluation's, else `otherwise`."""
    return report.get(f"held_out/{name}", report.get(f"evaluation/{name}", otherwise))
