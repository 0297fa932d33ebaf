"""What runs one optimisation step on all ranks: an engine per way of distributing it."""
