"""Write a latent autoencoder as diffusers' AutoencoderKL or VQModel reads it: `config.json` and
`diffusion_pytorch_model.safetensors`."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ray_gen.core import Clamps, Encodes, posteriors_of
from ray_gen.data import Store
from ray_gen.data.encode import Sums
from ray_gen.errors import Failed, Refused
from ray_gen.experiment import Experiment
from ray_gen.experiment.latent_autoencoder import LatentAutoencoderObjective
from ray_gen.experiment.networks import AutoencoderKlNetwork
from ray_gen.networks.autoencoder_kl_names import diffusers_names
from ray_gen.objectives.bottleneck import quantiser_in
from ray_gen.pipeline.encoder import moments
from ray_gen.pipeline.model import Model
from ray_gen.pipeline.pretrained import CONFIG, DIFFUSERS
from ray_gen.pixels import selected

VERSION = "0.30.3"
"""The oldest diffusers that knows all fields of the configuration."""
TOLERANCE = 1e-5
"""Largest allowed |difference| between diffusers' module and ours, in units of max(1, the largest
|output|)."""
STATISTICS_IMAGES = 10_000
"""So many training images, at most, give the mean and the deviation of latents."""
_BATCH = 32


@dataclass(frozen=True)
class Latents:
    """Statistics of the numbers of all latents of training images, without noise of their own:
    z = μ + σ ε has the variance E[μ² + σ²] - E[μ]²."""

    mean: float
    deviation: float
    images: int

    @property
    def scaling(self) -> float:
        """What makes the deviation 1."""
        return 1.0 / self.deviation


def kind_of(model: Model) -> str:
    """The class of diffusers that is this model. Raises Refused if there is none."""
    settings = _settings(model)
    for name in ("encoder", "decoder"):
        network = model.experiment.networks[name]
        if not isinstance(network, AutoencoderKlNetwork):
            raise Refused(
                f"--to diffusers: the {name} of {model.name} is of kind {network.kind}; diffusers "
                "has the networks of kind autoencoder_kl only"
            )
    if model.experiment.networks["encoder"] != model.experiment.networks["decoder"]:
        raise Refused(
            f"--to diffusers: encoder and decoder of {model.name} have different settings; "
            "diffusers has one setting for both"
        )
    bottleneck = settings.bottleneck
    if bottleneck.kind == "kl":
        return "AutoencoderKL"
    if bottleneck.kind != "vq":
        raise Refused(f"--to diffusers: diffusers has no {bottleneck.kind}; it has kl and vq")
    if bottleneck.normalised or not _network(model).quant_conv:
        raise Refused(
            "--to diffusers: its VQModel compares codes without scaling them to length 1, and has "
            "convolutions around them; train with objective.bottleneck.normalised=false and "
            "quant_conv=true in both networks"
        )
    return "VQModel"


def statistics_of(model: Model, store: Store) -> Latents:
    """Of evenly spaced training images of a store, or of its sample of a stream."""
    images = store.train.images_NHWC
    count = min(len(images), STATISTICS_IMAGES)
    chosen = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).round().long()
    ((channels, *_),) = model.latent_shapes.values()
    sums = Sums(channels)
    for part in chosen.split(_BATCH):
        for of_image in moments(model, selected(images, part)).numpy():
            sums.add(of_image[0], of_image[1] if len(of_image) > 1 else None)
    found = Sums.statistics([sums.told()])
    if not found["std_of_all"] > 0.0:
        raise Failed(
            "--to diffusers: all latents are equal or not finite, so this model encodes nothing; "
            "name another checkpoint with --checkpoint"
        )
    return Latents(found["mean_of_all"], found["std_of_all"], count)


def write(folder: Path, model: Model, latents: Latents) -> float | None:
    """Write both files. Returns the largest difference of diffusers' module, which reads them, from
    the model; None if diffusers is not installed."""
    kind = kind_of(model)
    states = {name: network.state_dict() for name, network in model.networks.items()}
    tensors = {
        theirs: _exported(states[network], name)
        for theirs, (network, name) in diffusers_names(states).items()
    }
    # Not `save_file`: only the owner could read its file.
    (folder / DIFFUSERS).write_bytes(save(tensors, metadata={"format": "pt"}))
    config = {"_class_name": kind, "_diffusers_version": VERSION, **_config(model, kind, latents)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if importlib.util.find_spec("diffusers") is None:
        return None
    return _difference(folder, kind, model)


def _exported(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor as diffusers takes it: float32, contiguous. A code out of use becomes a copy of one
    in use, because VQModel looks at all of them."""
    tensor = state[name].detach().float().cpu().contiguous()
    if name != "codes":
        return tensor
    in_use = state["counts"].cpu() > 0
    return torch.where(in_use[:, None], tensor, tensor[in_use][:1])


