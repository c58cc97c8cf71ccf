"""The comparisons with pythae and with Burda et al. (2016) compare like with like, and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.training.build import build_objective
from ray_gen.training.sources import open_data, resolved_by
from ray_gen.training.state import State
from tests.helpers import random_store

NEEDS_PYTHAE = pytest.mark.skipif(find_spec("pythae") is None, reason="pythae is not installed")
MODELS = ("vae", "iwae-5", "vq", "vae-gan")


@pytest.fixture
def beside_pythae(job: Callable[[str], ModuleType]) -> ModuleType:
    return job("beside_pythae")


@pytest.fixture
def iwae(job: Callable[[str], ModuleType]) -> ModuleType:
    return job("iwae")


@NEEDS_PYTHAE
@pytest.mark.parametrize("name", MODELS)
def test_pythae_trains_our_networks_on_as_many_images(beside_pythae: ModuleType, name: str) -> None:
    model = beside_pythae.MODELS[name]
    asked = model.experiment(0, 2 * model.batch / model.images)  # two steps
    store = open_data(asked)
    this = resolved_by(asked, store)
    assert this.training.images == 2 * model.batch
    assert this.group_size == this.training.global_batch_size
    before = State.build(this, build_objective(this), World()).networks.state_dict()
    ours = beside_pythae.by_ray_gen(this, store)["ray_gen"].networks.state_dict()
    theirs = beside_pythae.by_pythae(this, store, name).networks.state_dict()
    for part in this.networks:
        names = [key for key in before if key.startswith(f"{part}.") and key.endswith("weight")]
        assert names
        for key in names:
            assert not torch.equal(before[key], ours[key]), key
            assert not torch.equal(before[key], theirs[key]), key
            for trained in (ours, theirs):  # two steps of Adam go no further than two rates or so
                furthest = 2.5 * model.rate
                torch.testing.assert_close(trained[key], before[key], atol=furthest, rtol=0)


@NEEDS_PYTHAE
@pytest.mark.slow
def test_a_comparison_tells_each_training(
    beside_pythae: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    beside_pythae.compare("vq", seeds=2, share=0.001)
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(row["seed"], row["by"]) for row in rows] == [
        (seed, by) for seed in (0, 1) for by in ("ray_gen", "ema", "pythae")
    ]
    assert len({row["images"] for row in rows}) == 1
    assert lines[-1].startswith("vq: psnr (higher is better): ray_gen ")


def test_digits_that_choose_do_not_train(iwae: ModuleType) -> None:
    whole = random_store(8, count=iwae.CHOOSES + 200)
    few, again = iwae.parts(whole)
    assert again is whole

    def rows(store: Store, name: str) -> set[bytes]:
        return {image.numpy().tobytes() for image in getattr(store, name).images_NHWC}

    assert len(few.held_out) == iwae.CHOOSES
    assert rows(few, "train").isdisjoint(rows(few, "held_out"))
    assert rows(few, "train") | rows(few, "held_out") == rows(whole, "train")


@pytest.mark.slow
def test_a_model_of_several_samples_is_trained_and_bounded(iwae: ModuleType) -> None:
    told = iwae.trained(5, 2_000, 0)
    assert told["images"] == 2_000
    assert 0 < told["chosen_at"] <= 2_000
    assert -600 < told["log_likelihood_bound"] < -100  # 784 ln 2 = 543
    assert 0 < told["standard_error"] < 10
