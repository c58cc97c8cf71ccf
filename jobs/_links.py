"""Workers on links of limited rate: network namespaces, joined by a bridge.

Every worker has a namespace, in which a token bucket (tbf) limits what the worker sends. The bridge
and what a worker receives are not limited. Frames have 9000 bytes. At 1500, the bucket's work for
each packet, and not the rate, limited three workers on two cores (345 of 1000 Mbit/s).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FRAME_BYTES = 9000
BURST_BYTES = 10_000
"""Bytes that a bucket lets through at once after a pause. A smaller bucket would pass no frame."""


class CannotLinkError(Exception):
    """This machine, or this user, cannot make the links. The message says why."""


@contextmanager
def links(count: int, megabits_per_second: float) -> Iterator[list[str]]:
    """Makes `count` namespaces, each with `eth0` at 10.77.0.(1 + rank), and yields their names.
    Deletes them at the end."""
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        raise CannotLinkError(f"{' and '.join(missing)} not found; install iproute2")
    if os.geteuid() != 0:
        raise CannotLinkError("network namespaces need root; run this with sudo")
    prefix = f"rg_{os.getpid()}"
    bridge, names = f"{prefix}_b", [f"{prefix}_{rank}" for rank in range(count)]
    mtu = ["mtu", str(FRAME_BYTES)]
    limit = ["rate", f"{megabits_per_second:g}mbit", "burst", str(BURST_BYTES), "latency", "200ms"]
    try:
        _run("ip", "link", "add", bridge, *mtu, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for rank, name in enumerate(names):
            peer = ["peer", "name", "eth0", *mtu, "netns", name]
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", name, *mtu, "type", "veth", *peer)
            _run("ip", "link", "set", name, "master", bridge, "up")
            _run("ip", "-n", name, "address", "add", f"10.77.0.{rank + 1}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CannotLinkError(f"{' '.join(command)}: {done.stderr.strip()}")


def run_workers(
    namespaces: Sequence[str], job: Mapping[str, Any], seconds: float = 1800.0
) -> dict[str, Any]:
    """Runs a job of `_workers.py` with one worker in each namespace. Returns rank 0's answer."""
    script = Path(__file__).parent / "_workers.py"
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        answer = Path(folder, "answer.json")
        given = json.dumps({**job, "workers": len(namespaces), "answer": str(answer)})
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, script, str(rank), given],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, name in enumerate(namespaces)
        ]
        try:
            errors = [process.communicate(timeout=seconds)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        failed = [text for process, text in zip(processes, errors, strict=True) if process.poll()]
        if failed:
            raise RuntimeError(failed[0])
        return json.loads(answer.read_text(encoding="utf-8"))