def _settings(model: Model) -> LatentAutoencoderObjective:
    settings = model.experiment.objective
    if not isinstance(settings, LatentAutoencoderObjective):
        raise Refused(
            f"--to diffusers: {model.name} is of kind {settings.kind}; diffusers reads models of "
            "kind latent_autoencoder"
        )
    return settings


def _network(model: Model) -> AutoencoderKlNetwork:
    network = model.experiment.networks["encoder"]
    assert isinstance(network, AutoencoderKlNetwork)
    return network


def _config(model: Model, kind: str, latents: Latents) -> dict[str, Any]:
    """The fields that diffusers needs to build the module."""
    network, settings = _network(model), _settings(model)
    channels, height, _ = _image_shape(model.experiment)
    heights = [height >> level for level in range(len(network.multipliers))]
    attends = ["Attn" if one in network.attention else "" for one in heights]
    latent_channels = settings.bottleneck.channels(settings.latent_channels)[1]
    fields: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": [f"{one}DownEncoderBlock2D" for one in attends],
        "up_block_types": [f"{one}UpDecoderBlock2D" for one in reversed(attends)],
        "block_out_channels": [network.width * one for one in network.multipliers],
        "layers_per_block": network.blocks,
        "act_fn": "silu",
        "latent_channels": latent_channels,
        "norm_num_groups": network.groups,
        "sample_size": height,
        "scaling_factor": latents.scaling,
        "mid_block_add_attention": network.middle_attention,
        "force_upcast": True,
    }
    if kind == "AutoencoderKL":
        convs = {"use_quant_conv": network.quant_conv, "use_post_quant_conv": network.quant_conv}
        return {**fields, "shift_factor": latents.mean, **convs}
    assert settings.bottleneck.kind == "vq"
    codes = {"num_vq_embeddings": settings.bottleneck.codes, "vq_embed_dim": latent_channels}
    return {**fields, **codes, "norm_type": "group", "lookup_from_codebook": False}


def _image_shape(experiment: Experiment) -> tuple[int, int, int]:
    size, channels = experiment.data.height_and_width(), experiment.data.channels
    assert size is not None and isinstance(channels, int)
    return (channels, *size)


@torch.no_grad()
def _difference(folder: Path, kind: str, model: Model) -> float:
    """The largest difference of latents and images, on the CPU in float32. Raises Failed if it is
    too large, or if a key is missing or unexpected."""
    import diffusers

    module, told = getattr(diffusers, kind).from_pretrained(
        folder,
        output_loading_info=True,
        low_cpu_mem_usage=False,  # else it tells of a package that it would like
    )
    wrong = [key for kind in ("missing_keys", "unexpected_keys") for key in told[kind]]
    if wrong:
        raise Failed(f"--to diffusers: diffusers does not find its place for {', '.join(wrong)}")
    shape = _image_shape(model.experiment)
    pixels = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    objective = model.objective
    assert isinstance(objective, Encodes)
    used = nn.ModuleDict({name: model.networks[name] for name in objective.sampled_from})
    networks = copy.deepcopy(used).cpu().float()
    z = posteriors_of(objective, networks, pixels, None)["z"].mean
    encoded = module.encode(pixels)
    theirs = encoded.latent_dist.mean if kind == "AutoencoderKL" else encoded.latents
    decoded = z
    if kind == "VQModel":  # rounding decides between codes that are equally near to a latent
        decoded = quantiser_in(networks).quantised(z)[0]
    assert isinstance(objective, Clamps)
    ours = objective.unclamped(networks, {"z": decoded}, None, {})
    images = module.decode(decoded).sample / 2 + 0.5
    worst = 0.0
    for one, other in ((z, theirs), (ours, images)):
        worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp(min=1.0)))
    if not worst <= TOLERANCE:
        raise Failed(f"--to diffusers: its module differs by {worst:.1g} from the model")
    return worst
