"""The pretraining loop, with its configuration, session, resuming and outputs."""
