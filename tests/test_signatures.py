"""Networks are built from signatures. An architecture that cannot build one says which can."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from ray_gen.core import ImageToVector, Objective, Signature, VectorToImage
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.networks.mlp import Mlp
from ray_gen.objectives.vae import Vae
from ray_gen.training.build import build_networks, build_objective
from tests.helpers import vae

SIGNATURES: dict[str, Signature] = {
    "vector_to_vector": Signature((5,), (3,)),
    "map_to_vector": Signature((1, 8, 8), (3,), 10),
    "vector_to_map": Signature((5,), (2, 4, 4), activation="tanh"),
    "map_to_map": Signature((1, 8, 8), (2, 4, 4), 10, conditions={"time": (1,), "mask": (8, 8)}),
    "map_to_several": Signature((1, 8, 8), {"logit": (1,), "features": (2, 2, 2)}),
    "array_to_array": Signature((7, 5), (7, 3)),
}
MLP = {"hidden_sizes": [6], "activation": "relu", "initial_weights": "default", "label_size": 3}


@pytest.mark.parametrize("form", SIGNATURES)
def test_an_mlp_maps_anything_to_anything(form: str) -> None:
    signature = SIGNATURES[form]
    assert signature.form == form
    network = Mlp(signature, **MLP, spectral_norm=False)
    labels = None if signature.label_count is None else torch.arange(4)
    given = {name: torch.randn(4, *shape) for name, shape in signature.conditions.items()}
    x = torch.randn(4, *signature.input)
    out = network(x, labels, **given)
    wanted = signature.outputs
    if isinstance(wanted, Mapping):
        assert {name: tuple(part.shape) for name, part in out.items()} == {
            name: (4, *shape) for name, shape in wanted.items()
        }
        return
    assert out.shape == (4, *wanted)
    if signature.activation == "tanh":
        assert float(out.abs().max()) < 1.0
    for name in given:
        other = {**given, name: given[name] + 1.0}
        assert not torch.equal(network(x, labels, **other), out)


def test_the_signatures_of_0_1_are_signatures() -> None:
    encoder, decoder = ImageToVector((1, 8, 8), 5, 10), VectorToImage(5, (1, 8, 8), output="tanh")
    assert (encoder.input, encoder.outputs, encoder.label_count) == ((1, 8, 8), (5,), 10)
    assert (encoder.image_shape, encoder.vector_size) == ((1, 8, 8), 5)
    assert (decoder.input, decoder.outputs, decoder.activation) == ((5,), (1, 8, 8), "tanh")
    assert (decoder.image_shape, decoder.vector_size, decoder.output) == ((1, 8, 8), 5, "tanh")


class Wants(Objective):
    """An objective whose encoder has another signature."""

    def __init__(self, objective: Objective, signature: Signature) -> None:
        self._objective, self._signature = objective, signature

    def __getattribute__(self, name: str):
        if name in ("_objective", "_signature", "networks"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_objective"), name)

    def networks(self) -> Mapping[str, Signature]:
        return {**self._objective.networks(), "encoder": self._signature}


@pytest.mark.parametrize("kind", ["r3gan", "dcgan"])
@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("map_to_map", "needs a map to a map"),
        ("map_to_several", "needs a map to several outputs"),
        ("vector_to_vector", "needs a vector to a vector"),
    ],
)
def test_an_architecture_that_cannot_says_what_it_can(kind: str, form: str, said: str) -> None:
    this = vae(f"networks.encoder={{kind: {kind}, width: 4}}")
    objective = Wants(build_objective(this), SIGNATURES[form])
    with pytest.raises(ExperimentError) as refused:
        build_networks(this, objective)
    (problem,) = refused.value.problems
    assert problem.startswith(f"networks.encoder.kind: {kind} maps a map to a vector or a vector")
    assert said in problem
    assert "use mlp, or your own class" in problem


def test_conditions_are_refused_where_nobody_takes_them() -> None:
    this = vae("networks.encoder={kind: conv, width: 4}")
    signature = Signature((1, 8, 8), (10,), conditions={"time": (1,)})
    with pytest.raises(ExperimentError, match="conv takes labels but not time"):
        build_networks(this, Wants(build_objective(this), signature))


class Picky(Vae):
    """An objective that refuses an option."""

    def __init__(self, **options: object) -> None:
        raise ValueError("latent_size: 5 is odd; take an even one")


def test_what_an_objective_of_somebodys_refuses_is_told_in_a_sentence() -> None:
    given = vae().model_dump(mode="json")
    custom = {"kind": "custom", "target": "tests.test_signatures:Picky"}
    this = Experiment.of({**given, "objective": custom})
    with pytest.raises(ExperimentError, match=r"objective\.options: latent_size: 5 is odd"):
        build_objective(this)
