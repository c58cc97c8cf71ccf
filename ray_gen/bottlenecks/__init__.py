"""Discrete bottlenecks: a map of encodings becomes a map of codes. `quantiser.py` says what one is.
Each kind has a file: `codebook.py` (VQ), `fsq.py`, `lfq.py`. `kinds.py` makes one by its name."""
