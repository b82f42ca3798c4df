"""Several processes: who they are, how they start, meet, watch one another and stop."""
