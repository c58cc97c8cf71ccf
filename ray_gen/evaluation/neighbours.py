"""The check that metrics with nearest neighbours share."""

from __future__ import annotations

from ray_gen.evaluation.metric import Lacking


def check_neighbours(field: str, neighbours: int, images: int) -> None:
    """Raises Lacking if an image in a set of `images` has fewer than `neighbours` neighbours."""
    if not 1 <= neighbours < images:
        why = f"an image in a set of {images} has {images - 1} neighbours, fewer than {neighbours}"
        raise Lacking(
            f"{field}: {neighbours} is not between 1 and {images - 1}: {why}; set fewer, compare "
            "more images, or leave the metric out",
            why,
        )
