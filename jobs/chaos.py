"""Measures what a run loses to faults at random moments: kills, hangs, lost nodes, full disks.

    python jobs/chaos.py [--rounds 4] [--seed 0] [--only NAME,...]

Starts a Ray of several nodes on this machine: a head without CPU cores and two nodes of one core
each. Trains the recipe once without a fault. Then every round trains it again and injects faults
one after the other, each between 3 and 8 seconds after the run has recovered from the one before.
Prints a row for each fault: the seconds until a worker has taken a new step, and the images that
were trained again. Prints for each round whether the final weights equal those of the undisturbed
run, bit for bit. Another run has its storage behind a server that goes away. The last run shrinks
when a node leaves and grows when one joins. Exits with 1 if weights differ (in the last run: by
more than rounding). Also exits with 1 if a fault lost more than one checkpoint interval. A fault
that damages a checkpoint or keeps the run from writing one may lose two intervals.

Needs the test extra. The full disk needs root, because it mounts a small file system. Without root
that fault is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from ray_gen.runs.checkpoints import checkpoints, fetched  # noqa: E402
from ray_gen.storage import Folder  # noqa: E402
from tests.s3 import S3  # noqa: E402

INTERVAL = 4096
"""Images between two checkpoints: some three seconds."""
ELASTIC_IMAGES = 800_000
ROUNDING = 1e-6
"""Largest ‖Δw‖ / ‖w‖ allowed: in 6,250 steps in double precision, 1e-16 may grow to this."""
GIVEN_UP_SECONDS = 300.0

SETTINGS = {
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "6",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}


@dataclass
class Injected:
    """A fault and what it cost."""

    fault: str
    seconds: float
    """From the fault until a worker had taken a new step."""
    lost: int
    """Images that were trained again."""
    allowed: int = INTERVAL
    note: str = ""


class Machines:
    """A Ray of several nodes, on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.add(), self.add()]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> Any:
        """Adds a node of one CPU core."""
        return self.cluster.add_node(num_cpus=1)

    def replace(self, node: Any) -> None:
        """Starts a new node for one that is gone."""
        with contextlib.suppress(Exception):
            self.cluster.remove_node(node, allow_graceful=False)
        self.nodes = [self.add() if known is node else known for known in self.nodes]

    def processes(self, title: str) -> list[Any]:
        """Ray's processes with this title on all nodes."""
        import psutil

        found = []
        for node in [self.cluster.head_node, *self.nodes]:
            with contextlib.suppress(psutil.Error, KeyError, IndexError):
                raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
                for child in raylet.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if title in " ".join(child.cmdline()):
                            found.append(child)
        return found

    def shutdown(self) -> None:
        """Ends all nodes."""
        self.cluster.shutdown()


