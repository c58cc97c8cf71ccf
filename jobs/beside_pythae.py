"""Models of ray_gen beside those of pythae (Chadebec et al. 2022): the same networks, images of
training and batches, and one evaluator. Needs `pip install .[benchmark]`.

    python jobs/beside_pythae.py [--only vae iwae-5 vq vae-gan] [--seeds 3] [--share 1.0]

Each model is trained by both, one after the other, with one thread and equal images, on the 4,000
training digits. Groups are whole batches, as pythae has them. pythae trains modules that ray_gen
built, in its own model, by its own trainer, over its own loader; without its progress bar, and with
no evaluation and no checkpoint on either side. The trained modules then go through ray_gen's
evaluator, on the 1,000 held-out digits: scores, and how much more images a second of processor time
ray_gen trains. `ema`: ray_gen's averaged weights, which a user gets.

What each library does its own way stays so: weights of losses, the start of the codebook and dead
codes, Larsen's rule which gradient goes where, pythae's margins.

Measured on an AMD EPYC beside another training, 3 seeds, mean ± standard deviation, without EMA,
ray_gen and pythae: vae -107.5 ± 0.2 and -107.5 ± 0.1 nats, 1.28 times as many images a second;
iwae-5 (--share 0.5) -109.2 ± 0.1 and -109.4 ± 0.3 nats, 1.14; vq (--share 0.5) PSNR 23.5 ± 0.5 and
20.7 ± 0.5, 1.16; vae-gan sliced Wasserstein distance 35 ± 4 and 222 ± 38, 0.96. On one thread both
spend most of the time in the same products and convolutions: of some 8 ms of a step of the VAE, in
a profile, 5 ms are matrix products and 1 ms the likelihood.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

# A script sees only its own folder; without this it would measure an installed version.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _peers import Epochs

from ray_gen.core import Networks
from ray_gen.data import Store
from ray_gen.distributed import World, use_cores
from ray_gen.evaluation.evaluator import Evaluator, subject_of
from ray_gen.experiment import Experiment
from ray_gen.experiment.evaluation import Evaluation
from ray_gen.training.build import build_objective
from ray_gen.training.loop import train
from ray_gen.training.sources import open_data, resolved_by
from ray_gen.training.state import State

MLP = {"kind": "mlp", "hidden_sizes": [400]}
MAPS = {"kind": "conv", "width": 16}
DCGAN = {"kind": "dcgan", "width": 16}


@dataclass(frozen=True)
class Model:
    """One kind of model, in both libraries."""

    networks: Mapping[str, Any]
    objective: Mapping[str, Any]
    rate: float
    batch: int
    images: int
    """Of one training."""
    metrics: tuple[str, ...]
    """Of ray_gen's evaluator."""
    score: str
    """The value that is compared."""
    betas: tuple[float, float] = (0.9, 0.999)

    def experiment(self, seed: int, share: float) -> Experiment:
        """share: of the images."""
        images = max(self.batch, round(self.images * share))
        adam = {"kind": "adam", "learning_rate": self.rate, "betas": list(self.betas)}
        phases = ["autoencoder", "discriminator"]
        given = {
            "seed": seed,
            "data": {"kind": "mnist5k"},
            "networks": dict(self.networks),
            "objective": dict(self.objective),
            "optimizers": dict.fromkeys(phases if len(self.networks) > 2 else phases[:1], adam),
            "training": {
                "images": images,
                "global_batch_size": self.batch,
                "group_size": self.batch,
                "report_every_images": images,
                "checkpoint_every_images": images,
            },
        }
        return Experiment.from_yaml(yaml.safe_dump(given))


def _vae(samples: int) -> dict[str, Any]:
    return {"kind": "vae", "latent_size": 20, "likelihood": "bernoulli", "samples": samples}


