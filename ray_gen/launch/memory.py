"""Too little memory: halves the micro-batch of a GPU."""

from __future__ import annotations

from ray_gen.errors import Failed, GpuMemoryError
from ray_gen.experiment import Experiment


def with_half_the_images(
    experiment: Experiment, error: GpuMemoryError, workers: int = 1
) -> tuple[Experiment, str]:
    """A copy of a resolved experiment that needs less memory of a GPU and gives the same result,
    and what was changed, in a sentence. Raises Failed if there is none.

    workers: the number of workers that ran out of memory.
    """
    size = experiment.group_size
    groups = -(-experiment.training.global_batch_size // size // workers)  # of a worker, at most
    micro = experiment.training.micro_batch_size
    together = groups if micro is None else min(groups, micro // size)
    if together == 1:
        raise Failed(
            f"{error}, even with one group of {size} images at a time; use smaller networks or "
            "images, data.placement=host, another training.group_size, or a larger GPU"
        ) from error
    half = -(-together // 2) * size
    return experiment.with_fields(training__micro_batch_size=half), (
        f"{error} with {together * size} images at a time; going on from the last checkpoint with "
        f"training.micro_batch_size={half}, which does not change the result"
    )
