"""Tells Ray when the cloud takes this machine back, so that the runs on it save before it goes.

    python -m ray_gen.launch.notice             beside `ray start`: asks the cloud now and then
    python -m ray_gen.launch.notice --now 25    in a pod's preStop: 25 seconds are left

Ray does not ask the cloud itself. `ray drain-node` tells Ray about a node: nothing new begins on
that node, and a training saves a checkpoint at once. This script ends when it has told Ray of a
notice. With --now it ends when no training runs on this machine, or when the time is over.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import ray

from ray_gen.launch.ray_private import is_train_worker

METADATA = "http://169.254.169.254"
"""Where a machine of AWS, GCP or Azure asks about itself."""
LOOK_SECONDS = 2.0
SHORTEST = 30.0
"""The fewest seconds that GCP and Azure leave; AWS leaves 120."""


def _answer(url: str, method: str = "GET", **headers: str) -> str:
    """The answer of the cloud's metadata service. Raises OSError if there is none, as on another
    cloud."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(METADATA + url, headers=named, method=method)
    with urllib.request.urlopen(request, timeout=2) as answer:
        return answer.read().decode()


def aws() -> float | None:
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""
    token = _answer("/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    answer = _answer("/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token)
    return _until(datetime.fromisoformat(json.loads(answer)["time"]))


def gcp() -> float | None:
    """cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption"""
    answer = _answer("/computeMetadata/v1/instance/preempted", Metadata_Flavor="Google")
    return SHORTEST if answer.strip() == "TRUE" else None


def azure() -> float | None:
    """learn.microsoft.com/azure/virtual-machines/linux/scheduled-events"""
    answer = _answer("/metadata/scheduledevents?api-version=2020-07-01", Metadata="true")
    for event in json.loads(answer)["Events"]:
        if event["EventType"] == "Preempt":
            at = event["NotBefore"]  # empty once it has begun
            return _until(parsedate_to_datetime(at)) if at else SHORTEST
    return None


CLOUDS: tuple[Callable[[], float | None], ...] = (aws, gcp, azure)


def _until(then: datetime) -> float:
    return max(1.0, (then - datetime.now(UTC)).total_seconds())


def noticed() -> float | None:
    """Seconds until this machine is taken back; None while no cloud has announced it."""
    for cloud in CLOUDS:
        try:
            left = cloud()
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another cloud, or no notice: AWS answers with 404 until there is one
        if left is not None:
            return left
    return None


def tell(seconds: float) -> None:
    """Tells Ray that the node on this machine goes in `seconds`."""
    end = time.monotonic() + seconds
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    node = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    left = max(1, round(end - time.monotonic()))
    subprocess.run(
        [Path(sys.executable).with_name("ray"), "drain-node", "--node-id", node,
         "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back",
         "--deadline-remaining-seconds", str(left)],
        check=True,
    )  # fmt: skip


def training() -> bool:
    """Whether a worker of a training runs on this machine."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if is_train_worker((process / "cmdline").read_bytes()):
                return True
        except OSError:
            continue  # it has just ended
    return False


def main(arguments: list[str] | None = None) -> None:
    """Waits for the notice and tells Ray. With --now, tells Ray and waits while a training runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--now", type=float, metavar="SECONDS", help="do not ask the cloud: this time is left"
    )
    given: Any = parser.parse_args(arguments)
    if given.now is not None:
        end = time.monotonic() + given.now
        if training():
            tell(given.now)
        while training() and time.monotonic() < end:
            time.sleep(0.5)
        return
    while True:
        if (left := noticed()) is not None:
            print(f"this machine goes in {left:.0f} s", flush=True)
            try:
                tell(left)
                return
            except Exception as error:  # the head may be away for a moment
                print(f"Ray was not told: {error}", flush=True)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
