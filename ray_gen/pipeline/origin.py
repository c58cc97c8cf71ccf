"""Files of tensors that mean something only together with the weights of one run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ray_gen.errors import Refused


@dataclass(frozen=True)
class Origin:
    """The run whose latents a file holds. In another run, or in the same run at another time, the
    same latents mean other images."""

    run: str
    """Name of the run."""
    weights: str
    """Digest of the run's weights. An exported model has the same digest."""

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Origin | None:
        """What `write` wrote into the metadata of a file. None: unknown."""
        run, weights = metadata.get("run"), metadata.get("run_weights")
        return None if run is None or weights is None else cls(run, weights)


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], origin: Origin | None
) -> None:
    """Write a .safetensors file, whole or not at all. Not safetensors' `save_file`: only the owner
    can read its file, and it does not raise OSError when the file system fails."""
    target = path.expanduser()
    of_run = {} if origin is None else {"run": origin.run, "run_weights": origin.weights}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = save(kept, metadata={**metadata, **of_run})
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def read(
    path: Path, *, missing: str, unreadable: str, remedy: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file. Nothing is unpickled.

    Raises Refused in these words: `missing` if there is no file, `unreadable` and `remedy` around
    the reason if it is no safetensors file.
    """
    if not path.is_file():
        raise Refused(f"{path}: {missing}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Refused(f"{path}: {unreadable}: {error}; {remedy}") from error
