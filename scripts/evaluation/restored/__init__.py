"""A script that a Python of its own runs, away from this package."""
