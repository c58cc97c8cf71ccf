"""What a likelihood is made of: held-out images, importance weights, reconstructions, means."""
