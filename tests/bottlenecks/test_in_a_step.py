"""Bottlenecks in real steps: workers, micro-batches, a recorded program, a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ray_gen.distributed import World
from ray_gen.noise import Tape
from ray_gen.training.build import build_objective
from ray_gen.training.state import State
from tests.bottlenecks.model import KINDS, experiment
from tests.helpers import (
    batches,
    largest_difference,
    stepped,
    trained,
    trained_by_workers,
    weights,
)
from tests.programs import eager, replayed, runs_on_meta

FP64 = "training.precision=fp64"

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def alone(store_8) -> dict[str, State]:
    """The state of each kind after 20 steps of one worker."""
    return {kind: trained(experiment(kind, FP64), store_8)[0] for kind in KINDS}


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_do_not_change_the_result(alone, store_8, tmp_path: Path, count: int) -> None:
    runs = [experiment(kind, FP64) for kind in KINDS]
    for kind, found in zip(KINDS, trained_by_workers(count, runs, store_8, tmp_path), strict=True):
        assert largest_difference(found, weights(alone[kind])) < 1e-9, kind


@every_kind
def test_micro_batches_do_not_change_the_result(alone, store_8, kind: str) -> None:
    found, _ = trained(experiment(kind, FP64, "training.micro_batch_size=6"), store_8)
    assert largest_difference(weights(found), weights(alone[kind])) < 1e-9


@every_kind
def test_codes_are_used_and_reported(alone, store_8, kind: str) -> None:
    """And what a code is moves in training: without that, the tests above would prove little."""
    this = experiment(kind, FP64)
    objective = build_objective(this)
    _, meter = stepped(this, objective, store_8, 1, alone[kind])
    report = meter.report()
    assert 0.0 < report["codebook/usage"] <= 1.0
    assert report["codebook/perplexity"] > 1.5
    before = State.build(this, objective, World()).networks["bottleneck"].state_dict()
    after = alone[kind].networks["bottleneck"].state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items())


@every_kind
def test_a_replayed_step_is_the_step(store_8, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(Tape, "length_for", staticmethod(lambda specs, images: 6))
    this = experiment(kind)
    data = batches(this, build_objective(this), store_8, 0, 14)
    (ours, reported), (theirs, expected) = replayed(this, data), eager(this, data)
    assert largest_difference(weights(ours), weights(theirs)) == 0
    assert reported == expected


@every_kind
def test_a_step_reads_no_number(kind: str) -> None:
    runs_on_meta(experiment(kind, "training.precision=bf16"), steps=3)


@pytest.mark.parametrize("kind", ["vq", "lfq"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(store_8, tmp_path: Path, kind: str) -> None:
    this = experiment(kind)
    objective = build_objective(this)
    stepped(this, objective, store_8, 5)[0].save(tmp_path, this)
    resumed = State.build(this, objective, World())
    resumed.load(tmp_path)
    stepped(this, objective, store_8, 5, resumed)
    whole, _ = stepped(this, objective, store_8, 10)
    assert largest_difference(weights(resumed), weights(whole)) == 0
