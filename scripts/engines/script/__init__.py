"""The script engine: NVIDIA's own scripts, run as they are on every rank."""
