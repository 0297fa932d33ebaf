"""Fits probes: the search for C, serially or by Ray Tune, and its cache; `finetuning` trains whole networks."""
