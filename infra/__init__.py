"""The basis of all packages: errors, files, configuration, processes, keyed random numbers, metrics."""
