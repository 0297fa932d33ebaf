"""The records that a probe writes and reports read. Imports neither torch nor scikit-learn."""
