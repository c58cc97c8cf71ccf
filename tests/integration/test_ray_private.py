"""A run ends well although ray_gen finds none of Ray's private names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_gen.launch import ray_private

# Python runs a file of this name on the path when it starts: in the driver, in Ray Train's
# controller and in every worker. Ray itself needs its own names, so ray_gen's look at them is
# blinded instead.
BLIND = """
import importlib.abc, importlib.machinery, sys, os

class Blind(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "ray_gen.launch.ray_private":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            module.find = lambda name: open(os.environ["ASKED"], "a").write(name + "\\n") and None
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Blind())
"""

RUN = """
import json, sys
import ray_gen

short = ("training.images=1280", "training.report_every_images=640",
         "training.checkpoint_every_images=640", "workers.count=1", "workers.cpus=1")
this = ray_gen.recipe("vae-mnist5k", *short)
run = ray_gen.train(this, storage=sys.argv[1], name="a", local=False)
print(json.dumps([run.stop, run.images]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_ends_well_without_them(tmp_path: Path, apart: dict[str, str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLIND)
    path = [str(tmp_path), *filter(None, [apart.get("PYTHONPATH")])]
    blinded = {"PYTHONPATH": os.pathsep.join(path), "ASKED": str(tmp_path / "asked")}
    ended = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "runs")],
        env={**apart, **blinded},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == ["all images seen", 1280]
    # The driver was blind, and so were the workers.
    asked = set((tmp_path / "asked").read_text().splitlines())
    assert asked >= {ray_private.PRINT, ray_private.ADDRESS, ray_private.CONTEXT}
