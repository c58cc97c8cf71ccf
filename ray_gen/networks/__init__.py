"""Architectures: one file each. Every network is called as `network(x, labels, **more)`. labels is
None if its signature has no `label_count`. See `ray_gen.core.Networks`."""
