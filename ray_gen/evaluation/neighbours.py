"""The check of metrics that look at nearest neighbours."""

from __future__ import annotations

from ray_gen.errors import Refused


def check_neighbours(field: str, neighbours: int, images: int) -> None:
    """Raises Refused unless an image has so many neighbours in the smaller of two sets."""
    if not 1 <= neighbours < images:
        raise Refused(
            f"{field}: {neighbours} is not between 1 and {images - 1}, the neighbours that an "
            f"image has among {images}"
        )
