"""The bound of several samples (Burda et al. 2016) against the ELBO, with their network, on the
built-in digits.

    python jobs/iwae.py [--samples 1 5 50] [--images 900000] [--seed 0]

Each model is the recipe vae-iwae-mnist5k with K samples: one stochastic layer of 50, tanh layers of
200 and 200, pixels binarised anew at each use, batches of 20. All see the same images in the same
order. They train on 3,600 of the 4,000 training digits. The other 400 choose the weights: those of
20 states of the run, averaged (EMA), with the best bound of 50 samples. Then log p(x) of the 1,000
held-out digits, binarised once, is bounded with 5,000 samples. One thread.

Measured on a Xeon, seed 0, with the standard error over digits: K = 1 -105.5 ± 1.0, 5 -102.4 ± 1.0,
50 -100.9 ± 0.9 nats; 5,100, 3,500 and 710 images/s. All chose their last state.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

# A script sees only its own folder; without this it would measure an installed version.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ray_gen
from ray_gen.core import Networks, Objective
from ray_gen.data import Split, Store
from ray_gen.distributed import World, use_cores
from ray_gen.evaluation.evaluator import Evaluator, subject_of
from ray_gen.evaluation.scores import Score
from ray_gen.experiment import Experiment
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train
from ray_gen.training.sources import open_data, resolved_by
from ray_gen.training.state import State

CHOOSES = 400
"""Training digits that choose the weights."""
STATES = 20
"""Times in a run that they choose from."""


def parts(store: Store) -> tuple[Store, Store]:
    """Two stores: one to train with, whose held-out images choose, and the whole one."""
    order = torch.randperm(len(store.train), generator=torch.Generator().manual_seed(0))
    chooses, trains = order[:CHOOSES], order[CHOOSES:]
    return replace(
        store, train=_some(store.train, trains), held_out=_some(store.train, chooses)
    ), store


def _some(split: Split, numbers: torch.Tensor) -> Split:
    assert split.labels is not None
    return replace(split, images_NHWC=split.images_NHWC[numbers], labels=split.labels[numbers])


def bound(
    this: Experiment, objective: Objective, networks: Networks, store: Store, samples: int
) -> Score:
    """log p(x) >= of the held-out images of a store, in nats, and its standard error."""
    settings = Evaluation.model_validate({"metrics": ["likelihood"], "importance_samples": samples})
    subject = subject_of(this, objective, networks.eval(), {"model": this.name})
    scores = Evaluator(settings, store, "mnist5k", World()).scores(subject)
    networks.train()
    return scores["log_likelihood_bound"]


def trained(samples: int, images: int, seed: int) -> dict[str, float]:
    """Trains one model. Returns what is told of it."""
    asked = ray_gen.recipe(
        "vae-iwae-mnist5k",
        f"objective.samples={samples}",
        f"seed={seed}",
        f"training.images={images}",
        f"training.report_every_images={images // STATES}",
        f"optimizers.autoencoder.schedule.horizon_images={images}",
        "checkpoints.best=null",
    )
    few, whole = parts(open_data(asked))
    this = resolved_by(asked, few)
    objective = build_objective(this)
    state = State.build(this, objective, World())
    best, chosen, at, seconds = float("-inf"), copy.deepcopy(state.ema), 0, 0.0
    begun = time.process_time()
    for report in train(this, objective, state, few, World()):
        seconds += time.process_time() - begun
        found = bound(this, objective, state.ema, few, 50).value
        if found > best:
            best, chosen, at = found, copy.deepcopy(state.ema), report.images
        begun = time.process_time()
    test = bound(this, objective, chosen, whole, 5_000)
    return {
        "samples": samples,
        "images": images,
        "seed": seed,
        "chosen_at": at,
        "of_those_that_chose": best,
        "log_likelihood_bound": test.value,
        "standard_error": test.spread or 0.0,
        "images_per_second": images / seconds,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 5, 50])
    parser.add_argument("--images", type=int, default=900_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    use_cores(1)
    for samples in given.samples:
        print(json.dumps(trained(samples, given.images, given.seed)), flush=True)


if __name__ == "__main__":
    main()
