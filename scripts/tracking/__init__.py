"""Trackers that a run is told to while it lasts: MLflow, Weights & Biases, TensorBoard."""
