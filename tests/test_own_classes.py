"""Classes of a user's own: the examples of README and docstrings work, and what is wrong with a
class is one sentence before a run starts."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from ray_gen import core
from ray_gen.cli import main
from ray_gen.core import Losses, Noise, Phase, Signature
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.training.build import build_objective
from ray_gen.training.rehearsal import rehearse
from tests.helpers import experiment, relativistic, vae_gan
from tests.proofs.experiments import FAMILIES

README = Path(__file__).parent.parent / "README.md"
MODULE = "their_module"


def example(name: str) -> str:
    """The file of this name in the README."""
    (text,) = re.findall(rf"```\w+\n(# {re.escape(name)}\n.*?)```", README.read_text(), re.DOTALL)
    return text


@pytest.fixture
def module() -> Iterator[Any]:
    """A module with the classes of the README, to which a test adds its own."""
    found = ModuleType(MODULE)
    sys.modules[MODULE] = found
    found.__spec__ = None
    exec(example("my_model.py"), vars(found))
    yield found
    del sys.modules[MODULE]


@pytest.fixture(autouse=True)
def _finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module has no file."""
    monkeypatch.setattr("ray_gen.training.build._check_is_in_no_run", lambda *_: None)


def of(
    objective: str = "LeastSquaresGan", generator: str = "Upsampling", **options: Any
) -> Experiment:
    rate = {"kind": "adam", "learning_rate": 1e-3}
    return experiment(
        {
            "networks": {
                "generator": {
                    "kind": "custom",
                    "target": f"{MODULE}:{generator}",
                    "options": options.pop("network", {}),
                },
                "discriminator": {"kind": "mlp", "hidden_sizes": [8]},
            },
            "objective": {
                "kind": "custom",
                "target": f"{MODULE}:{objective}",
                "options": options,
            },
            "optimizers": {"generator": rate, "discriminator": rate},
            "training": {"images": 96, "global_batch_size": 24},
        }
    )


def remarks(this: Experiment) -> list[str]:
    return rehearse(this, build_objective(this))


def sentence(this: Experiment) -> str:
    with pytest.raises(ExperimentError) as refused:
        remarks(this)
    (problem,) = refused.value.problems
    assert "\n" not in problem
    return problem


