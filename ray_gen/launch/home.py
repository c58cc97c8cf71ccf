"""Whether the home folder can be written, where a run keeps its files unless told otherwise."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ray_gen.errors import Refused
from ray_gen.storage import DEFAULT, VARIABLE, reason_of
from ray_gen.training.sources import cache_folder

_TOKEN = Path("~/.ray/auth_token")
"""Where a local Ray writes its token, if it finds none."""


def check_home(*, runs: bool, cache: bool, starts_ray: bool) -> None:
    """Raises Refused, with all variables that help, if a file must lie in the home folder and that
    folder cannot be written.

    runs: whether run folders lie there. cache: whether images are decoded. starts_ray: whether a
    local Ray starts, which writes a token unless it finds one.
    """
    needed: dict[str, Path] = {}
    if runs:
        needed[f"run folders (${VARIABLE} or --storage)"] = Path(DEFAULT).expanduser()
    if cache and not os.environ.get("RAY_GEN_CACHE") and not _exists(cache_folder()):
        needed["decoded images ($RAY_GEN_CACHE)"] = cache_folder()
    if starts_ray and _has_no_token():
        needed["the token of a local Ray ($RAY_AUTH_TOKEN: any secret)"] = _TOKEN.expanduser()
    reasons = {what: _why_not(place) for what, place in needed.items()}
    lost = {what: reason for what, reason in reasons.items() if reason is not None}
    if lost:
        *first, last = lost
        listed = f"{', '.join(first)} and {last}" if first else last
        raise Refused(
            f"HOME: {Path.home()} cannot be written ({next(iter(lost.values()))}), and {listed} "
            "would lie there; set HOME to a folder that can be written, or set "
            + ("each of these variables" if first else "this variable")
        )


def _has_no_token() -> bool:
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    return not given and mode == "token" and not _exists(_TOKEN.expanduser())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _why_not(place: Path) -> str | None:
    """Why a file or folder cannot be made at this place. None if it can. Leaves nothing there."""
    while not _exists(place) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return reason_of(error)
