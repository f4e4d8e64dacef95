"""Docker, on this machine."""
