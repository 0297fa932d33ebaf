"""Datasets packed into shards, and shards read as encoded images in order. Imports no torch."""
