"""Experiments: what is asked for (Stage), what was checked (Job), what became of it (Run)."""
