"""Simulated radiographs, written in the layouts of two real datasets."""
