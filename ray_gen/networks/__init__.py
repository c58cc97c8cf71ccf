"""Architectures: one file each. Every network is called as `network(x, labels, **more)`, labels
None where its signature has no `label_count`; see `ray_gen.core.Networks`."""
