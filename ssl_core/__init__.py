"""Pretraining: augmented views, the model, the contrastive loss, engines, checkpoints, and the training loop."""
