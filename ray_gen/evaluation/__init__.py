"""What a model is worth: its samples against real images, and a likelihood where it has one."""
