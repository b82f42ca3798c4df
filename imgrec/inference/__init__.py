"""A trained network that answers: prediction, evaluation, their tables and pictures. No Lightning, nothing of training."""
