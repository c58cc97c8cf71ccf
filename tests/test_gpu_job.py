"""The acceptance of a GPU, as far as a CPU can tell: it rehearses, it fails where it has to, and it
needs nothing that a bare machine lacks."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import some_of

JOBS = Path(__file__).resolve().parent.parent / "jobs"
CPU = ("--device", "cpu", "--seconds", "0.01")


@pytest.fixture
def gpu(job: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module."""
    return job("gpu")


def rows_of(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """By row and family."""
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return {(row["row"], row["family"]): row for row in rows}


@pytest.mark.parametrize("some", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_cpu_agrees_with_itself(gpu: ModuleType, tmp_path: Path, capsys, some: bool) -> None:
    families = ("vae", "dcgan", "latent-vq") if some else tuple(gpu.FAMILIES)
    only = ("gradients", "bf16", "no-sync", "replay")
    given = [*CPU, "--only", *only, "--family", *families]
    assert gpu.main([*given, "--json", str(tmp_path / "found.json")]) == 0
    rows = rows_of(tmp_path / "found.json")
    assert rows.keys() == {(row, family) for row in only for family in families}
    for (row, _), found in rows.items():
        assert found["verdict"] == ("passed" if row in ("gradients", "bf16") else "n/a")
        assert found["note"] or found["value"] == 0
    printed = capsys.readouterr().out
    half = 2 * len(families)
    assert f"{half} passed, 0 failed, {half} n/a" in printed
    assert all(row in printed for row in only)


def test_a_row_that_fails_is_the_exit_code_and_not_the_end(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    def raises(model: Any) -> Any:
        raise RuntimeError("first line\nno kernel image is available")

    monkeypatch.setitem(gpu.CHECKS, "fp64", (raises, 0.0))
    found = gpu.Found(2.0, "‖Δg‖/‖g‖", at_most=1.0)
    monkeypatch.setitem(gpu.CHECKS, "gradients", (lambda model: found, 5.0))
    given = [*CPU, "--only", "fp64", "gradients", "bf16", "--family", "vae", "dcgan"]
    assert gpu.main([*given, "--json", str(tmp_path / "found.json")]) == 1
    verdicts = {key: row["verdict"] for key, row in rows_of(tmp_path / "found.json").items()}
    for family in ("vae", "dcgan"):
        assert [verdicts[row, family] for row in ("fp64", "gradients", "bf16")] == [
            *("failed", "failed"),
            "passed",
        ]
    printed = capsys.readouterr().out
    assert "OVER its 0 s. no kernel image is available" in printed
    assert "2 ‖Δg‖/‖g‖" in printed
    assert "≤ 1" in printed


def test_no_bound_holds_what_is_not_a_number(gpu: ModuleType) -> None:
    assert not gpu.Found(math.nan, "", at_most=1.0).passed
    assert not gpu.Found(math.nan, "", at_least=1.0).passed
    apart = {"a": torch.tensor([math.nan]), "b": torch.tensor([1.0])}
    assert math.isnan(gpu.relative_difference(apart, dict.fromkeys("ab", torch.ones(1))))


def spoil(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spoils what a row checks, by the least that the row must notice."""
    copy, gradients = gpu.copy_state, gpu.Run.gradients

    def copy_but_for_one_number(run: Any, other: Any) -> None:
        copy(run, other)
        moment = other.state.moments()["autoencoder/decoder.layers.0.weight/exp_avg"]
        moment.view(-1)[0] += 1e-6

    def turned(self: Any, steps: int = 1) -> dict[str, Tensor]:
        by = 0.2 * (self.experiment.training.precision == "bf16")  # cosine 0.98
        found = gradients(self, steps)
        return {n: g + by * g.norm() * torch.ones_like(g) / len(g) ** 0.5 for n, g in found.items()}

    monkeypatch.setattr(gpu, "copy_state", copy_but_for_one_number)
    monkeypatch.setattr(gpu.Run, "gradients", turned)


@pytest.mark.parametrize("row", ["resume", "bf16"])
def test_a_row_notices_what_it_is_for(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    model = gpu.Model(gpu.FAMILIES["vae"], gpu.CPU, 0.01)
    assert gpu.CHECKS[row][0](model).passed
    spoil(gpu, monkeypatch)
    assert not gpu.CHECKS[row][0](model).passed


@pytest.mark.parametrize(
    ("rows", "families", "counts"),
    [
        ("sampling evaluation export", "vae dcgan", "5 passed, 0 failed, 1 n/a"),
        pytest.param(
            *("gradients", "resnet r3gan stylegan2 fastgan", "4 passed, 0 failed, 0 n/a"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_runs_where_only_torch_and_a_few_others_are(
    tmp_path: Path, rows: str, families: str, counts: str
) -> None:
    blocked = ["ray", "torchvision", "tensorboard", "pyarrow", "PIL", "sklearn", "tests"]
    blocked += ["click", "rich", "onnx", "optuna", "plotly", "torch_fidelity"]
    arguments = [*CPU, "--only", *rows.split(), "--family", *families.split()]
    code = (
        "import sys, runpy\n"
        f"sys.modules.update(dict.fromkeys({blocked}))\n"
        f"sys.path.insert(0, {str(JOBS)!r})\n"  # as for a script
        f"sys.argv = ['gpu.py', *{arguments}]\n"
        f"runpy.run_path({str(JOBS / 'gpu.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert counts in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu: ModuleType, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert "use --device cpu" in capsys.readouterr().err


class Graph:
    """What a CUDA graph does, on a CPU: the same operations on the same memory."""

    replays = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Results go to where they went when they were captured."""
        Graph.replays += 1
        for function, args, kwargs, out in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """Writes operations down. What they wrote is undone at the end: a capture computes nothing."""

    def __init__(self, graph: Graph, stream: object) -> None:
        super().__init__()
        self._graph = graph
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = zip(func._schema.arguments, args, strict=False)
        written = [given for argument, given in named if argument.is_write]
        written += [
            kwargs[a.name] for a in func._schema.arguments if a.is_write and a.name in kwargs
        ]
        for tensor in tree_leaves(written):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*args, **kwargs)
        self._graph.calls.append((func, args, kwargs, out))
        return out

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for storage, before in self._before.values():
            storage.copy_(before)


CAPTURED = ("vae", "dcgan", "resnet", "r3gan", "stylegan2", "fastgan")


@pytest.mark.parametrize("family", some_of(CAPTURED, "vae", "dcgan", "stylegan2"))
def test_a_step_survives_being_captured(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Bit for bit, through the recorder that a GPU gets: weights, averages, moments, reports."""

    class Stream:
        def wait_stream(self, other: object) -> None:
            """Nothing to wait for."""

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    model = gpu.Model(gpu.FAMILIES[family], gpu.CPU, 0.01)
    before = Graph.replays
    ours, theirs = (
        model.run(record=record, ema_every_steps=2).steps(20) for record in (gpu.Replayed, None)
    )
    assert Graph.replays - before == 2 * (10 - 2)  # two programs, with the EMA and without
    found, expected = ours.tensors(), theirs.tensors()
    for part in expected:
        for name, tensor in expected[part].items():
            assert torch.equal(found[part][name], tensor), f"{part} {name}"
    assert ours.meter.report() == theirs.meter.report()
