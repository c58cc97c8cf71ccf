"""The data set inside the package: 5,000 MNIST digits, so that a first run needs no download."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from ray_gen.data.sources.parquet import Parquet

_FOLDER = Path(__file__).parent.parent / "mnist5k"


class Mnist5k(Parquet):
    """28×28 grey digits of 10 classes: 4,000 to train on, 1,000 held out. Their LICENSE lies in
    the same folder."""

    kind = "mnist5k"

    def __init__(self, *, rules: Literal[1, 2] = 2) -> None:
        super().__init__(path=str(_FOLDER), image_column="image", label_column="label", rules=rules)

    def identity(self) -> object:
        """Digests of the files (1.2 MB take 1 ms), not their times: a new installation of the
        package changes the times."""
        return {
            file.name: hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
            for file in sorted(_FOLDER.glob("*.parquet"))
        }
