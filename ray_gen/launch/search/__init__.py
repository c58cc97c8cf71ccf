"""A search through Ray Tune, from its checks to its results."""
