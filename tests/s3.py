"""A real S3 server on the loopback, which can be made to fail: moto's, behind a gate."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SECRET = "a-secret-that-nobody-may-write-down"

_ANSWERS = {
    "busy": ("503 Service Unavailable", "SlowDown", "Please reduce your request rate."),
    "denied": ("403 Forbidden", "AccessDenied", "Access Denied"),
    "unknown key": ("403 Forbidden", "InvalidAccessKeyId", "There is no such access key."),
}


class S3:
    """The server. `fail` makes it fail, `heal` ends that."""

    KEY = "a-key"

    def __init__(self) -> None:
        from moto.server import create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._moto = create_backend_app("s3")  # not the dispatcher, 40 % of a request's time
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._buckets = (f"bucket-{n}" for n in itertools.count())
        self.requests: list[tuple[str, str]] = []
        """Methods and paths."""
        self._how, self._left, self._methods = "busy", 0.0, ("",)

    def __enter__(self) -> S3:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which s3:// reaches this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}",
            "AWS_ACCESS_KEY_ID": self.KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new_bucket(self) -> str:
        """The URI of an empty bucket."""
        import boto3

        name = next(self._buckets)
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}"

    def fail(
        self, how: str, requests: float = float("inf"), methods: Sequence[str] = ("",)
    ) -> None:
        """Makes the next `requests` requests of these methods fail. how: busy, denied or drop."""
        self._how, self._left, self._methods = how, requests, tuple(methods)

    def heal(self) -> None:
        """No more failures."""
        self._left = 0

    def _answer(self, request: dict[str, Any], begin: Callable[..., Any]) -> Iterable[bytes]:
        method = request["REQUEST_METHOD"]
        self.requests.append((method, request["PATH_INFO"]))
        key = re.search(r"Credential=([^/]+)/", request.get("HTTP_AUTHORIZATION", ""))
        how = None if key is None or key[1] == self.KEY else "unknown key"
        if self._left > 0 and method.startswith(self._methods):
            self._left -= 1
            how = self._how
        if how is None:
            return self._moto(request, begin)
        if how == "drop":
            with contextlib.suppress(OSError):
                request["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        status, code, message = _ANSWERS[how]
        begin(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]
