"""A trained network behind HTTP: limits, batches, answers, and the page to try it."""
