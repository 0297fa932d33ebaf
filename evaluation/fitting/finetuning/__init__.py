"""Trains backbones end to end on the labels of a task, next to their frozen probes, and keeps the networks."""
