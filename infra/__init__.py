"""Shared foundations: errors, files, configuration, processes, keyed random numbers, metrics."""
