"""The run folder: what is written into it, and what is read of it."""
