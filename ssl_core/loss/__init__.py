"""The NT-Xent loss over the global batch, and its gather."""
