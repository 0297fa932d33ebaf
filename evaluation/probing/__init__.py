"""The probe of a run or of backbones, its options, and the watch that repeats it while a run trains."""
