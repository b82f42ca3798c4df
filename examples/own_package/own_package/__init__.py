"""A network, two data sets, a loss and a callback for imgrec."""
