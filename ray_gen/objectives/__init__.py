"""The objectives: which losses train which networks in which phases. One file per family. No
objective knows ranks, optimisers or time."""
