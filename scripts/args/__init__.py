"""The typed arguments of each algorithm: one class for each script, one field for each flag."""
