"""Training: the step and its program, the state, the optimisers, the loop."""
