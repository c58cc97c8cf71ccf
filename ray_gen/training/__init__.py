"""What trains: the step and its program, the state, optimisers, the loop."""