@dataclass
class Run:
    """One training. Its driver is a separate process."""

    name: str
    storage: Path
    images: int
    address: str
    recipe: str = "dcgan-mnist5k"
    workers: str = "2"
    interval: int = INTERVAL
    more: tuple[str, ...] = ()
    bucket: str | None = None
    """Where a run behind a URI lies. Only its log lies in `storage`."""
    driver: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    @property
    def place(self) -> Folder:
        return Folder(f"{self.bucket or self.storage}/{self.name}")

    def start(self) -> None:
        """Starts the driver as a user would, with the same command after a fault."""
        overrides = [
            f"training.images={self.images}",
            f"training.checkpoint_every_images={self.interval}",
            f"training.report_every_images={self.interval}",
            f"workers.count={self.workers}",
            "workers.cpus=1",
            "workers.max_restarts=1000",
            *self.more,
        ]
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "ray_gen", "train", self.recipe, *overrides,
                 "--storage", self.bucket or str(self.storage), "--name", self.name],
                env={**os.environ, **SETTINGS, "RAY_ADDRESS": self.address},
                stdout=log,
                stderr=log,
            )  # fmt: skip

    @property
    def log(self) -> Path:
        return self.storage / f"{self.name}.log"

    def told_before_restart(self, since: int) -> int:
        """The last number of images in the log before its last restart. Reads the log from byte
        `since`. 0 if no workers ended."""
        text = self.log.read_bytes()[since:].decode()
        end = max(text.rfind("going on from"), text.rfind("error:"))
        told = re.findall(r"([0-9,]+)/[0-9,]+ images", text[: max(end, 0)])
        return int(told[-1].replace(",", "")) if told else 0

    @property
    def at(self) -> int:
        """Images that the run last reported."""
        return int(_read(self.folder / "progress.json").get("images", 0))

    @property
    def saved(self) -> int:
        """Images of the newest whole checkpoint."""
        return max((int(c.name.rpartition("_")[2]) for c in checkpoints(self.place)), default=0)

    def started(self) -> float:
        """When its workers last began."""
        with contextlib.suppress(OSError):
            return (self.folder / "environment.json").stat().st_mtime
        return 0.0

    def stepped(self) -> float:
        """When its workers last reported a step."""
        with contextlib.suppress(OSError):
            return (self.folder / "progress.json").stat().st_mtime
        return 0.0

    @property
    def ended(self) -> bool:
        return self.driver is not None and self.driver.poll() is not None

    def recovered(self, since: float, reached: int) -> tuple[float, int]:
        """Waits for the first step of workers that began after `since`. Returns its time, and how
        many images the workers must see again. reached: images that the earlier workers had
        reported when the fault came."""
        given_up = time.time() + GIVEN_UP_SECONDS
        while time.time() < given_up:
            began = self.started()
            if began > since:
                restored = int(_read(self.folder / "environment.json").get("from_images", 0))
                while self.stepped() <= began and time.time() < given_up:
                    time.sleep(0.1)
                return self.stepped(), max(0, reached - restored)
            reached = max(reached, self.at)
            time.sleep(0.1)
        raise Hopeless(f"{self.name}: no step in {GIVEN_UP_SECONDS:.0f} s")

    def weights(self) -> dict[str, Tensor]:
        """Weights of the last checkpoint."""
        with fetched(self.place) as (_, folder):
            return load_file(folder / "networks.safetensors")

    def digest(self) -> str:
        """Digest of all tensors of the last checkpoint."""
        found = hashlib.sha256()
        with fetched(self.place) as (_, folder):
            for name in ("networks", "ema", "optimizers"):
                found.update((folder / f"{name}.safetensors").read_bytes())
        return found.hexdigest()

    def saves(self, than: int, since: float) -> float:
        """Waits for a checkpoint of more than `than` images. Returns the time when it was there."""
        while self.saved <= than:
            if time.time() - since > GIVEN_UP_SECONDS or self.ended:
                raise Hopeless(f"{self.name}: no checkpoint after {than:,} images")
            time.sleep(0.2)
        return time.time()


class Hopeless(Exception):
    """A run that did not recover."""


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _killed(processes: list[Any], number: int = signal.SIGKILL) -> None:
    if not processes:
        raise Hopeless("there is no process to kill: is the run over?")
    for process in processes:
        process.send_signal(number)


WORKER, CONTROLLER = "ray::RayTrainWorker", "TrainController"


