"""The bridge engine: Megatron-Bridge and ModelOpt as installed libraries, on every rank of torchrun.

engine.py starts a process on each rank and looks at what it left; worker.py is that process, which imports Megatron and
calls the function that the class of `args` names; what that does is the libraries' own, as NVIDIA's scripts call it.
"""
