"""The source of users' own classes: a run holds it, and it runs only where it is trusted."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ray_gen
from ray_gen.cli import main
from ray_gen.distributed import World
from ray_gen.errors import Failed, Refused
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.launch import worker
from ray_gen.runs.checkpoints import checkpoint_name
from ray_gen.storage import Folder
from ray_gen.training import code
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.helpers import gan

NETWORK = """
import sys
from pathlib import Path

from torch import nn
{imports}
TRACE = Path({trace!r})
TRACE.write_text(TRACE.read_text() + {mark!r} if TRACE.exists() else {mark!r})
print("the module runs", file=sys.stderr)


class Plain(nn.Module):
    def __init__(self, signature):
        super().__init__()
        self.shape = signature.output_shape
        self.layer = nn.Linear(signature.input[0], 64)

    def forward(self, z, labels=None):
        return self.layer(z).tanh().unflatten(1, self.shape)
"""


def network(folder: Path, trace: Path, mark: str = "ran", imports: str = "") -> Path:
    """A module with a class of its user's own. Running it leaves `mark` in the file `trace`."""
    file = folder / "own_network.py"
    file.write_text(NETWORK.format(trace=str(trace), mark=mark, imports=imports))
    return file


def own(target: str = "own_network:Plain") -> Experiment:
    return gan().with_values({"networks.generator": {"kind": "custom", "target": target}})


def saved(run: Path) -> Path:
    """A run folder with a checkpoint of a model with a class of its user's own, as a worker writes
    it."""
    sources = code.collected(own())
    this = code.with_code(own(), sources)
    folder = run / checkpoint_name(480)
    folder.mkdir(parents=True)
    (run / "experiment.yaml").write_text(this.to_yaml())
    State.build(this, build_objective(this), World()).save(folder, this)
    code.store(Folder(str(run)), sources)
    return folder


def forgotten() -> None:
    """This process has imported no class of a user's own, and trusts none."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("own_network", "own")]:
        del sys.modules[name]
    code._finder.loaders.clear()  # pyright: ignore[reportPrivateUsage]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    forgotten()
    yield
    forgotten()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def run(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose module is gone: only the run's copy is left. It has not run yet."""
    work = tmp_path / "work"
    work.mkdir()
    file = network(work, trace)
    monkeypatch.syspath_prepend(str(work))
    saved(tmp_path / "run")
    file.unlink()
    trace.unlink()
    forgotten()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path / "run"


def copy_in(run: Path) -> Path:
    (file,) = (run / "code").rglob("own_network.py")
    return file


def asked(*command: str) -> Result:
    return CliRunner().invoke(main, [*command])


