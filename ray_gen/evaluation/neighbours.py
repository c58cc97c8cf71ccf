"""The check that metrics with nearest neighbours share."""

from __future__ import annotations

from ray_gen.errors import Refused


def check_neighbours(field: str, neighbours: int, images: int) -> None:
    """Raises Refused if an image in a set of `images` has fewer than `neighbours` neighbours."""
    if not 1 <= neighbours < images:
        raise Refused(
            f"{field}: {neighbours} is not between 1 and {images - 1}; an image in a set of "
            f"{images} has {images - 1} neighbours"
        )
