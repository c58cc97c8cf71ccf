"""Networks that see features in images, one file each."""
