"""`ray-gen evaluate` as a job: the same arguments.

ray job submit --working-dir . -- python jobs/evaluate.py RUN... --workers 4
"""

import sys
from pathlib import Path

# A job's working directory holds the package; a script sees only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ray_gen.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]], prog_name="jobs/evaluate.py")
