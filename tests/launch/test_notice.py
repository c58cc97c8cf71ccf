"""What clouds say of a machine's end, each in its own words, and what Ray is told of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import pytest

import ray_gen.launch.notice

AWS, AWS_TOKEN = "/latest/meta-data/spot/instance-action", "/latest/api/token"
GCP = "/computeMetadata/v1/instance/preempted"
AZURE = "/metadata/scheduledevents?api-version=2020-07-01"
NEEDED = {
    AWS_TOKEN: ("X-aws-ec2-metadata-token-ttl-seconds", "60"),
    AWS: ("X-aws-ec2-metadata-token", "a token"),
    GCP: ("Metadata-Flavor", "Google"),
    AZURE: ("Metadata", "true"),
}
"""Without such a header these services refuse."""


class Cloud(ThreadingHTTPServer):
    """A metadata service that has these answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answers: dict[str, str] = {}


class Asked(BaseHTTPRequestHandler):
    server: Cloud

    def do_GET(self) -> None:
        name, value = NEEDED[self.path]
        found = self.server.answers.get(self.path) if self.headers[name] == value else None
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write((found or "").encode())

    def do_PUT(self) -> None:
        assert self.path == AWS_TOKEN
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def notice(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ray_gen.launch.notice
    monkeypatch.setattr(module, "METADATA", f"http://127.0.0.1:{cloud.server_port}")
    return module


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _event(kind: str, at: str) -> str:
    return json.dumps({"DocumentIncarnation": 1, "Events": [{"EventType": kind, "NotBefore": at}]})


def test_nobody_answers(notice: ModuleType) -> None:
    assert notice.noticed() is None


def test_aws(cloud: Cloud, notice: ModuleType) -> None:
    cloud.answers[AWS_TOKEN] = "a token"
    assert notice.noticed() is None
    at = _in(119).strftime("%Y-%m-%dT%H:%M:%SZ")
    cloud.answers[AWS] = json.dumps({"action": "terminate", "time": at})
    assert notice.noticed() == pytest.approx(118, abs=3)


def test_gcp(cloud: Cloud, notice: ModuleType) -> None:
    cloud.answers[GCP] = "FALSE"
    assert notice.noticed() is None
    cloud.answers[GCP] = "TRUE"
    assert notice.noticed() == 30


def test_azure(cloud: Cloud, notice: ModuleType) -> None:
    cloud.answers[AZURE] = json.dumps({"DocumentIncarnation": 0, "Events": []})
    assert notice.noticed() is None
    cloud.answers[AZURE] = _event("Reboot", format_datetime(_in(60), usegmt=True))
    assert notice.noticed() is None
    cloud.answers[AZURE] = _event("Preempt", format_datetime(_in(60), usegmt=True))
    assert notice.noticed() == pytest.approx(59, abs=3)
    cloud.answers[AZURE] = _event("Preempt", "")
    assert notice.noticed() == 30


@pytest.mark.parametrize("answer", ["", "<html>", "[]", '{"time": 3}', '{"time": "soon"}'])
def test_what_is_no_notice(cloud: Cloud, notice: ModuleType, answer: str) -> None:
    cloud.answers |= {AWS_TOKEN: "a token", AWS: answer, GCP: answer, AZURE: answer}
    assert notice.noticed() is None


def test_ray_is_told_until_it_listens(
    cloud: Cloud, notice: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    cloud.answers[GCP] = "TRUE"
    told: list[float] = []

    def tell(seconds: float) -> None:
        told.append(seconds)
        if len(told) == 1:
            raise ConnectionError("no head")

    monkeypatch.setattr(notice, "tell", tell)
    monkeypatch.setattr(notice.time, "sleep", lambda seconds: None)
    notice.main([])
    assert told == [30, 30]
    assert "Ray was not told: no head" in capsys.readouterr().out


def test_a_pod_without_a_training_goes_at_once(
    notice: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice, "training", lambda: False)
    monkeypatch.setattr(notice, "tell", lambda seconds: pytest.fail("nobody is to be told"))
    notice.main(["--now", "100"])
