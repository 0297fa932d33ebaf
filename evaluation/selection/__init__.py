"""Chooses a checkpoint without labels, and judges such choices."""
