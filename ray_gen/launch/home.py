"""Whether the home folder can be written, where a run keeps its files unless told otherwise."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from ray_gen.errors import Refused
from ray_gen.storage import DEFAULT, VARIABLE, reason_of

_CACHE = "~/.cache/ray_gen"
"""As `training.sources.cache_folder` has it."""
_TOKEN = "~/.ray/auth_token"
"""Where a local Ray writes its token, if it finds none."""


def check_home(*, runs: bool, cache: bool, starts_ray: bool) -> None:
    """Raises Refused, with all variables that help, if a file must lie in the home folder and that
    folder cannot be written.

    runs: whether run folders lie there. cache: whether images are decoded. starts_ray: whether a
    local Ray starts, which writes a token unless it finds one.
    """
    needed: dict[str, str] = {}
    if runs:
        needed[f"run folders (${VARIABLE} or --storage)"] = DEFAULT
    if cache and not os.environ.get("RAY_GEN_CACHE") and not _exists(_CACHE):
        needed["decoded images ($RAY_GEN_CACHE)"] = _CACHE
    if starts_ray and _has_no_token():
        needed["the token of a local Ray ($RAY_AUTH_TOKEN: any secret)"] = _TOKEN
    reasons = {what: _why_not(place) for what, place in needed.items()}
    lost = {what: reason for what, reason in reasons.items() if reason is not None}
    if lost:
        *first, last = lost
        listed = f"{', '.join(first)} and {last}" if first else last
        raise Refused(
            f"HOME: {os.environ.get('HOME', '~')} cannot be written ({next(iter(lost.values()))}), "
            f"and {listed} would lie there; set HOME to a folder that can be written, or set "
            + ("each of these variables" if first else "this variable")
        )


def private_token() -> None:
    """Makes the token that a local Ray needs, and that later clusters on this machine use, too.
    Only this user can read it: whoever has it can run anything on the cluster. Ray's own would be
    readable for all."""
    file = Path(_TOKEN).expanduser()
    if _has_no_token():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process has made it meanwhile
            made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(made, "w", encoding="ascii") as token:
                token.write(secrets.token_hex(32))
    with suppress(OSError):  # there is none, or it is another user's
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _has_no_token() -> bool:
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    return not given and mode == "token" and not _exists(_TOKEN)


def _exists(place: str) -> bool:
    try:
        return Path(place).expanduser().exists()
    except (OSError, RuntimeError):  # RuntimeError: this user has no home folder
        return False


def _why_not(place: str) -> str | None:
    """Why a file or folder cannot be made at this place. None if it can. Leaves nothing there."""
    try:
        path = Path(place).expanduser()
        while path != path.parent and not _exists(str(path)):
            path = path.parent
        with tempfile.TemporaryFile(dir=path):
            return None
    except RuntimeError:
        return "this user has no home folder"
    except OSError as error:
        return reason_of(error)
