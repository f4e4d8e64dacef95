"""Scores of a checkpoint by EleutherAI's lm-evaluation-harness, and what a quantization changed of them."""
