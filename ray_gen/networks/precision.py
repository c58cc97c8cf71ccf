"""Parts of a network in 16 bits, where the network says which."""

from __future__ import annotations

from ray_gen.precision import autocast_type, without_autocast

__all__ = ["autocast_type", "without_autocast"]
