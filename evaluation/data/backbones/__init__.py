"""Backbones from anywhere: weights that a run of Sternum did not train, with the input that they take."""
