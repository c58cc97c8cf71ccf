"""`ray-gen train` as a job: `ray job submit --working-dir . -- python jobs/train.py RECIPE ...`.

Takes the arguments of `ray-gen train`. Exits with 0 if training came to its end, 1 if the run
failed, 2 if it could not start, 130 if it was interrupted and saved.
"""

import sys
from pathlib import Path

# The uploaded working directory holds the package; a script sees only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ray_gen.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
