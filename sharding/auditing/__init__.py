"""`sternum audit`: patients and pictures shared by folders or splits."""
