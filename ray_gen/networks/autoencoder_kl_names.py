"""Names of the weights of networks of kind `autoencoder_kl`: ours, and those of diffusers'
AutoencoderKL and VQModel, in both directions.

Theirs are one row of names for a model, ours a row for each network. "encoder.X" there is X of the
network `encoder` here, "decoder.X" is X of `decoder`. Only the 1 x 1 convolutions around the latent
lie beside encoder and decoder there, and the codes of a codebook have another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_BESIDE = {"encoder": "quant_conv.", "decoder": "post_quant_conv."}
"""Parts of a network here that lie beside it there."""
_CODES_THERE = "quantize.embedding.weight"
_CODES_HERE = ("quantiser", "codes")
"""Codes of a quantiser (K, D), as own module and as name in it."""
_BEFORE_0_17 = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of attention in files of diffusers before 0.17, among them Stable Diffusion's."""
_ONLY_HERE = ("conv_out.measured.",)
"""Parts that matter only in training."""


def diffusers_name(network: str, name: str) -> str | None:
    """The name that diffusers has for a tensor of the state of `encoder`, `decoder` or `quantiser`.
    None if it has none: the state of an adaptive weight, the counts of a codebook."""
    if (network, name) == _CODES_HERE:
        return _CODES_THERE
    if network not in _BESIDE or name.startswith(_ONLY_HERE):
        return None
    return name if name.startswith(_BESIDE[network]) else f"{network}.{name}"


def name_here(theirs: str) -> tuple[str, str] | None:
    """The network and its tensor that diffusers calls `theirs`, also in files of versions before
    0.17. None if no network here has such a tensor."""
    if theirs == _CODES_THERE:
        return _CODES_HERE
    for network, beside in _BESIDE.items():
        if theirs.startswith(beside):
            return network, theirs
    network, _, name = theirs.partition(".")
    if network not in _BESIDE:
        return None
    layer, _, kind = name.rpartition(".")
    before, _, old = layer.rpartition(".")
    if ".attentions." in layer and old in _BEFORE_0_17:
        return network, f"{before}.{_BEFORE_0_17[old]}.{kind}"
    return network, name


def diffusers_names(states: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    """From the names that diffusers has to (network, name) here. states: the names of the state of
    each network and own module. Names that diffusers does not have are left out."""
    return {
        theirs: (network, name)
        for network, names in states.items()
        for name in names
        if (theirs := diffusers_name(network, name)) is not None
    }
