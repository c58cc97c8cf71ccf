"""`python -m ray_gen` is `ray-gen`."""

from ray_gen.cli import main

main()
