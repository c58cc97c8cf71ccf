"""Random changes of the images that a discriminator sees, as functions of images and noise.
`diff.py`: DiffAugment. `ada.py`: the pipeline of adaptive augmentation, on `warp.py`."""

from ray_gen.augment.diff import augment, augment_noise

__all__ = ["augment", "augment_noise"]
