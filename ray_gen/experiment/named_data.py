"""Data by the name that a command gets: a path, a URI or a short form."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_gen.errors import Refused
from ray_gen.experiment.data import Data, DataSettings, is_short_form, kind_of_place
from ray_gen.experiment.refusals import problems_of
from ray_gen.settings import absolute_path
from ray_gen.storage import without_credentials


@contextmanager
def named_by(option: str) -> Generator[None]:
    """In errors about a source, replaces its fields by the option that named the source."""
    try:
        yield
    except Refused as refused:
        told = re.sub(r"\bdata\.(path|dataset)\b", option, str(refused))
        told = re.sub(r"\bset data\.kind=(\w+)", r"write \1:PATH", told)
        raise Refused(told) from refused


def named_data(
    text: str, option: str, decoding: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> Data:
    """The data settings for a path, a URI or a short form, e.g. "torchvision:CIFAR10".

    decoding: fields image_size, channels and on_corrupt that the user has set. own: fields of a
    run's data, whose images these are compared with. Raises Refused.
    """
    short = text if is_short_form(text) else f"{kind_of_place(text) or 'folder'}:{text}"
    without_credentials(short.partition(":")[2])  # before a message could show them
    adapter: TypeAdapter[Data] = TypeAdapter(Data)
    try:
        data = adapter.validate_python(short)
    except ValidationError as error:
        problem = problems_of(error, DataSettings, short)[0]
        raise Refused(f"{option}: {text}: {problem}") from error
    changes: dict[str, Any] = {}
    if hasattr(data, "path"):
        changes["path"] = absolute_path(getattr(data, "path"))  # noqa: B009
    if text != "mnist5k" and not text.startswith("torchvision:"):
        changes["held_out_fraction"] = 0.0  # use all pictures of the folder
    given = {**data.model_dump(), **changes, **(own or {}), **decoding}
    try:
        found = type(data).model_validate(given)
    except ValidationError as error:
        problems = problems_of(error, type(data), given)
        if own:
            why = problems[0].partition("; ")[0]
            raise Refused(
                f"{option}: {text} cannot be read as the run reads its own images: {why}; give"
                " them in the form in which the run has its own, such as a folder"
            ) from None
        raise Refused("\n".join(f"data.{problem}" for problem in problems)) from None
    return found  # pyright: ignore[reportReturnType]
