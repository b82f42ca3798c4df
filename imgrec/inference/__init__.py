"""A trained network: prediction, evaluation, their tables and pictures. No Lightning, nothing of training."""
