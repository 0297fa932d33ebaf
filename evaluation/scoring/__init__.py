"""From predictions to scores with intervals, calibration and subgroups."""
