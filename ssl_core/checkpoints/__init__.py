"""Checkpoints on disk: format, background writer, retention, and copies in an object store."""