PAIR = {"encoder": MLP, "decoder": MLP}
VQ = {"kind": "vq", "codes": 256}
MODELS: dict[str, Model] = {
    "vae": Model(PAIR, _vae(1), 1e-3, 128, 400_000, ("likelihood",), "log_likelihood_bound"),
    "iwae-5": Model(PAIR, _vae(5), 1e-3, 128, 400_000, ("likelihood",), "log_likelihood_bound"),
    "vq": Model(
        {"encoder": MAPS, "decoder": MAPS},
        {
            "kind": "latent_autoencoder",
            "latent_channels": 8,
            "downsampling": 4,
            "bottleneck": VQ,
            "reconstruction": "l2",
            "perceptual_weight": 0.0,
        },
        *(1e-3, 128, 200_000, ("psnr", "codebook"), "psnr"),
    ),
    "vae-gan": Model(
        {"encoder": DCGAN, "decoder": DCGAN, "discriminator": DCGAN},
        {"kind": "vae_gan", "latent_size": 20},
        *(2e-4, 64, 100_000, ("sliced_wasserstein", "psnr"), "sliced_wasserstein"),
        betas=(0.5, 0.999),
    ),
}
HIGHER = {"log_likelihood_bound": True, "psnr": True, "sliced_wasserstein": False}


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    networks: Networks
    images_per_second: float
    """Of processor time."""


def by_ray_gen(this: Experiment, store: Store) -> dict[str, Trained]:
    """Trained by ray_gen: its last weights, and their average."""
    objective = build_objective(this)
    state = State.build(this, objective, World())
    before = time.process_time()
    images = [report.images for report in train(this, objective, state, store, World())][-1]
    pace = images / (time.process_time() - before)
    return {"ray_gen": Trained(state.networks, pace), "ema": Trained(state.ema, pace)}


def by_pythae(this: Experiment, store: Store, name: str) -> Trained:
    """The same modules, trained by pythae."""
    objective = build_objective(this)
    networks = State.build(this, objective, World()).networks
    low = objective.image_range[0]
    model = OF_PYTHAE[name](networks, this)
    images = store.train.images_NHWC.permute(0, 3, 1, 2).float() / 255.0
    trainer = _trainer(model, images * (1.0 - low) + low, this, adversarial=name == "vae-gan")
    steps = this.training.images // this.training.global_batch_size
    trainer.train_loader.steps = steps
    before = time.process_time()
    trainer.train_step(epoch=1)
    pace = trainer.train_loader.images / (time.process_time() - before)
    if name == "vq":
        codes = model.quantizer.embeddings
        codebook: Any = next(m for m in networks.modules() if hasattr(m, "counts"))
        with torch.no_grad():
            codebook.codes.copy_(codes)
            codebook.totals.copy_(codes)
            codebook.counts.fill_(1.0)
    return Trained(networks, pace)


