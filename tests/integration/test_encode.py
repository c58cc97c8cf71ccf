"""`encode` on Ray tasks: the same files as one process writes."""

from __future__ import annotations

from pathlib import Path

from ray_gen.launch.encode import encode
from tests.data.pictures import write_classes
from tests.helpers import random_store
from tests.proofs import latent_autoencoder
from tests.runs import SHORT, saved


def test_tasks_write_what_one_process_writes(cluster: object, tmp_path: Path) -> None:
    saved(latent_autoencoder.experiment(SHORT), random_store(8), tmp_path / "run")
    pictures = str(write_classes(tmp_path / "pictures", {"cat": 20, "dog": 30}))
    for name, local in (("one", True), ("ray", False)):
        encode(tmp_path / "run", str(tmp_path / name), pictures, local=local, shard_images=20)
    files = sorted(file.name for file in (tmp_path / "one").glob("*.parquet"))
    assert len(files) >= 3
    for name in (*files, "_manifest.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
