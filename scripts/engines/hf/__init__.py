"""The hf engine: ModelOpt on a Transformers model, in one process, on CPU or CUDA."""
