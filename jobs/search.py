"""`ray-gen search` as a job: `ray job submit --working-dir . -- python jobs/search.py RECIPE ...`.

Takes the arguments of `ray-gen search`. Exits with 0 if all trials have ended and one was judged,
1 if none was, 2 if the search could not start, 130 if it was interrupted and saved.
"""

import sys
from pathlib import Path

# The uploaded working directory holds the package; a script sees only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ray_gen.cli import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]], prog_name="jobs/search.py")
