"""The token of Ray in the home folder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ray_gen.launch import home
from ray_gen.launch.ray_private import asks_for_a_token


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


@pytest.mark.parametrize(("environment", "asks"), [("RAY_AUTH_MODE=token", True), ("A=1", False)])
def test_a_cluster_of_this_machine_is_asked_for_its_mode(
    tmp_path: Path, environment: str, asks: bool
) -> None:
    for pid, program in ((7, "python"), (8, "/site-packages/ray/raylet/raylet")):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_text(f"{program}\0--gcs-address=10.0.0.1:6379\0")
        (folder / "environ").write_text("A=0\0" if pid == 7 else f"B=2\0{environment}\0")
    (tmp_path / "sys").mkdir()
    assert asks_for_a_token("10.0.0.1:6379", tmp_path) == asks
    assert asks_for_a_token("10.0.0.2:6379", tmp_path)
