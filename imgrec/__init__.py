"""imgrec: labelled images in, a trained and tested classifier out."""
