"""`tiny:qwen3` and `tiny:llama`: small real models trained on text that every Python carries."""
