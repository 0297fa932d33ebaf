"""The NT-Xent loss over the global batch, and the executors that compute it."""
