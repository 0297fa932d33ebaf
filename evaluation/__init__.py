"""Checkpoint -> features -> probe -> report: what a frozen backbone has learned, beside what needs no learning."""
