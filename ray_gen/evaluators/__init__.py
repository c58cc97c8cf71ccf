"""Where `Features` was in ray_gen 0.1: users' extractors import it from here."""
