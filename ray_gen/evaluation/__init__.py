"""How good a model is: metrics of its samples against real images, and its likelihood."""
