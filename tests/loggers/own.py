"""Loggers of the tests' own, as a user would write them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class Recorder:
    """Writes every call to a file."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def _note(self, *call: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(call) + "\n")

    def start(self, run: Any) -> None:
        """Counts the parts of the run."""
        run.memory["part"] = run.memory.get("part", 0) + 1
        self._note("start", run.name, run.images, run.memory["part"])

    def numbers(self, images: int, values: Any) -> None:
        """Notes them."""
        self._note("numbers", images, dict(values))

    def pictures(self, images: int, values: Any) -> None:
        """Notes their kind."""
        self._note(
            "pictures", images, {t: [str(v.dtype), v.ndim, v.shape[-1]] for t, v in values.items()}
        )

    def end(self, how: str) -> None:
        """Notes it."""
        self._note("end", how)


class Broken(Recorder):
    """Raises in the method of this name."""

    def __init__(self, file: str, method: str, message: str = "no route to host") -> None:
        super().__init__(file)
        self._message = message
        setattr(self, method, self._raise)

    def _raise(self, *_: Any) -> None:
        self._note("raises")
        raise OSError(self._message)


class Hanging(Recorder):
    """Waits for ever in the method of this name."""

    def __init__(self, file: str, method: str) -> None:
        super().__init__(file)
        setattr(self, method, lambda *_: threading.Event().wait())


class Lacking:
    """No logger: it has no `end`."""

    def start(self, run: Any) -> None:
        """Nothing."""

    def numbers(self, images: int, values: Any) -> None:
        """Nothing."""

    def pictures(self, images: int, values: Any) -> None:
        """Nothing."""
