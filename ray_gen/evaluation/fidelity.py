"""torch-fidelity, imported only where a metric or its Inception network is asked for.

It imports torchvision, which takes 7 to 9 s.
"""

from __future__ import annotations

import importlib
from typing import Any

from ray_gen.errors import Refused


def torch_fidelity(module: str, name: str) -> Any:
    """What a module of torch-fidelity calls so."""
    try:
        return getattr(importlib.import_module(f"torch_fidelity.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise Refused(
            f"evaluation.metrics: torch-fidelity 0.4 cannot be used ({error}); pip install "
            "'torch-fidelity>=0.4', or leave out what is computed by it"
        ) from error