def test_the_files_of_the_readme_train_and_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_GEN_STORAGE", str(tmp_path / "runs"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_model.py", "my.yaml"):
        Path(name).write_text(example(name))
    short = ["training.images=200", "training.report_every_images=100"]
    done = CliRunner().invoke(main, ["train", "my.yaml", *short, "--local", "--name", "lsgan"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["sample", "lsgan"])
    assert done.exit_code == 0, done.output
    sys.modules.pop("my_model", None)


def test_the_examples_of_the_docstrings(module: Any) -> None:
    import math

    for kind in (core.Objective, Signature):
        text = inspect.getdoc(kind) or ""
        code = re.search(r"^    class .*?(?=\n\S|\Z)", text, re.DOTALL | re.MULTILINE)
        assert code is not None
        exec(inspect.cleandoc("\n" + code[0]), {**vars(core), "nn": nn, "math": math}, vars(module))
    own = {"kind": "custom", "target": f"{MODULE}:Linear", "options": {"width": 4}}
    this = experiment(
        {
            "networks": {"encoder": own, "decoder": own},
            "objective": {"kind": "custom", "target": f"{MODULE}:Autoencoder"},
            "optimizers": {"both": {"kind": "adam", "learning_rate": 1e-3}},
            "training": {"images": 96, "global_batch_size": 24},
        }
    )
    assert not remarks(this)


@pytest.mark.parametrize("name", [*FAMILIES, "relativistic of 0.1", "vae_gan of 0.1"])
def test_what_works_is_not_refused(name: str) -> None:
    old = {"relativistic of 0.1": relativistic, "vae_gan of 0.1": vae_gan}
    assert not remarks((FAMILIES | old)[name]())


def test_arguments_of_constructors(module: Any) -> None:
    assert not remarks(of(latent_size=3, network={"width": 4}))
    assert (
        "objective.options.latent_sz: LeastSquaresGan has no such option; it takes latent_size"
        in (sentence(of(latent_sz=3)))
    )
    told = sentence(of(network={"widht": 3}))
    assert told.startswith("networks.generator.options.widht: Upsampling has no such option")

    class Positional(module.LeastSquaresGan):
        def __init__(self, latent_size: int) -> None: ...

    class Needs(module.LeastSquaresGan):
        def __init__(self, *, image_shape: Any, label_count: Any, gamma: float) -> None: ...

    module.Positional, module.Needs = Positional, Needs
    assert "by keyword: def __init__(self, *, image_shape, label_count, ...)" in (
        sentence(of("Positional"))
    )
    assert "objective.options: gamma is missing" in sentence(of("Needs"))


def test_parts_that_are_missing(module: Any) -> None:
    class NoSample(core.Objective):
        def networks(self) -> Any: ...
        def phases(self) -> Any: ...

    class NoPhases(module.LeastSquaresGan):
        phases = None

    class NoLatents(module.LeastSquaresGan):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            del self.latents

    class NoNames(module.LeastSquaresGan):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.latents = Noise((3,))

    for kind in (NoSample, NoPhases, NoLatents, NoNames):
        setattr(module, kind.__name__, kind)
    assert "is a class without sample" in sentence(of("NoSample"))
    assert "is a class without phases" in sentence(of("NoPhases"))
    assert "NoLatents lacks latents" in sentence(of("NoLatents"))
    assert "`latents` of NoNames must map names to Noise" in sentence(of("NoNames"))
    assert "did you mean LeastSquaresGan?" in sentence(of("LeastSquareGan"))


def test_what_a_term_does_wrong(module: Any) -> None:
    base = module.LeastSquaresGan

    def variant(term: Any) -> str:
        module.Variant = type("Variant", (base,), {"_of_generator": term})
        return sentence(of("Variant"))

    def loss(self: Any, networks: Any, batch: Any) -> Any:
        return base._of_generator(self, networks, batch).minimised["generator"]

    where = "objective: the term generator of the phase generator"
    told = variant(lambda self, n, b: Losses({"generator": loss(self, n, b).mean()}))
    assert "loss/generator has shape ()" in told and "(N,)" in told
    assert f"{where} returned a tensor of shape" in variant(loss)
    told = variant(lambda self, n, b: b.noise["w"])
    assert f"{where} takes the noise 'w', but its phase declares only z" in told
    told = variant(lambda self, n, b: n["genrator"])
    assert f"{where} raised KeyError: 'genrator' ({__file__}, line" in told
    told = variant(lambda self, n, b: n.no_such_network)
    assert f"{where} raised AttributeError" in told


def test_what_else_is_wrong(module: Any) -> None:
    class Flat(module.LeastSquaresGan):
        def sample(self, networks: Any, latents: Any, labels: Any, noise: Any) -> Any:
            return latents["z"]

    class Critic(module.LeastSquaresGan):
        def phases(self) -> Any:
            return [Phase("discriminator", ("critic",), ()), Phase("generator", ("generator",), ())]

    class Small(nn.Module):
        def __init__(self, signature: Signature) -> None:
            super().__init__()
            self.layer = nn.Linear(signature.input[0], 7)

        def forward(self, z: Any, labels: Any = None) -> Any:
            return self.layer(z)

    class Draws(module.Upsampling):
        def forward(self, z: Any, labels: Any = None) -> Any:
            return self.layers(z + torch.randn(()))

    for kind in (Flat, Critic, Small, Draws):
        setattr(module, kind.__name__, kind)
    assert "`sample` returned a tensor of shape (12, 32)" in sentence(of("Flat"))
    assert "the phase discriminator updates critic" in sentence(of("Critic"))
    told = sentence(of(generator="Small"))
    assert "Small returned a tensor of shape (12, 7); its signature asks for (N, 1, 8, 8)" in told
    (remark,) = remarks(of(generator="Draws"))
    assert "draws random numbers from torch" in remark
    assert not remarks(of())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nonesuch_library", "it needs the module nonesuch_library, which is not installed"),
        ("x = 1 / 0", r"ZeroDivisionError: division by zero (.*broken_one.py, line 1)"),
        ("def f(:", r"SyntaxError: invalid syntax (.*broken_one.py, line 1)"),
        (None, "the module broken_one is not found; start in the folder of broken_one.py"),
    ],
)
def test_modules_that_cannot_be_imported(
    text: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "broken_one.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    this = of().with_values({"objective.target": "broken_one:X"})
    found = sentence(this)
    assert re.search(told.replace("(", r"\(").replace(")", r"\)"), found), found
