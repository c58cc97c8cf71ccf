"""The names of `ray_gen.evaluation.extractors`, for extractors that were written for 0.1."""

from ray_gen.evaluation.extractors import Extractor, Features

__all__ = ["Extractor", "Features"]
