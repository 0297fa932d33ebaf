"""The command line and its configuration files: the only package that wires the others together."""
