"""Sources of images: one file each. A source imports its library only when it is read."""
