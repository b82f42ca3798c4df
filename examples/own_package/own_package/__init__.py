"""A network, a data set and a loss for imgrec."""
