"""The format of a packed folder: samples, shards, indexes and the manifest."""
