"""What is trained: which losses on which networks in which phases. One file a family; none knows of
ranks, optimisers or time."""
