"""Image files, decoded to 8-bit gray and encoded for shards."""
