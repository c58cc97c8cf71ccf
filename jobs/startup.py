"""Seconds from a command to its first step: `ray-gen train` on Ray and without Ray, against a
minimal TorchTrainer.

    python jobs/startup.py [--rounds 5]

The minimal script trains a linear layer with Adam on one worker and does nothing else. It and
`ray-gen train --ray` start their own local Ray with the same environment variables; `ray-gen train
--local` starts no Ray. The three run one after the other, in rounds; the data of `vae-mnist5k` are
decoded beforehand. The first step of `ray-gen train` is the moment when its worker first reports a
step. Prints every round, and the medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MINIMAL = """
import sys
from pathlib import Path


def work(config):
    import torch
    import ray.train

    model = torch.nn.Linear(784, 10)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(128, 784)).square().mean().backward()
    optimizer.step()
    Path(config["told"]).touch()


if __name__ == "__main__":
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder = Path(sys.argv[1])
    TorchTrainer(
        work,
        train_loop_config={"told": str(folder / "told")},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="minimal", storage_path=str(folder)),
    ).fit()
"""

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ADDRESS": "local",
    "PYTHONPATH": str(ROOT),
}


def seconds_until(told: Path, command: list[str]) -> float:
    """Seconds from the start of a command until its first step writes the file `told`. Then waits
    for the command's end."""
    begun = time.time()
    process = subprocess.Popen(
        command,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not told.exists():
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command[:4])} … ended with {process.returncode}")
        time.sleep(0.01)
    seconds = told.stat().st_ctime - begun
    process.wait()
    return seconds


def main() -> None:
    """Measures the rounds, after one round that is not counted."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    counted: list[tuple[float, float, float]] = []
    for number in range(rounds + 1):
        folder = Path(tempfile.mkdtemp(prefix="startup-"))
        script = folder / "minimal.py"
        script.write_text(MINIMAL, encoding="utf-8")
        minimal = seconds_until(folder / "told", [sys.executable, str(script), str(folder)])
        on_ray, alone = (
            seconds_until(folder / how / "progress.json", [*TRAIN, f"--{how}", *named(folder, how)])
            for how in ("ray", "local")
        )
        shutil.rmtree(folder)
        if number:
            counted.append((minimal, on_ray, alone))
        print(
            f"{number or 'not counted'}: minimal {minimal:.1f} s, ray-gen train --ray "
            f"{on_ray:.1f} s (ratio {on_ray / minimal:.2f}), --local {alone:.1f} s",
            flush=True,
        )
    ratio = statistics.median(on_ray / minimal for minimal, on_ray, _ in counted)
    minimal, on_ray, alone = (statistics.median(column) for column in zip(*counted, strict=True))
    print(
        f"medians of {rounds} rounds: minimal {minimal:.1f} s, --ray {on_ray:.1f} s "
        f"(ratio {ratio:.2f}), --local {alone:.1f} s"
    )


TRAIN = [sys.executable, "-m", "ray_gen", "train", "vae-mnist5k", "training.images=128"]


def named(folder: Path, name: str) -> list[str]:
    """The arguments that set where a run lies."""
    return ["--storage", str(folder), "--name", name]


if __name__ == "__main__":
    main()
