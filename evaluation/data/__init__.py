"""The input of a probe: labeled sets, their tasks and parts, and the features of their images."""
