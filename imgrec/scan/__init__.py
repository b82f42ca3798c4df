"""The image files of a data set, read once: what was found in them, and how a person sees it."""
