"""Fits probes: the search for C, serially or by Ray Tune, the cache of fitted probes, and fine-tuning."""
