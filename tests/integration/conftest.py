"""One Ray for all tests that need a real one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import S3

CORES = 4
"""CPU cores that this Ray believes to have."""


@pytest.fixture(scope="package")
def cluster(s3_server: S3) -> Iterator[Path]:
    """The folder of the files of Ray itself. Ray finds the S3 server by its environment."""
    import ray

    import ray_gen.launch  # noqa: F401  (its settings come before Ray starts)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    folder = Path(os.environ["RAY_TMPDIR"])
    # As `ray start` does. Processes of Ray Train look here for their own Ray. If they find another
    # one, they miss the controller there and take its workers away.
    address = ray.get_runtime_context().gcs_address
    (folder / "ray" / "ray_current_cluster").write_text(address)
    yield folder
    ray.shutdown()


@pytest.fixture
def apart() -> Iterator[dict[str, str]]:
    """The environment of a command that is to start a Ray of its own."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield {**os.environ, "RAY_TMPDIR": folder}