COMMANDS = {
    "sample": ["sample", "RUN", "--output", "a.png"],
    "of a checkpoint": ["sample", f"RUN/{checkpoint_name(480)}", "--output", "a.png"],
    "interpolate": ["interpolate", "RUN", "--output", "b.png"],
    "evaluate": ["evaluate", "RUN", "--metrics", "sliced_wasserstein", "--count", "20"],
    "export": ["export", "RUN", "out", "--formats", "safetensors"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_code_in_a_run_runs_only_if_it_is_trusted(run: Path, trace: Path, name: str) -> None:
    command = [part.replace("RUN", str(run)) for part in COMMANDS[name]]
    refused = asked(*command)
    assert refused.exit_code != 0 and not trace.exists()
    told = refused.output
    assert "own_network:Plain" in told and "--trust-code" in told and str(copy_in(run)) in told
    done = asked(*command, "--trust-code")
    assert done.exit_code == 0, done.output
    digest = hashlib.sha256(copy_in(run).read_bytes()).hexdigest()
    first, then = done.output.index(digest), done.output.index("the module runs")
    assert first < then and str(copy_in(run)) in done.output[:then]


def test_resume_runs_it_only_if_it_is_trusted(run: Path, trace: Path) -> None:
    with pytest.raises(Refused, match="--trust-code"):
        ray_gen.resume(run, {"training.images": 504}, local=True)
    assert not trace.exists()


def test_loading_in_python(run: Path, trace: Path) -> None:
    for use in (ray_gen.load, ray_gen.evaluate):
        with pytest.raises(Refused, match="trust_code=True"):
            use(run)
    assert not trace.exists()
    images = ray_gen.load(run, trust_code=True).sample(2, seed=0)
    assert images.shape == (2, 1, 8, 8) and trace.exists()


def test_a_copy_that_was_changed_is_refused(run: Path, trace: Path) -> None:
    copy_in(run).write_text(copy_in(run).read_text() + "\n")
    with pytest.raises(Refused, match="was changed after the training"):
        ray_gen.load(run, trust_code=True)
    copy_in(run).unlink()
    with pytest.raises(Refused, match="is missing"):
        ray_gen.load(run, trust_code=True)
    assert not trace.exists()


def test_only_the_files_with_digests_run(run: Path, trace: Path) -> None:
    """Also not a module beside them that a trusted one imports."""
    evil = f"from pathlib import Path\nPath({str(trace)!r}).write_text('evil')\n"
    (copy_in(run).parent / "own_helper.py").write_text(evil)
    text = copy_in(run).read_text().replace("import sys\n", "import sys, own_helper\n", 1)
    copy_in(run).write_text(text)
    before = Experiment.from_yaml((run / "experiment.yaml").read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    changed = before.with_fields(code={"own_network.py": digest})
    folder = run / checkpoint_name(480)
    shutil.move(copy_in(run).parent, run / code.folder_of(changed.code))
    (folder / "experiment.yaml").write_text(changed.to_yaml())
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / "experiment.yaml").read_bytes()
    manifest["files"]["experiment.yaml"] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Refused, match="own_helper"):
        ray_gen.load(run, trust_code=True)
    assert not trace.exists()


@pytest.mark.parametrize("file", ["../own.py", "/tmp/own.py", "a/../own.py", "own.so", "own.py\n"])
def test_a_name_that_leads_elsewhere_is_refused(file: str) -> None:
    with pytest.raises(ExperimentError, match="code"):
        own().with_fields(code={file: "0" * 64})


def test_the_users_own_module_comes_first_and_a_difference_is_told(
    run: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = network(Path.cwd(), trace, mark="mine")
    sys.path.append(str(Path.cwd()))
    ray_gen.load(run)
    told = capsys.readouterr().err
    assert trace.read_text() == "mine" and str(file) in told and str(copy_in(run)) in told
    forgotten()
    ray_gen.load(run, trust_code=True)
    assert trace.read_text() == "mine" + "ran"
    trace.unlink()
    file.write_bytes(copy_in(run).read_bytes())
    forgotten()
    capsys.readouterr()
    ray_gen.load(run)
    assert "own_network" not in capsys.readouterr().err


def test_another_version_that_the_process_uses_is_not_replaced(run: Path, trace: Path) -> None:
    network(Path.cwd(), trace, mark="mine")
    sys.path.append(str(Path.cwd()))
    ray_gen.load(run)
    with pytest.raises(Refused, match="already imported another own_network"):
        ray_gen.load(run, trust_code=True)


def test_two_runs_with_two_versions_in_one_process(
    run: Path, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "other"
    work.mkdir()
    file = network(work, trace, mark="other")
    monkeypatch.syspath_prepend(str(work))
    saved(tmp_path / "run2")
    file.unlink()
    trace.unlink()
    forgotten()
    for one in (run, tmp_path / "run2", run):
        ray_gen.load(one, trust_code=True)
    assert trace.read_text() == "ran" + "other" + "ran"


def test_an_export_holds_it_and_only_load_runs_it(run: Path, trace: Path) -> None:
    written = ray_gen.export(run, "out", formats=["safetensors", "torch"], trust_code=True)
    assert copy_in(Path("out")).read_bytes() == copy_in(run).read_bytes()
    assert any(file.name.endswith("own_network.py") for file in written.files)
    forgotten()
    trace.unlink()
    for use in (ray_gen.load, ray_gen.Pipeline.from_pretrained):
        with pytest.raises(Refused, match=r"generator\.pt2") as refused:
            use("out")
        assert "--trust-code" in str(refused.value)
    assert not trace.exists()
    again = ray_gen.load("out", trust_code=True).sample(2, seed=0)
    assert (again == ray_gen.load(run).sample(2, seed=0)).all()


def test_the_modules_that_it_imports_from_the_same_folder_are_stored_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In packages with and without `__init__.py`, also relative and inside functions."""
    files = {
        "own/net/model.py": "from . import parts\nimport torch, yaml, json\nclass X: pass\n",
        "own/net/parts.py": "def late():\n    from own.blocks.conv import Conv\n",
        "own/net/unused.py": "",
        "own/blocks/__init__.py": "from ray_gen.core import Noise\n",
        "own/blocks/conv.py": "# coding: latin-1\nfrom ...far import away\nConv = '\xe9'\n",
        "json.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = code.collected(own("own.net.model:X"))
    assert [source.file for source in found] == [
        "own/blocks/__init__.py",
        "own/blocks/conv.py",
        "own/net/model.py",
        "own/net/parts.py",
    ]
    code.trust(found)
    sent = json.loads(json.dumps(code.carried()))
    code._finder.loaders.clear()  # pyright: ignore[reportPrivateUsage]
    sys.path.remove(str(tmp_path))
    code.take(sent)
    from importlib import import_module

    assert import_module("own.net.model").X.__module__ == "own.net.model"
    assert code.collected(own("own.net.model:X")) == found


@pytest.mark.parametrize("target", ["torch.nn:Linear", "ray_gen.networks.mlp:Mlp", "no_such:X"])
def test_installed_classes_are_not_stored(target: str) -> None:
    assert not code.collected(own(target))


def test_workers_with_different_sources_are_refused(store_8) -> None:
    class Two(World):
        """A group of two, in which the other rank has another number where there is a choice."""

        def maxima(self, values: Sequence[int]) -> list[int]:
            return [*values[:3], values[3] + 1, values[4]]

    this = own("torch.nn:Linear").with_fields(data__digest=store_8.digest)
    this = this.with_fields(code={"own_network.py": "0" * 64})
    state = State.build(gan(), build_objective(gan()), World())
    with pytest.raises(Failed, match=r"different versions of own_network\.py"):
        worker.check_agreement(this, state, store_8, Two())
