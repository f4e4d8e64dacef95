"""A checkpoint in vLLM, TensorRT-LLM or SGLang: whether it loads, and whether what it says is text."""
