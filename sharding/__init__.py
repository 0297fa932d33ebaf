"""From raw datasets to shards, and from shards to encoded bytes in order. Imports no torch."""
