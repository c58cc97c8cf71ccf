"""The scores of a model with a likelihood, and their parts."""
