"""`training.start_from`: the trained model that a run begins with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from ray_gen.settings import Digest, Location, Settings


class Start(Settings):
    """A trained model whose tensors a new run begins with. A tensor is taken if its name and shape
    are those of the new network; a table of labels, row by row, by the names of classes."""

    source: Location
    """A run (its name, path or URI), a checkpoint in it (NAME/best), or an exported folder. No code
    of it runs, so its own classes need not be there."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights are taken. ema: the averages over training, for the networks that have them,
    and the last weights for the others. raw: the last weights for all."""
    networks: tuple[str, ...] | Literal["auto"] = "auto"
    """The networks that begin with tensors of the source. All others begin anew. auto: all; then
    the run is refused if nothing fits one of them."""
    digest: Digest | None = None
    """SHA-256 of the source's tensors and names of classes. The run fills it in. If it is given,
    the run is refused if the source has changed."""


def of_source(given: Any) -> Any:
    """`RUN` alone as {source: RUN}."""
    return {"source": given} if isinstance(given, str) else given


StartFrom = Annotated[
    Start | None, BeforeValidator(of_source, json_schema_input_type=Start | str | None)
]
