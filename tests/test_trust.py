"""Run folders of somebody whom one does not trust: loading them calls nothing that they name."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

import ray_gen
from ray_gen.cli import main
from ray_gen.distributed import World
from ray_gen.errors import Failed, Refused
from ray_gen.experiment import Experiment
from ray_gen.runs.checkpoints import checkpoint_name
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import gan

FILES = ("experiment.yaml", "networks.safetensors", "ema.safetensors", "optimizers.safetensors")


def call(trace: Path) -> dict[str, Any]:
    """Options with which subprocess.Popen would leave a trace."""
    return {"args": ["touch", str(trace)]}


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.trace),)


def saved(run: Path) -> Path:
    """A run folder with a checkpoint."""
    this = gan()
    folder = run / checkpoint_name(480)
    folder.mkdir(parents=True)
    (run / "experiment.yaml").write_text(this.to_yaml())
    State.build(this, build_objective(this), World()).save(folder, this)
    return folder


def sign(folder: Path) -> None:
    """What an attacker can do, too: a manifest that fits the files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"][name] = facts
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("run"))


def copy_of(checkpoint: Path, run: Path) -> Path:
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(checkpoint.parent, run)
    return run / checkpoint.name


def named(folder: Path, part: str, settings: dict[str, Any]) -> None:
    """Gives a part of a checkpoint's experiment these settings."""
    given = yaml.safe_load((folder / "experiment.yaml").read_text())
    here = given
    for key in part.split("."):
        above, last, here = here, key, here[key]
    above[last] = settings
    (folder / "experiment.yaml").write_text(yaml.safe_dump(given))
    sign(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=some.sampled_from((*FILES, "manifest.json")),
    place=some.floats(0, 1),
    cut=some.integers(0, 64),
    bytes_in=some.binary(max_size=64),
    bomb=some.booleans(),
)
def test_a_damaged_run_is_refused_or_loaded(
    checkpoint: Path, tmp_path: Path, name: str, place: float, cut: int, bytes_in: bytes, bomb: bool
) -> None:
    folder = copy_of(checkpoint, tmp_path / "run")
    trace = tmp_path / "trace"
    data = (folder / name).read_bytes()
    at = int(place * len(data))
    with_in = pickle.dumps(Bomb(str(trace))) if bomb else bytes_in
    (folder / name).write_bytes(data[:at] + with_in + data[at + cut :])
    if name != "manifest.json":
        sign(folder)
    try:
        images = ray_gen.load(tmp_path / "run").sample(2, seed=0)
        assert images.shape == (2, 1, 8, 8)
    except (Refused, Failed):
        pass
    assert not trace.exists()


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_the_place_of_a_file(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(checkpoint, tmp_path / "run")
    (folder / name).write_bytes(pickle.dumps(Bomb(str(tmp_path / "trace"))))
    sign(folder)
    state = State.build(gan(), build_objective(gan()), World())
    if name != "optimizers.safetensors":  # which sampling does not read
        with pytest.raises(Refused):
            ray_gen.load(tmp_path / "run", weights="raw" if "networks" in name else "ema")
    if name != "experiment.yaml":
        with pytest.raises(Refused):
            state.load(folder)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("part", ["objective", "networks.generator"])
def test_functions_that_a_run_names_are_not_called(
    checkpoint: Path, tmp_path: Path, part: str
) -> None:
    folder = copy_of(checkpoint, tmp_path / "run")
    trace = tmp_path / "trace"
    named(folder, part, {"kind": "custom", "target": "subprocess:Popen", "options": call(trace)})
    with pytest.raises(Refused, match=r"target: subprocess:Popen .*class"):
        ray_gen.load(tmp_path / "run")
    assert not trace.exists()


EVIL = "from pathlib import Path\n\n\nPath({trace!r}).touch()\n\n\nclass X:\n    pass\n"
INSIDE = {
    "beside a run": (".", "run.evil:X", ["sample", "run"]),
    "in the run": ("run", "evil:X", ["sample", "."]),
    "in the run, of a checkpoint": ("run", "evil:X", ["sample", checkpoint_name(480)]),
    "exported in the run": ("run", "evil:X", ["export", ".", "../out"]),
    "measured in the run": ("run", "evil:X", ["evaluate", "."]),
    "measured beside it": (".", "run.evil:X", ["evaluate", "run"]),
}


@pytest.mark.parametrize("case", INSIDE)
@pytest.mark.parametrize("part", ["objective", "networks.generator"])
def test_modules_in_a_run_are_not_imported(
    checkpoint: Path, tmp_path: Path, case: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, target, command = INSIDE[case]
    folder = copy_of(checkpoint, tmp_path / "run")
    (tmp_path / "run" / "evil.py").write_text(EVIL.format(trace=str(tmp_path / "trace")))
    named(folder, part, {"kind": "custom", "target": target})
    monkeypatch.chdir(tmp_path / where)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    told = CliRunner().invoke(main, [*command, *(["--output", "a.png"] * (command[0] == "sample"))])
    assert not (tmp_path / "trace").exists()
    assert told.exit_code != 0
    assert "lies in a run folder" in f"{told.output} {told.exception}", told.output


@pytest.mark.parametrize(
    "command",
    [
        ["sample", ".", "--output", "a.png"],
        ["evaluate", ".", "--metrics", "sliced_wasserstein,nearest_neighbour", "--count", "50"],
        ["export", ".", "../out"],
    ],
    ids=lambda command: command[0],
)
def test_files_of_a_run_take_no_modules_place(
    checkpoint: Path, tmp_path: Path, command: list[str]
) -> None:
    """Those that the command itself imports."""
    copy_of(checkpoint, tmp_path / "run")
    names = ("torch", "torchvision", "sklearn", "onnx", "matplotlib", "yaml", "nobody_has_this")
    for name in names:
        text = EVIL.format(trace=str(tmp_path / "trace"))
        (tmp_path / "run" / f"{name}.py").write_text(text)
    script = "import sys; sys.path.remove(''); from ray_gen.cli import main; main(sys.argv[1:])"
    root = str(Path(ray_gen.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=tmp_path / "run",
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert not (tmp_path / "trace").exists(), done.stderr
    assert done.returncode == 0, done.stderr


def test_a_module_of_the_users_own_is_imported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the tests above could fail."""
    folder = copy_of(checkpoint, tmp_path / "run")
    (tmp_path / "own_module.py").write_text(EVIL.format(trace=str(tmp_path / "trace")))
    named(folder, "objective", {"kind": "custom", "target": "own_module:X"})
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(main, ["sample", "run", "--output", "a.png"])
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("target", [":X", "..evil:X", "a..b:X", ".:X"])
def test_what_names_no_module(checkpoint: Path, tmp_path: Path, target: str) -> None:
    folder = copy_of(checkpoint, tmp_path / "run")
    named(folder, "objective", {"kind": "custom", "target": target})
    with pytest.raises(Refused, match=r"objective\.target: "):
        ray_gen.load(tmp_path / "run")


def test_functions_in_the_place_of_features_are_not_called(tmp_path: Path, store_8) -> None:
    from ray_gen.evaluation.evaluator import Evaluator
    from ray_gen.experiment.evaluation import Evaluation

    features = {"kind": "custom", "target": "subprocess:Popen", "options": call(tmp_path / "trace")}
    asked = Evaluation.model_validate({"metrics": ["fid"], "features": features})
    with pytest.raises(Refused, match=r"features\.target: subprocess:Popen .*class"):
        Evaluator(asked, store_8, "data", World())
    assert not (tmp_path / "trace").exists()


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    text = f"!!python/object/apply:os.system ['touch {tmp_path / 'trace'}']"
    with pytest.raises(Refused, match="not YAML"):
        Experiment.from_yaml(text)
    assert not (tmp_path / "trace").exists()
