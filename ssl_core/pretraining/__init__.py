"""The pretraining loop and what frames it: configuration, session, resume, outputs."""
