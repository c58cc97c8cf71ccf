"""What of a search needs no Ray: its records and its report."""
