"""`sternum shard` and `sternum verify`: packed folders, written and checked."""
