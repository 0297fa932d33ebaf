"""Pictures of a finished probe: radiographs of the test part, with what the probe says of them and why."""
