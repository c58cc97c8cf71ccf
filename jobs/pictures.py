"""Draws the pictures of README's section "Use a run" again, from a run of `vae-mnist5k`.

ray-gen train vae-mnist5k --name vae && python jobs/pictures.py vae
"""

import sys
from pathlib import Path

# A job's working directory holds the package; a script sees only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ray_gen.cli import main

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "interpolate": ["--from", "3", "--to", "13"],
    "arithmetic": ["--plus", "13,23", "--minus", "34,37", "--plus", "35,19"],
    "traverse": ["--dimensions", "0-4"],
    "reconstruct": ["--data", "--count", "16"],
}

if __name__ == "__main__":
    for command, arguments in COMMANDS.items():
        output = ROOT / "ray_gen" / "cli" / "pictures" / f"{command}.png"
        given = [command, sys.argv[1], *arguments, "--output", str(output)]
        main(given, prog_name="ray-gen", standalone_mode=False)
