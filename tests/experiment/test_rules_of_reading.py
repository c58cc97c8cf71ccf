"""`data.rules`: the first version knows fewer settings, and refuses those that it would ignore."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ray_gen.experiment.data import Data

IGNORED: tuple[dict[str, Any], ...] = (
    {"channels": 4},
    {"channels": "auto"},
    {"bits": 16},
    {"fit": "pad"},
    {"pad": "edge"},
    {"value_range": "full"},
    {"jpeg_scaling": True},
    {"splits": "none"},
    {"frames": "all"},
    {"labels": "none"},
    {"label_column": "label"},
    {"kind": "zip", "path": "x.zip"},
)


def read(**fields: Any) -> Any:
    return TypeAdapter(Data).validate_python({"kind": "folder", "path": "x", **fields})


@pytest.mark.parametrize("ignored", IGNORED, ids=str)
def test_what_the_first_rules_would_ignore_is_refused(ignored: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"rules.*set data\.rules=2"):
        read(rules=1, **ignored)
    assert read(rules=2, **ignored).rules == 2


@pytest.mark.parametrize("known", [{}, {"channels": 3}, {"image_size": 8}, {"center_crop": 8}])
def test_what_the_first_rules_know_is_read(known: dict[str, Any]) -> None:
    assert read(rules=1, **known).rules == 1
    assert read(digest="0" * 32, **known).rules == 1
