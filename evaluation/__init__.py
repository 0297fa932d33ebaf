"""Evaluation of a run: features of its checkpoints and of controls, probes of these, their scores, and the report."""
