"""Architectures: one file each. Every network is called as `network(x, labels)`, labels None where
its signature has no `label_count`."""
