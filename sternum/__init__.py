"""Sternum in Python: features and scores of images in memory.

    import sternum

    backbone = sternum.load_backbone("runs/first")
    features = backbone.embed(images)  # (N, H, W) uint8 -> (N, D) float32

    probe = sternum.load_probe("runs/first", "cell")
    probe.score(images)["PNEUMONIA"].score  # (N,)

Not a medical device. The commands `sternum embed` and `sternum predict` do the same for shards and image files.
"""

from sternum.api import Backbone, Probe, load_backbone, load_probe

__all__ = ["Backbone", "Probe", "load_backbone", "load_probe"]
