"""Labelled images as uint8 batches: sets held in memory or in folders, and the order in which they are seen."""
