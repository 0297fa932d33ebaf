"""The command line, the configurations and the jobs: the only place that wires the parts together."""
