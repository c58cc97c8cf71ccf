"""The token of Ray in the home folder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ray_gen.launch import home


@pytest.mark.parametrize("before", [None, 0o644])
def test_nobody_else_can_read_the_token_of_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / ".ray" / "auth_token"
    if before is not None:
        token.parent.mkdir()
        token.write_text("a secret")
        token.chmod(before)
    home.private_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    text = token.read_text()
    assert text == "a secret" if before is not None else len(text) == 64
    home.private_token()
    assert token.read_text() == text


def test_an_open_cluster_of_ones_own_needs_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    home.private_token()
    assert not (tmp_path / ".ray").exists()
