"""What other programs call our fields, and how to convert where the unit is another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_gen.experiment.fields import either


@dataclass(frozen=True)
class Called:
    """Names that other programs give to one of our fields."""

    names: str
    """Separated by spaces. Prefixes such as num_ and max_ are left out, see `_PREFIXES`. A dotted
    name is one in that section only."""
    here: str | None
    """The field, or the end of its path: all fields with this end. None: there is no such thing."""
    note: str = ""
    """What is different. A sentence without its point."""
    convert: Callable[[float, int], float] | None = None
    """(their value, training.global_batch_size) -> our value."""


_IMAGES = "training.images"
_STEPS = "steps iters iterations updates train_steps train_iters training_steps"

ELSEWHERE = (
    Called(
        "batch batch_size train_batch_size minibatch_size mini_batch_size per_device_batch_size "
        "per_device_train_batch_size batch_gpu samples_per_gpu",
        "training.global_batch_size",
        "It counts the images of all workers together",
    ),
    Called(
        "gradient_accumulation_steps accumulate_grad_batches grad_accum accumulation_steps",
        "training.micro_batch_size",
        "It is the images of one forward pass; training.global_batch_size stays as it is",
    ),
    Called("lr base_lr blr initial_lr", "learning_rate"),
    Called("glr g_lr lr_g generator_lr", "generator.learning_rate"),
    Called("dlr d_lr lr_d discriminator_lr", "discriminator.learning_rate"),
    Called("wd l2", "weight_decay"),
    Called("beta1 b1 adam_beta1", "betas", "It is the first of two numbers"),
    Called("beta2 b2 adam_beta2", "betas", "It is the second of two numbers"),
    Called("grad_clip clip_grad clip_grad_norm gradient_clip_val grad_norm clip", "clip_norm"),
    Called("lr_scheduler lr_schedule scheduler", "schedule"),
    Called(
        "warmup warmup_steps warmup_epochs lr_warmup_steps",
        "warmup_images",
        "It counts images: steps × training.global_batch_size",
        lambda steps, batch: steps * batch,
    ),
    Called(
        "epochs epoch train_epochs training_epochs",
        _IMAGES,
        "It counts images: epochs × the number of training images",
    ),
    Called(
        _STEPS,
        _IMAGES,
        "It counts images: steps × training.global_batch_size",
        lambda steps, batch: steps * batch,
    ),
    Called(
        "kimg total_kimg",
        _IMAGES,
        "It counts images: kimg × 1000",
        lambda thousands, _: thousands * 1000,
    ),
    Called(
        "ema ema_decay ema_rate ema_beta ema_momentum",
        "training.ema_half_life_images",
        "It is a half-life in images: training.global_batch_size × ln ½ / ln decay",
        lambda decay, batch: batch * math.log(0.5) / math.log(decay),
    ),
    Called(
        "ema_kimg",
        "training.ema_half_life_images",
        "It counts images: kimg × 1000",
        lambda thousands, _: thousands * 1000,
    ),
    Called(
        "size res resolution img_size imsize image_resolution crop_size input_size img_resolution",
        "data.image_size",
    ),
    Called(
        "dataset data_dir datadir data_path dataroot data_root root train_dir train_data path",
        "data",
        "Write data=PATH, or data=KIND:PATH",
    ),
    Called("mirror hflip xflip horizontal_flip random_flip", "data.flip"),
    Called("aug diffaug diff_augment augmentation augmentations", "objective.augment"),
    Called(
        "val_split validation_split test_split val_fraction val_ratio valid_fraction",
        "data.held_out_fraction",
    ),
    Called("nc img_channels image_channels in_channels", "data.channels"),
    Called("gpus devices gpu_count world_size nproc_per_node nodes", "workers.count"),
    Called(
        "device accelerator cuda use_cuda use_gpu",
        "workers.gpu",
        "Write workers.gpu=true; without it a GPU is used if there is one",
    ),
    Called(
        "workers.num num_workers dataloader_workers",
        "workers.count",
        "It is the number of workers that train; loading images needs no setting",
    ),
    Called("nz z_dim zdim dim_z latent latent_dim latent_dims latents code_size", "latent_size"),
    Called("ngf gf_dim g_channels", "generator.width"),
    Called("ndf df_dim d_channels", "discriminator.width"),
    Called("base_channels channel_base nf", "width"),
    Called("hidden hidden_dim hidden_dims hidden_size units layer_sizes", "hidden_sizes"),
    Called(
        "gamma r1 r1_gamma r1_penalty",
        "r1_weight",
        "It is γ of γ/2 · E‖∇D(x)‖², as in StyleGAN",
    ),
    Called(
        "gp gp_weight gp_lambda gp_coef gradient_penalty lambda_gp",
        "gradient_penalty_weight",
        "It is λ of λ · E(‖∇D(x̂)‖₂ - 1)², as in WGAN-GP",
    ),
    Called("d_reg_interval d_reg_every r1_interval", "r1_every"),
    Called("n_critic critic_iters critic_steps d_steps n_dis disc_steps", "discriminator_steps"),
    Called("kl_weight kld_weight kl_coef beta_kl", "objective.beta"),
    Called(
        "kl_weight kld_weight kl_coef beta_kl",
        "objective.bottleneck.weight",
        "It is of means; `ray-gen fields objective.bottleneck.weight` converts weights of sums",
    ),
    Called("class_cond class_conditional cond", "objective.conditional"),
    Called("model arch architecture", "networks", "The losses are set by objective.kind"),
    Called("gan vae objective_kind", "objective.kind", "A GAN's loss is objective.loss"),
    Called("gan_loss loss_type gan_mode adversarial_loss", "objective.loss"),
    Called(
        "fp16 bf16 amp half use_fp16 mixed_precision autocast",
        "training.precision",
        "Set it to bf16 for mixed precision",
    ),
    Called(
        "log_dir logdir logging_dir output output_dir out_dir outdir save_dir savedir result_dir "
        "results_dir results_folder run_dir workdir work_dir default_root_dir checkpoint_dir",
        "storage",
        "It holds the run folders, with checkpoints and logs",
    ),
    Called(
        "checkpoints.every_images save_every save_interval save_freq save_steps snap "
        "checkpoint_every checkpoint_interval",
        "training.checkpoint_every_images",
        "It counts images",
    ),
    Called(
        "log_every log_interval log_freq logging_steps log_every_n_steps print_freq",
        "training.report_every_images",
        "It counts images",
    ),
    Called("eval_every eval_interval eval_steps eval_freq", "evaluation.every_images"),
    Called("keep_last save_top_k to_keep save_total_limit", "checkpoints.keep"),
    Called("random_seed manual_seed manualseed global_seed rng_seed", "seed"),
    Called("run_name experiment_name exp_name", "name"),
    Called(
        "wandb wandb_project use_wandb log_with logger report_to mlflow tensorboard",
        "loggers",
        "Write e.g. loggers=[tensorboard, wandb]",
    ),
    Called(
        "dropout dropout_rate drop_rate p_dropout",
        None,
        "no network of the package has dropout; your own class (kind: custom) may have it",
    ),
    Called(
        "resume resume_from resume_from_checkpoint restore",
        None,
        "`ray-gen resume RUN` goes on with a run",
    ),
    Called(
        "trunc truncation truncation_psi psi",
        None,
        "it belongs to sampling: `ray-gen sample RUN --truncation 1`",
    ),
)
"""Looked up in this order. An entry counts only if the experiment at hand has the field."""

_OBJECTIVES = {
    "wgan wgangp wassersteingan": "gan objective.loss=wasserstein, or train the family wgan-gp",
    "lsgan leastsquaresgan": "gan objective.loss=least_squares",
    "hingegan geometricgan": "gan objective.loss=hinge",
    "r3gan rpgan ragan relativisticgan": "gan objective.loss=relativistic, or train the family "
    "r3gan",
    "sngan biggan": "gan objective.loss=hinge, or train the family sngan",
    "stylegan stylegan2 stylegan2ada": "gan, or train the family stylegan2-ada",
    "fastgan lightweightgan": "gan, or train the family fastgan",
    "dcgan nsgan vanillagan": "gan, or train the family dcgan",
    "acgan": "gan objective.classifier_weight=1 objective.conditional=true",
    "cgan conditionalgan": "gan objective.conditional=true",
    "cvae conditionalvae": "vae objective.conditional=true",
    "vaegan aegan": "vae_gan",
    "iwae": "vae objective.samples=5",
    "sigmavae": "vae objective.likelihood=gaussian objective.sigma=optimal",
    "betavae": "vae objective.beta=4",
    "ae": "autoencoder",
}
"""Names of models, without signs, and what follows objective.kind= here. For families see
`ray-gen recipes`."""
_LOSSES = {
    "wgan wgangp w earthmover critic": "wasserstein",
    "lsgan mse l2": "least_squares",
    "r3gan rpgan ragan rp": "relativistic",
    "ns nonsaturating logistic softplus bce vanilla gan standard dcgan": "non_saturating",
    "saturating mm": "minimax",
    "hingegan geometric": "hinge",
}
_RECONSTRUCTIONS = {
    "mse mseloss l2loss squared gaussian": "l2",
    "mae l1loss absolute laplace": "l1",
}
_NETWORKS = {
    "sngan biggan wgan wgangp resnet18": "resnet",
    "stylegan stylegan2ada stylegan3": "stylegan2",
    "lightweightgan": "fastgan",
    "gan": "dcgan",
    "vae cnn": "conv",
    "autoencoderkl vqmodel klvae vqgan ldm": "autoencoder_kl",
    "patchgan nlayerdiscriminator pix2pix": "patch",
}


def kind_here(path: str, kind: str) -> str | None:
    """What to write instead of a kind, or a loss, that other programs have at this dotted path.
    None if no such name is known."""
    name = "".join(letter for letter in kind.lower() if letter.isalnum())
    section = path.partition(".")[0]
    names = {
        "objective.kind": _OBJECTIVES,
        "objective.loss": _LOSSES,
        "objective.reconstruction": _RECONSTRUCTIONS,
    }.get(path)
    if names is None and section == "networks" and path.endswith(".kind"):
        names = _NETWORKS
    found = (here for known, here in (names or {}).items() if name in known.split())
    here = next(found, None)
    return None if here is None else f"write {path}={here}"


_PREFIXES = ("num_", "n_", "max_", "total_", "no_of_")


def called_here(path: str, known: Sequence[str], value: Any, given: Any) -> str | None:
    """What to set instead of a field that other programs have, as "did you mean …? …". None if no
    such field is known.

    known: the dotted paths of the experiment at hand. value: what was to be assigned.
    """
    for called in ELSEWHERE:
        if not _names(called, path):
            continue
        if called.here is None:
            return called.note
        ends = [p for p in known if p.endswith(f".{called.here}")]
        found = [called.here] if called.here in known else ends
        if found and "." not in found[0] and path.count(".") > 1:
            continue  # a field of a network, say, is none of the whole run
        if found:
            note = f" {called.note}" if called.note else ""
            example = _converted(called, path, found[0], value, given)
            return f"did you mean {either(found)}?{note}{example}"
    return None


def _names(called: Called, path: str) -> bool:
    names = called.names.split()
    path = path.lower().replace("-", "_")
    last = path.rpartition(".")[2]
    if last in names or any("." in name and f".{path}".endswith(f".{name}") for name in names):
        return True
    return any(last.removeprefix(prefix) in names for prefix in _PREFIXES)


def _converted(called: Called, path: str, here: str, value: Any, given: Any) -> str:
    """The value in our unit, as ": here …". Empty if it cannot be computed."""
    training = given.get("training") if isinstance(given, Mapping) else None
    batch = training.get("global_batch_size") if isinstance(training, Mapping) else None
    if called.convert is None or not isinstance(value, (int, float)) or type(batch) is not int:
        return ""
    try:
        ours = round(called.convert(value, batch))
    except (ValueError, ArithmeticError):
        return ""
    return f"; here {here}={ours}" if ours > 0 else ""
