"""Slurm, here or behind SSH."""
