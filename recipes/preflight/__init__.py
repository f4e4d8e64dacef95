"""Checks of a job against what is known of its model and its place."""
