"""From encoded bytes to a pretrained backbone: views, embeddings, the contrastive loss, checkpoints, the loop."""
