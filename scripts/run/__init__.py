"""What every job is surrounded by on the node: its record, its session, its secrets, and why it failed."""
