"""Metrics of images: samples against a reference. One file a metric, each on plain tensors."""
