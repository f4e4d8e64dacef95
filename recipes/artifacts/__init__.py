"""Artifacts: what runs left, found by reference; whether it is what they left, and what it was made of."""
