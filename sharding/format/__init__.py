"""The format of a packed folder: samples, shards, index and manifest."""
