"""Classes that were written for 0.1 go on, or are told what to change.

The objectives of `custom_objectives.py` are of 0.1, too: every test of them goes through the
adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import ray_gen
from ray_gen.core import (
    Batch,
    Discriminates,
    Encodes,
    Evaluates,
    ImageShape,
    ImageToVector,
    Losses,
    Networks,
    Noise,
    Objective,
    Phase,
    PhaseModule,
    Reconstructs,
    Term,
    VectorToImage,
)
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.objectives.decoding import gaussian_posterior
from ray_gen.objectives.vae import Vae
from ray_gen.training.build import better_of, build_objective, class_of
from tests.helpers import ADAM, TRAINING, experiment, trained, vae, weights
from tests.runs import SHORT, saved


def test_a_users_extractor_imports_from_where_features_were(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "extractor_of_0_1.py").write_text(
        "from ray_gen.evaluators.base import Features\n"
        "class Means:\n"
        "    def __call__(self, images):\n"
        "        return Features(images.float().mean((2, 3)))\n"
    )
    factory: Any = class_of("extractor_of_0_1:Means", "evaluation.features.target", "__call__")
    assert factory()(torch.ones(2, 3, 4, 4)).vectors.shape == (2, 3)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Decoder(nn.Module):
    """A network of 0.1 reads these names of its signature."""

    def __init__(self, signature: VectorToImage) -> None:
        super().__init__()
        assert signature.output == "tanh"
        self._shape = signature.image_shape
        channels, height, width = signature.image_shape
        self.body = nn.Linear(signature.vector_size, channels * height * width)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.body(z).tanh().view(-1, *self._shape)


class Old:
    """An autoencoder as 0.1 had it: a latent, a module among networks, pairs and bare tensors."""

    image_range = (-1.0, 1.0)
    sampled_from = ("encoder", "decoder", "own")
    better = {"error": "min"}  # noqa: RUF012
    evaluation_noise: Mapping[str, Noise] = {}

    def __init__(self, *, image_shape: ImageShape, label_count: int | None, prior: bool) -> None:
        self.latent = Noise((5,)) if prior else None
        self._shape = image_shape

    def networks(self) -> dict[str, Any]:
        return {
            "encoder": ImageToVector(self._shape, 5),
            "decoder": VectorToImage(5, self._shape, output="tanh"),
            "own": Scale(),
        }

    def phases(self) -> list[Phase]:
        return [Phase("all", ("encoder", "decoder", "own"), (Term("error", self._loss),))]

    def _error(self, networks: Networks, batch: Batch) -> Tensor:
        z = networks["encoder"](batch.images, batch.labels) * networks["own"].scale
        return (networks["decoder"](z, batch.labels) - batch.images).square().sum((1, 2, 3))

    def _loss(self, networks: Networks, batch: Batch) -> Losses:
        return Losses({"error": self._error(networks, batch)})

    def evaluate(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        return {"error": self._error(networks, batch)}

    def sample(self, networks: Networks, z: Tensor, labels: Tensor | None) -> Tensor:
        return networks["decoder"](z, labels).float().add(1.0).mul(0.5)

    def encode(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Any:
        return networks["encoder"](images, labels) * networks["own"].scale, None

    def reconstruct(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.sample(networks, self.encode(networks, images, labels)[0], labels)


def old(*overrides: str, prior: bool = True) -> Experiment:
    decoder = {"kind": "custom", "target": "tests.test_v0_1:Decoder"}
    target = {"target": "tests.test_v0_1:Old", "options": {"prior": prior}}
    return experiment(
        {
            "networks": {"encoder": {"kind": "mlp", "hidden_sizes": [8]}, "decoder": decoder},
            "objective": {"kind": "custom", **target},
            "optimizers": {"all": ADAM},
            "training": TRAINING,
        },
        SHORT,
        *overrides,
    )


@pytest.mark.parametrize("prior", [True, False])
def test_an_objective_of_0_1_trains_samples_and_encodes(store_8, tmp_path, prior: bool) -> None:
    this = old(prior=prior)
    objective = build_objective(this)
    for protocol in (Objective, Encodes, Reconstructs, Evaluates):
        assert isinstance(objective, protocol)
    assert not isinstance(objective, Discriminates)
    assert objective.has_prior == prior
    assert objective.latents == {"z": Noise((5,))}
    assert objective.modules().keys() == {"own"}
    run = saved(this, store_8, tmp_path / "run")
    pipeline = ray_gen.load(run)
    images = store_8.held_out.images_NHWC.permute(0, 3, 1, 2) / 255
    z = pipeline.encode(images)
    assert z.shape == (24, 5)
    torch.testing.assert_close(pipeline.decode(z), pipeline.reconstruct(images))
    assert pipeline.posterior(images).log_variance is None
    assert pipeline.interpolate(images[:1], images[1:2], 3).shape == (1, 3, 1, 8, 8)
    if prior:
        assert pipeline.sample(3, seed=0).shape == (3, 1, 8, 8)


def test_its_own_module_is_trained_and_averaged(store_8) -> None:
    state, reports = trained(old(), store_8)
    found = weights(state)
    assert float(found["own"]["scale"]) != 1.0
    assert float(found["ema own"]["scale"]) != 1.0
    assert reports[-1].metrics["held_out/error"] > 0


def test_the_class_says_which_way_its_scores_are_better() -> None:
    rate = "search.space.optimizers.all.learning_rate={loguniform: [1e-4, 1e-2]}"
    this = old(rate, "search.metric=error")
    assert this.search is not None and this.search.mode is None
    assert better_of(this, "error") == "min"
    assert better_of(this, "fid") == "min"
    assert better_of(this, "accuracy") is None
    assert better_of(vae(), "elbo") == "max"
    with pytest.raises(ExperimentError, match=r"search\.mode: .*loss/error"):
        old(rate, "search.metric=loss/error")


class OfOurs(Vae):
    """A subclass of one of ours, with a method as it was."""

    def sample(self, networks, z, labels):  # type: ignore[override]
        return super().sample(networks, {"z": z}, labels, {})


class Incomplete:
    """An objective with parts missing."""

    image_range = (0.0, 1.0)
    latents: Mapping[str, Noise] = {}

    def __init__(self, **options: Any) -> None:
        pass

    def networks(self) -> dict[str, Any]:
        return {}

    def phases(self) -> list[Phase]:
        return []

    def sample(self, networks, latents, labels, noise) -> None: ...


def custom(name: str) -> Experiment:
    given = vae().model_dump(mode="json")
    options = {k: v for k, v in given["objective"].items() if k not in ("kind", "conditional")}
    target = f"tests.test_v0_1:{name}"
    this = Experiment.of(
        {**given, "objective": {"kind": "custom", "target": target, "options": options}}
    )
    return this.with_values({"training.images": 240})


class Pairs(Vae):
    """A subclass of one of ours whose `encode` returns a pair, as in 0.1."""

    def encode(self, networks, images, labels):  # type: ignore[override]
        return gaussian_posterior(networks, images, labels)


class Modules(Vae):
    """A subclass of one of ours with a module among its networks."""

    def networks(self) -> dict[str, Any]:
        return {**super().networks(), "own": Scale()}


def test_a_pair_where_posteriors_belong_is_told(store_8, tmp_path) -> None:
    pipeline = ray_gen.load(saved(custom("Pairs"), store_8, tmp_path / "run"))
    with pytest.raises(TypeError, match=r"Pairs\.encode .*mapping .*Posterior"):
        pipeline.encode(torch.rand(2, 1, 8, 8))


def test_stop_at_equilibrium_needs_watch_and_settled() -> None:
    stop = "training.stop_at_equilibrium={}"
    with pytest.raises(ExperimentError, match=r"stop_at_equilibrium: .* lacks `watch` or `sett"):
        build_objective(old(stop))


class Phased(PhaseModule):
    """A parametrisation of 0.1. Its `begin_phase` does not take the original tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phases", torch.zeros(()))

    def begin_phase(self) -> None:  # type: ignore[override]
        self.phases += 1

    def forward(self, weight: Tensor) -> Tensor:
        return weight


class Parametrised(nn.Module):
    def __init__(self, signature: ImageToVector) -> None:
        super().__init__()
        channels, height, width = signature.image_shape
        self.body = nn.Linear(channels * height * width, signature.vector_size)
        parametrize.register_parametrization(self.body, "weight", Phased())

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.body(images.flatten(1))


def test_a_parametrisation_of_0_1_begins_its_phases_as_it_did(store_8) -> None:
    encoder = "networks.encoder={kind: custom, target: tests.test_v0_1:Parametrised}"
    state, _ = trained(vae(encoder, SHORT), store_8)
    assert float(state.networks["encoder"].body.parametrizations.weight[0].phases) == state.step


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Modules", r"own among `networks\(\)` is a module; return it from `modules\(\)`"),
        ("OfOurs", r"objective\.target: OfOurs\.sample must take \(networks, latents, labels"),
        ("Incomplete", r"Incomplete lacks sampled_from, has_prior, .* subclass it"),
    ],
)
def test_what_cannot_go_on_is_told_what_to_change(name: str, said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        build_objective(custom(name))
