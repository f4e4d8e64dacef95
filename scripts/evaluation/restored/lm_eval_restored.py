"""The harness with ModelOpt's quantizers: a script, in a folder of its own because Python puts that on its path.

Without this Transformers loads the weights of a checkpoint that holds ModelOpt's state as they are, unquantized,
and the harness reports the scores of the model that it once was.
"""

import runpy

if __name__ == "__main__":
    import modelopt.torch.opt as mto

    mto.enable_huggingface_checkpointing()
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
