"""A distance whose class this room does not know: a user's own, or the features of a run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ray_gen.core import Pretrained
from ray_gen.errors import Refused
from ray_gen.perceptual.features import FIELD
from ray_gen.perceptual.frozen import Frozen


class OwnDistance(nn.Module):
    """A module `(images, again) -> (N,)` that is made when it is loaded: sampling from a run needs
    neither its class nor its weights. Its tensors do not learn and are in no checkpoint."""

    def __init__(self, make: Callable[[], nn.Module], name: str, field: str = FIELD) -> None:
        """make: makes the module. name: of its class or its run, for messages. field: the setting
        of the distance."""
        super().__init__()
        self._make, self._name, self._field = make, name, field
        self.description = f"{name} (not loaded)"

    def load(self) -> None:
        """Make the module, and let it read its weights if it is `core.Pretrained`. Raises
        Refused."""
        try:
            module = self._make()
        except TypeError as error:
            raise Refused(f"{self._field}.options: {self._name}: {error}") from error
        if isinstance(module, Pretrained):
            module.load()
        self.distance = Frozen(module)
        described = getattr(module, "description", None)
        self.description = described if isinstance(described, str) else self._name

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] twice to (N,). Gradients reach only the second. Raises Refused
        for another shape."""
        found = self.distance(images.detach(), again)
        if tuple(found.shape) != (len(images),):
            raise Refused(
                f"{self._field}: {self._name} gave the shape {tuple(found.shape)} for "
                f"{len(images)} images; return one value for each, ({len(images)},)"
            )
        return found
