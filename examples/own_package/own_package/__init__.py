"""A network, a data set, a loss and a callback for imgrec."""
