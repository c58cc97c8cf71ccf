"""Import of torch-fidelity, only when a metric or the Inception network needs it.

torch-fidelity imports torchvision, and that takes 7 to 9 s.
"""

from __future__ import annotations

import importlib
from typing import Any

from ray_gen.errors import Refused


def torch_fidelity(module: str, name: str) -> Any:
    """The object `name` of a module of torch-fidelity. Raises Refused if it cannot be imported."""
    try:
        return getattr(importlib.import_module(f"torch_fidelity.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise Refused(
            f"evaluation.metrics: torch-fidelity 0.4 cannot be used ({error}); pip install "
            "'torch-fidelity>=0.4', or leave out the metrics and features that need it"
        ) from error
