"""`data check --cluster`: tasks of a real Ray find what one process finds."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ray_gen.cli import main
from tests.data.faults import encoded, smooth

pytestmark = pytest.mark.ray


def test_a_cluster_finds_what_one_process_finds(cluster: Path, tmp_path: Path) -> None:
    for shard, split in enumerate(("train", "train", "validation")):
        files = [encoded(smooth(32, 100 * shard + k), "PNG") for k in range(50)]
        files[shard] = b"broken"
        files[10] = encoded(smooth(32, 10), "PNG")  # in all shards
        table = pa.table({"image": files, "label": [k % 5 for k in range(50)]})
        pq.write_table(table, tmp_path / f"{split}-{shard}.parquet", row_group_size=12)
    told = []
    for place in (f"parquet:file://{tmp_path}", f"parquet:{tmp_path}"):
        for options in ([], ["--cluster"]):
            done = CliRunner().invoke(
                main, ["data", "check", place, "data.on_corrupt=skip", "--json", "-", *options]
            )
            assert done.exit_code == 0, done.output
            told.append(json.loads(done.stdout))
    assert told[0] == told[1] and told[2] == told[3]
    assert told[0]["images"]["read"] == 147 and told[0]["duplicates"]["leaking_groups"] == 1
    refused = CliRunner().invoke(main, ["data", "check", "mnist5k", "--cluster"])
    assert refused.exit_code == 0  # the digits in the package are Parquet, too
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "0.png").write_bytes(encoded(smooth(32, 0), "PNG"))
    refused = CliRunner().invoke(main, ["data", "check", str(folder), "--cluster"])
    assert refused.exit_code == 2 and "--cluster: reads the row groups of Parquet" in refused.stderr
