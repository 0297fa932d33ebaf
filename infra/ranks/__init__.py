"""The processes of a run: their ranks, devices and process group."""
