"""Packing of datasets into shards, and reading of their encoded images in order. Does not import torch."""