class Faults:
    """One method for each fault. Its docstring says what it does."""

    def __init__(self, machines: Machines, run: Run, chance: random.Random) -> None:
        self.machines, self.run, self.chance = machines, run, chance

    def worker(self) -> None:
        """kill -9 of one worker."""
        _killed([self.chance.choice(self.machines.processes(WORKER))])

    def two_workers(self) -> None:
        """kill -9 of both workers at once."""
        _killed(self.machines.processes(WORKER))

    def controller(self) -> None:
        """kill -9 of Ray Train's controller."""
        _killed(self.machines.processes(CONTROLLER))

    def raylet(self) -> None:
        """kill -9 of the raylet of a node with a worker. Another node joins."""
        node = self.chance.choice(self.machines.nodes)
        node.kill_raylet()
        time.sleep(2)
        self.machines.replace(node)

    def hang(self) -> None:
        """SIGSTOP of a worker."""
        _killed([self.chance.choice(self.machines.processes(WORKER))], signal.SIGSTOP)

    def driver(self) -> None:
        """kill -9 of the driver, then the same command again."""
        assert self.run.driver is not None
        self.run.driver.kill()
        self.run.driver.wait()
        self.run.start()

    def stop_and_resume(self) -> None:
        """SIGTERM of the driver: it saves, exits with 130, and is started again."""
        assert self.run.driver is not None
        self.run.driver.terminate()
        if self.run.driver.wait(GIVEN_UP_SECONDS) != 130:
            raise Hopeless(f"the driver exited with {self.run.driver.returncode} instead of 130")
        self.run.start()

    def spot_notice(self) -> None:
        """The notice that a node will be gone in 15 seconds. Another node joins."""
        node = self.chance.choice(self.machines.nodes)
        subprocess.run(
            [Path(sys.executable).with_name("ray"), "drain-node", "--node-id", node.node_id,
             "--address", self.machines.address, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
             "--reason-message", "taken back", "--deadline-remaining-seconds", "15"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        gone = time.time() + 15
        self.machines.nodes.append(self.machines.add())
        while time.time() < gone:
            time.sleep(0.1)
        self.machines.nodes.remove(node)
        with contextlib.suppress(Exception):
            self.machines.cluster.remove_node(node, allow_graceful=False)

    def damaged_checkpoint(self) -> None:
        """kill -9 of the driver, and the newest checkpoint is cut in half."""
        assert self.run.driver is not None
        self.run.driver.kill()
        self.run.driver.wait()
        _wait_for_no(self.machines, WORKER)
        newest = self.run.folder / f"checkpoint_{self.run.saved:012}" / "networks.safetensors"
        os.truncate(newest, newest.stat().st_size // 2)
        self.run.start()

    def full_disk(self) -> None:
        """The storage is full until the run has given up. Then there is room, and the run goes
        on."""
        assert self.run.driver is not None
        filler = self.run.storage / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        code = self.run.driver.wait(GIVEN_UP_SECONDS)
        filler.unlink()
        if code not in (1, 2):
            raise Hopeless(f"the driver exited with {code} on a full disk")
        self.run.start()


ALL = [name for name in vars(Faults) if not name.startswith("_")]


def _wait_for_no(machines: Machines, title: str) -> None:
    for _ in range(300):
        if not machines.processes(title):
            return
        time.sleep(0.1)


@contextlib.contextmanager
def storage(root: bool) -> Iterator[Path]:
    """A folder for runs. As root: a small file system of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ray_gen-chaos-"))
    if root:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        if root:
            subprocess.run(["umount", "-l", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def disturbed(
    run: Run, machines: Machines, faults: list[str], chance: random.Random
) -> list[Injected]:
    """Trains a run to its end while these faults are injected."""
    injector = Faults(machines, run, chance)
    rows: list[Injected] = []
    run.start()
    run.recovered(0.0, 0)
    for name in faults:
        run.saves(run.saved, time.time())
        time.sleep(chance.uniform(3, 8))
        if run.ended or run.at >= 0.95 * run.images:
            raise Hopeless(f"{run.name} ended before all faults were injected: raise --images")
        since = time.time()
        before = run.at
        getattr(injector, name)()
        stepped, lost = run.recovered(since, before)
        allowed = (2 if name in ("damaged_checkpoint", "full_disk") else 1) * INTERVAL
        rows.append(Injected(name, stepped - since, max(lost, 0), allowed, f"at {before:,} images"))
        _tell(rows[-1])
    assert run.driver is not None
    if run.driver.wait(1200) != 0:
        raise Hopeless(f"{run.name} ended with {run.driver.returncode}")
    return rows


def over_network(run: Run, s3: Any, chance: random.Random) -> list[Injected]:
    """Trains a run whose storage is a server. The server goes away three times for a while, and
    once until the run has given up; then the same command goes on. The seconds end when there is
    a new checkpoint. Two intervals may be lost: a checkpoint is written while training goes on."""
    rows: list[Injected] = []
    run.start()
    run.saves(0, time.time())
    for seconds in (5.0, 10.0, 20.0, None):
        time.sleep(chance.uniform(2, 5))
        saved, since, tells = run.saved, time.time(), run.log.stat().st_size
        s3.fail("busy")
        assert run.driver is not None
        if seconds is None:
            code = run.driver.wait(GIVEN_UP_SECONDS)
            if code not in (1, 2):
                raise Hopeless(f"the driver exited with {code} without a storage")
            s3.heal()
            run.start()
        else:
            time.sleep(seconds)
            s3.heal()
        name = "storage_gone" if seconds is None else "storage_away"
        seen = run.saves(saved, since)
        began = json.loads(run.place.read_text("environment.json"))["from_images"]
        lost = max(0, run.told_before_restart(tells) - began)
        note = f"for {seconds:.0f} s" if seconds else "until the run had given up"
        rows.append(Injected(name, seen - since, lost, 2 * INTERVAL, note))
        _tell(rows[-1])
    if run.driver is not None and run.driver.wait(1200) != 0:
        raise Hopeless(f"{run.name} ended with {run.driver.returncode}")
    return rows


def elastic(folder: Path, machines: Machines) -> tuple[list[Injected], float]:
    """A run of one or two workers: its second node leaves, and later another joins. Returns what
    both cost, and ‖Δw‖ / ‖w‖ against a run with two workers throughout. In double precision, only
    rounding remains."""
    of = functools.partial(
        Run,
        storage=folder,
        images=ELASTIC_IMAGES,
        address=machines.address,
        recipe="vae-mnist5k",
        interval=10 * INTERVAL,
        more=("training.precision=fp64",),
    )
    fixed = of("fixed")
    fixed.start()
    assert fixed.driver is not None
    if fixed.driver.wait(1200) != 0:
        raise Hopeless(f"fixed ended with {fixed.driver.returncode}")
    run = of("elastic", workers="{max: 2}")
    run.start()
    run.recovered(0.0, 0)
    rows: list[Injected] = []
    for fault in ("node_leaves", "node_joins"):
        run.saves(run.saved, time.time())
        time.sleep(3)
        since, before = time.time(), run.at
        if fault == "node_leaves":
            machines.cluster.remove_node(machines.nodes.pop(), allow_graceful=False)
        else:
            machines.nodes.append(machines.add())
        stepped, lost = run.recovered(since, before)
        count = _read(run.folder / "environment.json")["workers"]
        if count != len(machines.nodes):
            raise Hopeless(f"{count} workers on {len(machines.nodes)} nodes")
        rows.append(Injected(fault, stepped - since, lost, run.interval, f"{count} workers"))
        _tell(rows[-1])
    assert run.driver is not None
    if run.driver.wait(1200) != 0:
        raise Hopeless(f"elastic ended with {run.driver.returncode}")
    ours, theirs = run.weights(), fixed.weights()
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs)
    size = sum(float(theirs[name].square().sum()) for name in theirs)
    return rows, (apart / size) ** 0.5


def main() -> None:
    """Runs rounds of faults and prints a table. The exit code says whether the weights and the
    numbers of lost images are as allowed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=240_000)
    parser.add_argument("--only", help=f"some of the faults: {', '.join(ALL)}")
    given = parser.parse_args()
    os.environ.update(SETTINGS)
    root = os.geteuid() == 0
    chance = random.Random(given.seed)
    names = given.only.split(",") if given.only else [n for n in ALL if root or n != "full_disk"]
    rows: list[Injected] = []
    different = 0
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(S3())
        os.environ.update(s3.environment)  # before the nodes start: their workers need it
        machines = Machines()
        stack.callback(machines.shutdown)
        folder = stack.enter_context(storage(root))
        undisturbed = Run("undisturbed", folder, given.images, machines.address)
        undisturbed.start()
        assert undisturbed.driver is not None
        if undisturbed.driver.wait(3600) != 0:
            raise SystemExit((folder / "undisturbed.log").read_text()[-3000:])
        wanted = undisturbed.digest()
        print(f"undisturbed: {given.images:,} images, weights {wanted[:16]}", flush=True)
        print(f"{'fault':<20}{'seconds to a step':>18}{'images lost':>13}", flush=True)
        for number in range(given.rounds + 1):
            run = Run(f"round-{number}", folder, given.images, machines.address)
            try:
                if number < given.rounds:
                    rows += disturbed(run, machines, chance.sample(names, len(names)), chance)
                else:
                    run.bucket = s3.new_bucket()
                    rows += over_network(run, s3, chance)
            except Hopeless as hopeless:
                log = run.log.read_text()[-3000:]
                raise SystemExit(f"{log}\n{hopeless}") from None
            finally:
                if run.driver is not None:
                    run.driver.kill()
            same = run.digest() == wanted
            different += not same
            told = "equal, bit for bit" if same else "DIFFER"
            print(f"round {number}: weights {told}", flush=True)
            if same:
                shutil.rmtree(run.folder, ignore_errors=True)
        try:
            more, apart = elastic(folder, machines)
        except Hopeless as hopeless:
            raise SystemExit(
                f"{(folder / 'elastic.log').read_text()[-3000:]}\n{hopeless}"
            ) from None
        rows += more
        print(f"elastic: weights {apart:.1e} from those of a fixed size", flush=True)
    print(f"\n{len(rows)} faults in {given.rounds + 2} runs, {different} with other weights")
    print("| fault | times | seconds to a step: median (largest) | images lost: median (largest) |")
    print("|---|---|---|---|")
    for name in dict.fromkeys(row.fault for row in rows):
        of = [row for row in rows if row.fault == name]
        seconds, lost = [row.seconds for row in of], [row.lost for row in of]
        print(
            f"| {name.replace('_', ' ')} | {len(of)} | {statistics.median(seconds):.0f} "
            f"({max(seconds):.0f}) | {statistics.median(lost):,.0f} ({max(lost):,}) |"
        )
    too_many = [row for row in rows if row.lost > row.allowed]
    sys.exit(1 if different or too_many or apart > ROUNDING else 0)


def _tell(row: Injected) -> None:
    over = "  MORE THAN AN INTERVAL" if row.lost > row.allowed else ""
    print(f"{row.fault:<20}{row.seconds:>18.0f}{row.lost:>13,}  {row.note}{over}", flush=True)


if __name__ == "__main__":
    main()
