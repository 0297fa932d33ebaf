"""Backbone, projection head, batch norm over the global batch, and optimizer."""
