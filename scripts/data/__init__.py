"""Text for training: where it comes from, and the binary data that it becomes."""
