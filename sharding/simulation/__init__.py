"""Simulated radiographs, written as two of the real datasets are shipped."""
