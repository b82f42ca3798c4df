"""Callbacks of a training: each watches and reports, or keeps the best checkpoint."""
