"""Lepton, through its API."""
