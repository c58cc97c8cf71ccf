"""VQ-VAE (van den Oord et al. 2017) on a map of codes, with the codebook of its appendix A.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ray_gen import core, losses
from ray_gen.core import Batch, Losses, Networks, Noise, Phase, Posterior, Shape, Signature
from ray_gen.experiment import Experiment
from tests.proofs.vq_networks import Codebook

Labels, Named = Tensor | None, Mapping[str, Tensor]


class VqVae(core.Objective):
    """min ‖x - decoder(e)‖² + β ‖z - sg(e)‖², e is the nearest code to z = encoder(x) (eq. 3). z
    gets the gradient of e. codebook: its arguments. side: of the map of codes."""

    image_range = (0.0, 1.0)
    sampled_from = ("encoder", "decoder", "codebook")
    averaged = ("encoder", "decoder")  # the codebook is an average already

    def __init__(
        self, *, image_shape: Shape, label_count: int | None, side: int, codebook: dict[str, Any]
    ) -> None:
        self._codebook, map_of_codes = codebook, (codebook["size"], side, side)
        self._encoder = Signature(image_shape, map_of_codes, label_count)
        self._decoder = Signature(map_of_codes, image_shape, label_count)
        self.latents = {"codes": Noise((side, side), "uniform", 0.0, codebook["count"])}

    def networks(self) -> Mapping[str, Signature]:
        """Images to z (D, side, side), and codes to images."""
        return {"encoder": self._encoder, "decoder": self._decoder}

    def modules(self) -> Mapping[str, nn.Module]:
        """The codes."""
        return {"codebook": Codebook(**self._codebook)}

    def phases(self) -> Sequence[Phase]:
        """One, of one term, with the paper's β = 0.25."""
        term = core.Term("vq", self._losses, weights={"commitment": core.Weight(0.25)})
        return [Phase("autoencoder", self.sampled_from, (term,))]

    def _losses(self, networks: Networks, batch: Batch) -> Losses:
        z = networks["encoder"](batch.images, batch.labels).to(batch.images.dtype)  # (N, D, h, w)
        codebook = networks["codebook"]
        e = codebook.lookup(codebook(z))
        output = networks["decoder"](z + (e - z).detach(), batch.labels).to(z.dtype)
        minimised = {
            "reconstruction": losses.squared_error(output, batch.images),
            "commitment": (z - e).square().sum(1).mean((1, 2)),  # on average over the positions
        }
        return Losses(minimised, of_phase={"codebook/perplexity": codebook.perplexity})

    def encode(self, networks: Networks, images: Tensor, labels: Labels) -> dict[str, Posterior]:
        """Indices of codes, as floats (N, side, side), and no distribution."""
        indices = networks["codebook"](networks["encoder"](images, labels).to(images.dtype))
        return {"codes": Posterior(indices.to(images.dtype), None)}

    def sample(self, networks: Networks, latents: Named, labels: Labels, noise: Named) -> Tensor:
        """Decode the codes whose indices are the whole parts of the latents."""
        indices = latents["codes"].long().clamp(0, self._codebook["count"] - 1)
        codes = networks["codebook"].lookup(indices)
        return networks["decoder"](codes, labels).float().clamp(0.0, 1.0)


def experiment(*overrides: str) -> Experiment:
    """A small one: 4 x 4 of 16 codes an image."""
    from tests.helpers import ADAM, TRAINING, experiment

    codebook = {"count": 16, "size": 4, "decay": 0.9, "dead_below": 1.0}
    options = {"side": 4, "codebook": codebook}
    objective = {"kind": "custom", "target": f"{__name__}:VqVae", "options": options}
    resize = {"kind": "custom", "target": "tests.proofs.vq_networks:Resize"}
    parts = {"objective": objective, "networks": {"encoder": resize, "decoder": resize}}
    more = {"optimizers": {"autoencoder": ADAM}, "training": TRAINING}
    return experiment({**parts, **more}, *overrides)
