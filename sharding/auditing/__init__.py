"""`sternum audit`: patients and images that packed folders share."""
