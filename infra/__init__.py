"""What everything stands on: errors, files, configuration, processes, keyed random numbers, metrics."""
