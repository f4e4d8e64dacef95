"""What runs on the node: one entrypoint module per algorithm, the engines, and the run-directory record."""
