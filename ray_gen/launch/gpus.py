"""Whether torch sees the GPUs that a machine gives to a process, and why not."""

from __future__ import annotations

import os

import torch


def missing(count: int) -> str | None:
    """Why torch does not see `count` GPUs in this process, in words. None if it sees them."""
    built = f"torch {torch.__version__} "
    if torch.version.hip is not None:
        built += f"is built for ROCm {torch.version.hip}"
    elif torch.version.cuda is not None:
        built += f"is built for CUDA {torch.version.cuda}"
    else:
        return f"{built}is built without CUDA"
    try:
        torch.cuda.init()
        seen = torch.cuda.device_count()
        torch.ones(1, device="cuda").item()  # a driver or GPU that is too old fails here
    except (RuntimeError, AssertionError) as error:  # the driver's own words
        told = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
        return f"{built}, and the driver says: {told}"
    if seen < count and not _has_parts():
        return f"{built}, and sees only {seen} of {count} GPUs"
    return None


def _has_parts() -> bool:
    """Whether this process is given parts of a GPU (MIG). A process sees only one of them."""
    return "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", "")