def _wrapped(
    networks: Networks, *, sigmoid: bool = False, maps: bool = False
) -> tuple[nn.Module, nn.Module]:
    """pythae's encoder and decoder of ours. sigmoid: the decoder gives logits, and pythae takes
    probabilities. maps: the encoder gives latents, not μ and log σ²."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.network = networks["encoder"]

        def forward(self, x: Tensor) -> Any:
            found = self.network(x)
            if maps:
                return ModelOutput(embedding=found)
            mean, log_variance = found.chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.network = networks["decoder"]

        def forward(self, z: Tensor) -> Any:
            made = self.network(z)
            return ModelOutput(reconstruction=made.sigmoid() if sigmoid else made)

    return Encoder(), Decoder()


def _pythae_vae(networks: Networks, this: Experiment) -> Any:
    from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig

    objective: Any = this.objective
    size: dict[str, Any] = {"input_dim": this.image_shape, "latent_dim": objective.latent_size}
    pair = _wrapped(networks, sigmoid=True)
    if objective.samples == 1:
        return VAE(VAEConfig(**size, reconstruction_loss="bce"), *pair)
    config = IWAEConfig(**size, reconstruction_loss="bce", number_samples=objective.samples)
    return IWAE(config, *pair)


def _pythae_vq(networks: Networks, this: Experiment) -> Any:
    from pythae.models import VQVAE, VQVAEConfig

    objective: Any = this.objective
    config = VQVAEConfig(
        input_dim=this.image_shape,
        latent_dim=objective.latent_channels,
        num_embeddings=objective.bottleneck.codes,
        use_ema=True,
    )
    return VQVAE(config, *_wrapped(networks, maps=True))


def _pythae_vae_gan(networks: Networks, this: Experiment) -> Any:
    from pythae.models import VAEGAN, VAEGANConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDiscriminator

    class Discriminator(BaseDiscriminator):
        depth = 1

        def __init__(self) -> None:
            BaseDiscriminator.__init__(self)
            self.network: Any = networks["discriminator"]

        def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> Any:
            if output_layer_levels is None:
                return ModelOutput(embedding=self.network(x).sigmoid())
            logits, features = self.network.features(x)
            return ModelOutput(embedding=logits.sigmoid(), embedding_layer_1=features)

    objective: Any = this.objective
    config = VAEGANConfig(input_dim=this.image_shape, latent_dim=objective.latent_size)
    return VAEGAN(config, *_wrapped(networks), Discriminator())


OF_PYTHAE: dict[str, Callable[[Networks, Experiment], Any]] = {
    "vae": _pythae_vae,
    "iwae-5": _pythae_vae,
    "vq": _pythae_vq,
    "vae-gan": _pythae_vae_gan,
}


def _trainer(model: Any, images: Tensor, this: Experiment, *, adversarial: bool) -> Any:
    """pythae's trainer over its own data set, ready for `train_step`."""
    from pythae import trainers
    from pythae.data.datasets import BaseDataset
    from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

    for name in ("pythae.trainers", "pythae"):
        logging.getLogger(name).setLevel(logging.WARNING)
    adam = next(iter(this.optimizers.values()))
    batch = this.training.global_batch_size
    parts = ("encoder", "decoder", "discriminator") if adversarial else ("",)
    given: dict[str, Any] = {"per_device_train_batch_size": batch, "no_cuda": True}
    for part in parts:
        prefix = f"{part}_" if part else ""
        given[f"{prefix}learning_rate"] = adam.learning_rate
        given[f"{prefix}optimizer_params"] = {"betas": tuple(adam.betas)}
    kind = "CoupledOptimizerAdversarial" if adversarial else "Base"
    settings = getattr(trainers, f"{kind}TrainerConfig")(**given)
    data = BaseDataset(images, torch.zeros(len(images)))
    trainer: Any = getattr(trainers, f"{kind}Trainer")(model, data, training_config=settings)
    for part in parts:
        for what in ("optimizer", "scheduler"):
            getattr(trainer, "_".join(filter(None, ("set", part, what))))()
    trainer.callback_handler = CallbackHandler([TrainingCallback()], model)
    loader: DataLoader[Any] = trainer.train_loader
    trainer.train_loader = Epochs(loader)
    return trainer


def evaluated(this: Experiment, store: Store, model: Model, networks: Networks) -> dict[str, float]:
    """Scores on the held-out digits."""
    networks.eval()
    settings = Evaluation.model_validate(
        {"metrics": model.metrics, "reference": "held_out", "importance_samples": 500}
    )
    subject = subject_of(this, build_objective(this), networks, {"model": this.name})
    found = Evaluator(settings, store, "mnist5k", World()).scores(subject)
    return {score.name: score.value for score in found}


def compare(name: str, seeds: int, share: float) -> None:
    """Prints one line for each training, and the comparison."""
    model = MODELS[name]
    scores: dict[str, list[float]] = {}
    paces: dict[str, list[float]] = {}
    for seed in range(seeds):
        asked = model.experiment(seed, share)
        store = open_data(asked)
        this = resolved_by(asked, store)
        trained = by_ray_gen(this, store) | {"pythae": by_pythae(this, store, name)}
        for whose, one in trained.items():
            found = evaluated(this, store, model, one.networks)
            scores.setdefault(whose, []).append(found[model.score])
            paces.setdefault(whose, []).append(one.images_per_second)
            row = {"model": name, "seed": seed, "by": whose, "images": this.training.images}
            row |= {"images_per_second": one.images_per_second, **found}
            print(json.dumps(row), flush=True)
    words = [
        f"{whose} {statistics.mean(of):.4g} ± {statistics.stdev(of) if len(of) > 1 else 0:.2g}"
        for whose, of in scores.items()
    ]
    ratios = [a / b for a, b in zip(paces["ray_gen"], paces["pythae"], strict=True)]
    better = "higher" if HIGHER[model.score] else "lower"
    print(
        f"{name}: {model.score} ({better} is better): {', '.join(words)}; images a second, ray_gen "
        f"to pythae: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the images of a training")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    use_cores(1)
    for name in given.only:
        compare(name, given.seeds, given.share)


if __name__ == "__main__":
    main()
